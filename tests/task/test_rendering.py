"""Prompts that a study has stored are taken as they are where the chat template would make the same ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers.tokenization_utils_base as tokenization
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna import Engine, search
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.optimize import plan
from llmsearch_optuna.storage.study import stored_study
from llmsearch_optuna.task.prepared_task import PreparedTask
from llmsearch_optuna.task.rendering import RenderedPrompts
from llmsearch_optuna.task.task import Task

CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% if thinks %}!{% endif %}{% endfor %}[answer]"
ROWS = [
    {"prompt": "  Anna asks Ben. ", "reference": "7", "note": "a"},
    {"prompt": "[user]in the chat's format[answer]", "reference": "8", "note": "b"},
    {"prompt": "with </s> inside", "reference": "9", "note": "c"},
    {"prompt": "Anna asks Ben.", "reference": "10", "note": "d"},
]


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    made = copy.deepcopy(tiny_tokenizer)
    made.chat_template = CHAT
    return made


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the chat template has rendered, the probes of its markers left out."""
    conversations: list[Any] = []
    plain = tokenization.render_jinja_template

    def counting(*args: Any, **named: Any) -> Any:
        given = named.get("conversations", args[0] if args else [])
        conversations.extend(c for c in given if not any("\N{PILCROW SIGN}" in str(m["content"]) for m in c))
        return plain(*args, **named)

    monkeypatch.setattr(tokenization, "render_jinja_template", counting)
    return conversations


def stored(task: PreparedTask, **changed: Any) -> RenderedPrompts:
    kept = {"rendering": task.rendering, "texts": dict(enumerate(task.prompts))} | changed
    return RenderedPrompts(**kept, content=str(task.description["prompts"]))


ASKED: list[dict[str, Any]] = [
    {},
    {"prompt": "{note}: {prompt}"},
    {"prompt": [{"role": "user", "content": "{prompt}"}, {"role": "assistant", "content": "{note}"}]},
    {"prompt": lambda row: row["prompt"] + "?"},
    {"system": "Be short."},
    {"chat_template": {"thinks": True}},
    {"chat_template": True},
    {"chat_template_kwargs": {"thinks": True}},
    {"tokenizer_encode_args": {"truncation": True, "max_length": 6}},
]


@pytest.mark.parametrize("asked", ASKED, ids=[", ".join(asked) or "the column" for asked in ASKED])
def test_a_task_is_the_same_with_stored_prompts(
    tokenizer: PreTrainedTokenizerFast, rendered: list[Any], caplog: pytest.LogCaptureFixture, asked: dict[str, Any]
) -> None:
    task = Task(ROWS, metric="f1", **asked)
    first = task.prepare(tokenizer)
    assert rendered
    said = list(caplog.messages)
    rendered.clear()
    caplog.clear()
    again = task.prepare(tokenizer, stored=stored(first))
    assert not rendered
    assert caplog.messages == said
    for name in ("prompts", "add_special_tokens", "occurrences", "distinct", "cut_rows", "description", "rendering"):
        assert getattr(again, name) == getattr(first, name)


@pytest.mark.parametrize(
    "changed",
    [
        {"system": "Be long."},
        {"chat_template": {"thinks": True}},
        {"prompt": "{prompt} {note}"},
        {"dataset": [*ROWS[:3], {**ROWS[3], "prompt": "Anna asks."}]},
        {"dataset": ROWS[:3]},
        {"max_prompt_tokens": 40},
    ],
)
def test_what_is_asked_otherwise_is_rendered_anew(
    tokenizer: PreTrainedTokenizerFast, rendered: list[Any], changed: dict[str, Any]
) -> None:
    asked = {"dataset": ROWS, "metric": "f1"}
    first = Task(**asked).prepare(tokenizer)
    rendered.clear()
    plain, again = (Task(**asked | changed).prepare(tokenizer, stored=s) for s in (None, stored(first)))
    assert again.prompts == plain.prompts
    assert again.cut_rows == plain.cut_rows
    assert len(rendered) >= 2 * (len(again.prompts) - 1)  # the one in the chat's format may not be wrapped


@pytest.mark.parametrize("change", ["the template", "a special token", "the date", "its own template code"])
def test_another_tokenizer_renders_anew(tokenizer: PreTrainedTokenizerFast, rendered: list[Any], change: str) -> None:
    class Own(PreTrainedTokenizerFast):
        def apply_chat_template(self, conversation: Any, **named: Any) -> Any:
            return "own " + str(super().apply_chat_template(conversation, **named))

    first = Task(ROWS, metric="f1").prepare(tokenizer)
    other = copy.deepcopy(tokenizer)
    if change == "the template":
        other.chat_template = CHAT.replace("[answer]", "[reply]")
    elif change == "a special token":
        other.add_special_tokens({"bos_token": "[s]"})
    elif change == "the date":
        other.chat_template = "{{ strftime_now('%d') }}" + CHAT
    else:
        other.__class__ = Own
    rendered.clear()
    found = Task(ROWS, metric="f1").prepare(other, stored=stored(first))
    assert rendered
    assert found.prompts == Task(ROWS, metric="f1").prepare(other).prompts


@pytest.mark.parametrize(
    "texts", [{}, {0: "a", 1: "b", 2: "c"}, {0: "a", 1: "b", 2: "c", 3: "d"}, {1: "a", 2: "b", 3: "c", 4: "d"}]
)
def test_stored_prompts_that_are_damaged_are_rendered_anew(
    tokenizer: PreTrainedTokenizerFast, texts: dict[int, str]
) -> None:
    first = Task(ROWS, metric="f1").prepare(tokenizer)
    assert Task(ROWS, metric="f1").prepare(tokenizer, stored=stored(first, texts=texts)).prompts == first.prompts


any_text = st.text(st.characters(codec="utf-8") | st.sampled_from("<>[]/s"), min_size=1, max_size=20)


@given(texts=st.lists(any_text, min_size=2, max_size=5), system=st.none() | any_text)
def test_any_text_comes_back_as_it_was_rendered(
    tiny_tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], system: str | None
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT
    task = Task([{"prompt": text, "reference": "1"} for text in texts], metric="f1", system=system)
    first = task.prepare(tokenizer)
    assert task.prepare(tokenizer, stored=stored(first)).prompts == first.prompts


def test_a_study_that_goes_on_renders_nothing_and_names_the_same_rows(
    tmp_path: Path,
    tiny_llama: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rendered: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine(tiny_llama, tokenizer, batch_size=8, cache_budget=0)
    rows = [{"prompt": f"Anna asks Ben {n}", "reference": str(n)} for n in range(60)]

    def run(n_trials: int, dataset: list[dict[str, str]] = rows, **changed: Any) -> Any:
        arguments = {"metric": "f1", "storage": f"{tmp_path}/s.db", "study_name": "s", "progress": False, **changed}
        arguments |= {"holdout": 0.3, "search_rows": 20, "holdout_rows": 20}
        return search(
            engine,
            dataset,
            {"max_new_tokens": 2, "temperature": FloatDistribution(0.5, 0.9)},
            n_trials=n_trials,
            **arguments,
        )

    monkeypatch.setattr(plan, "MANY_ROWS", 60)
    run(1)
    assert len(rendered) == len(rows)
    rendered.clear()
    whole = run(2)
    assert not rendered
    known = stored_study(f"{tmp_path}/s.db", "s")
    assert known is not None
    assert known.settings["rendering"]
    assert len(whole.items) == 40, "the others are neither searched nor held out"
    assert {row: known.prompts[row] for row in whole.items} == {row: i.prompt for row, i in whole.items.items()}
    assert sorted(known.prompts) == list(range(60))
    with pytest.raises(InputError, match="row 5, column 'prompt': .*half a character"):
        run(3, [*rows[:5], {"prompt": "\ud800", "reference": "5"}, *rows[6:]])
    with pytest.raises(InputError, match=r"1 of 60 prompts do not fit into the model: row 5 "):
        run(3, [*rows[:5], {"prompt": "long " * 600, "reference": "5"}, *rows[6:]])
    with pytest.raises(StudyError, match="prompts"):
        run(3, [*rows[:5], {"prompt": "changed", "reference": "5"}, *rows[6:]])

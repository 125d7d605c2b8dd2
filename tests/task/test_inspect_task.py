"""Inspect's own evaluation and ours on a local file: the same prompts, texts and scores; and what is refused."""

from __future__ import annotations

import copy
import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.api import score, search
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.task.library_task import read_library_task
from llmsearch_optuna.task.task import Task

inspect_ai = pytest.importorskip("inspect_ai", reason="make test-tasks installs Inspect")

FILE = Path(__file__).with_name("inspect_files.py")
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def chat_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def own(name: str) -> Any:
    """The task as Inspect itself reads it."""
    spec = importlib.util.spec_from_file_location("own_inspect_files", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)()


@pytest.mark.parametrize("name", ["letters", "choices", "lengths"])
def test_the_same_texts_and_scores_as_inspect(
    name: str, tmp_path: Path, tiny_llama: LlamaForCausalLM, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    from inspect_ai.model import get_model

    tiny_llama.save_pretrained(tmp_path / "m")
    chat_tokenizer.save_pretrained(tmp_path / "m")
    given = {"model_path": str(tmp_path / "m"), "tokenizer_path": str(tmp_path / "m"), "device": "cpu"}
    model = get_model("hf/tiny", do_sample=False, **given)
    (log,) = inspect_ai.eval(own(name), model=model, display="none", log_dir=str(tmp_path), max_connections=1)
    assert log.status == "success", log.error
    ours = score(tiny_llama, f"inspect:{FILE}@{name}", {}, chat_tokenizer)
    assert [c.text for c in ours.completions] == [sample.output.completion for sample in log.samples]
    values = log.results.scores[0].metrics
    assert ours.score == pytest.approx(values["mean" if "mean" in values else "accuracy"].value, abs=1e-12)
    if name == "letters":
        assert 0 < ours.score < 1


def test_a_row_is_scored_by_the_whole_chain_of_solvers() -> None:
    task = read_library_task(f"inspect:{FILE}@choices")
    right, wrong = task.metric.score_rows(["ANSWER: A"] * 2, [None] * 2, list(task.rows[:2]))
    assert (right, wrong) == (1.0, 0.0)
    assert task.metric.name == "choice"


def test_the_task_says_how_it_is_decoded() -> None:
    task = read_library_task(f"inspect:{FILE}@options", system="Answer.")
    assert task.generation == {
        "max_new_tokens": 7, "stop_strings": ("\n",), "temperature": 0.5, "top_p": 0.9, "do_sample": True
    }  # fmt: skip
    assert [m["content"] for m in task.rows[0]["prompt"][:2]] == ["Answer.", "Be short."]
    assert read_library_task(f"inspect:{FILE}@greedy").generation == {"max_new_tokens": 5, "do_sample": False}


def test_without_a_chat_template_a_single_message_is_a_text(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    found = score(tiny_llama, f"inspect:{FILE}@greedy", {}, tiny_tokenizer, chat_template=False, limit=2)
    assert found.prompts == ("Anna has 0 apples. How many?", "Ben has 1 apples. How many?")
    with pytest.raises(InputError, match="asks with 2 messages"):
        Task.of(f"inspect:{FILE}@letters", chat_template=False).read()


def test_a_search_goes_on_only_with_the_same_file(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "apples.py"
    text = FILE.read_text(encoding="utf-8")

    def studied(trials: int) -> Any:
        return search(
            tiny_llama,
            f"inspect:{path}@letters",
            {"do_sample": True, "temperature": FloatDistribution(0.2, 2.0)},
            chat_tokenizer,
            holdout=0.3,
            n_trials=trials,
            storage=f"sqlite:///{tmp_path}/s.db",
            progress=False,
        )

    path.write_text(text, encoding="utf-8")
    first = studied(3)
    assert first.opened.records.settings()["metric"] == "includes"
    assert len(studied(4).trials) == 4
    path.write_text(text.replace("version=2", "version=3"), encoding="utf-8")
    with pytest.raises(StudyError, match="metric"):
        studied(4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("asks_nothing", "does not ask the model anything"),
        ("with_tools", "gives the model tools"),
        ("of_the_worst", "none of its metrics is the mean"),
        ("epochs", "decodes each sample 3 times"),
        ("sandboxed", "runs in a sandbox"),
        ("unknown_option", "is decoded with best_of"),
        ("no_task", "makes no task of Inspect, but 3"),
        ("nothing", "has no task 'nothing'; it has .*letters"),
        ("", "has no single task: give one"),
    ],
)
def test_what_cannot_be_done_is_said(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_library_task(f"inspect:{FILE}@{name}")


@pytest.mark.parametrize(
    ("name", "message"), [("twice", "asks the model more than once"), ("by_chance", "asks another question each time")]
)
def test_what_only_an_answer_shows_is_said_before_the_study(
    name: str, message: str, tiny_llama: LlamaForCausalLM, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(InputError, match=message):
        score(tiny_llama, f"inspect:{FILE}@{name}", {}, chat_tokenizer)


def test_files_that_are_not_there_or_fail_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no Python file"):
        read_library_task("inspect:nowhere.py@task")
    (tmp_path / "broken.py").write_text("1 / 0", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be run: ZeroDivisionError"):
        read_library_task(f"inspect:{tmp_path}/broken.py@task")


def test_the_example_of_the_page_runs(
    tmp_path: Path,
    tiny_llama: LlamaForCausalLM,
    chat_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    example = next(text for text in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "inspect:" in text)
    tiny_llama.save_pretrained(tmp_path / "m")
    chat_tokenizer.save_pretrained(tmp_path / "m")
    shutil.copy(FILE, tmp_path / "apples.py")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(
        compile(example.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tmp_path / "m")), "tasks.md", "exec"), names
    )
    assert len(names["result"].trials) == 4

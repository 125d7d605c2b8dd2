"""Searches of a thinking model: the answer is scored, the thought is kept, and older studies go on by their rules."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from llmsearch_optuna.api import confirm, score, search
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.search_result import SearchResult, load_result
from llmsearch_optuna.space.space import Space
from llmsearch_optuna.storage.salvage import salvage
from tests.engine.thinking import thinking_model, thinking_tokenizer
from tests.tiny import SENTENCES

SPACE = {"max_new_tokens": 18, "do_sample": True, "top_k": 0, "temperature": 1.5}


def length(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
    return [float(len(text)) for text in predictions]


def thinks(predictions: Sequence[str], references: Any, rows: Any, completions: Sequence[Completion]) -> list[float]:
    return [float(c.reasoning_tokens + len(c.text)) for c in completions]


def run(folder: Path, **changed: Any) -> SearchResult:
    arguments: dict[str, Any] = {
        "model": Engine(thinking_model(), thinking_tokenizer()),
        "dataset": [{"q": f"{sentence[:12]} {n}", "a": "7"} for n in range(4) for sentence in SENTENCES],
        "space": SPACE | {"temperature": FloatDistribution(0.8, 1.6)},
        "prompt": "{q}",
        "reference": "a",
        "metric": length,
        "chat_template": {"open_thinking": True},
        "n_trials": 3,
        "holdout": 0.2,
        "storage": f"sqlite:///{folder}/s.db",
        "study_name": "s",
        "progress": False,
    } | changed
    return search(**{"holdout": 0.3} | arguments)


def test_the_answer_is_scored_and_the_thought_is_kept(tmp_path: Path) -> None:
    result = run(tmp_path)
    found = result.completions(1)
    assert (found["score"] == found["completion"].str.len()).all()
    thought = found[found["reasoning"].notna()]
    assert len(thought) > 5
    assert (thought["reasoning_tokens"] > 0).all()
    assert (thought["reasoning_tokens"] <= thought["tokens"]).all()
    read = load_result(f"sqlite:///{tmp_path}/s.db")
    assert read.completions(1).equals(found)
    written = [
        json.loads(line) for file in (tmp_path / "artifacts").iterdir() for line in file.read_text().splitlines()
    ]
    assert {"reasoning", "reasoning_tokens"} <= written[0].keys() | written[-1].keys()


def test_a_metric_that_reads_completions_sees_the_thought(tmp_path: Path) -> None:
    result = run(tmp_path, metric=thinks)
    found = result.completions(1)
    assert (found["score"] == found["reasoning_tokens"] + found["completion"].str.len()).all()


def test_markers_can_be_given_or_left_out() -> None:
    rows = [{"q": sentence[:20], "a": "7"} for sentence in SENTENCES]
    engine = Engine(thinking_model(), thinking_tokenizer())
    asked: dict[str, Any] = {"prompt": "{q}", "reference": "a", "metric": length}
    asked["chat_template"] = {"open_thinking": True}
    auto, given, off, other = (
        score(engine, rows, SPACE, **asked, **reasoning).completions
        for reasoning in (
            {},
            {"reasoning": ("<think>", "</think>")},
            {"reasoning": False},
            {"reasoning": ("qu", "left")},
        )
    )
    assert auto == given
    assert any(completion.reasoning is not None for completion in auto)
    assert all(completion.reasoning is None for completion in off)
    assert [c.token_ids for c in auto] == [c.token_ids for c in off] == [c.token_ids for c in other]
    assert [c.text for c in other] != [c.text for c in auto]


def before_reasoning(database: Path) -> None:
    """Make a database what the version before would have made of the study."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for column in ("reasoning", "reasoning_tokens", "logprob"):
            connection.execute(f"ALTER TABLE llmsearch_rows DROP COLUMN {column}")


def facts(result: SearchResult) -> list[Any]:
    return [
        [(r.row, r.text, r.token_ids, r.score, r.reasoning) for r in result.records(t.number)] for t in result.trials
    ]


def test_a_study_from_before_goes_on_by_its_own_rules(tmp_path: Path) -> None:
    for name in ("old", "whole"):
        (tmp_path / name).mkdir()
    whole = run(tmp_path / "whole", reasoning=False, n_trials=4)
    run(tmp_path / "old", reasoning=False)
    before_reasoning(tmp_path / "old" / "s.db")
    resumed = run(tmp_path / "old", n_trials=4)
    assert facts(resumed) == facts(whole)
    with pytest.raises(StudyError, match="reasoning"):
        run(tmp_path / "old", reasoning=("<think>", "</think>"))


def test_databases_without_the_columns_are_read_and_salvaged(tmp_path: Path) -> None:
    run(tmp_path, reasoning=False)
    before_reasoning(tmp_path / "s.db")
    read = load_result(f"sqlite:///{tmp_path}/s.db")
    rows = facts(read)
    assert rows[0]
    assert "reasoning" not in read.completions(0).columns
    read.opened.close()
    assert salvage(tmp_path / "s.db", tmp_path / "new.db").lost == []
    assert facts(load_result(f"sqlite:///{tmp_path}/new.db")) == rows


def test_a_thought_that_was_damaged_is_found_by_its_checksum(tmp_path: Path) -> None:
    run(tmp_path).opened.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as connection, connection:
        changed = connection.execute(
            "UPDATE llmsearch_rows SET reasoning = 'x' || reasoning WHERE reasoning != '' AND number = 1"
        ).rowcount
    assert changed > 0
    found = salvage(tmp_path / "s.db", tmp_path / "new.db")
    assert sum("a damaged row" in line for line in found.lost) == changed


class Writer:
    """An engine of the user's own, whose texts have both."""

    name = "writer"
    tokenizer = None

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[str]:
        return [f"<think>{prompt[:3]}</think>\n{prompt[:5]}" for prompt in prompts]


def test_texts_of_an_engine_without_tokens_are_split_by_given_markers() -> None:
    rows = [{"q": sentence, "a": "7"} for sentence in SENTENCES]
    asked: dict[str, Any] = {"prompt": "{q}", "reference": "a", "metric": length}
    plain = score(Writer(), rows, {"max_new_tokens": 5}, **asked)
    assert plain.completions[0].text.startswith("<think>")
    split = score(Writer(), rows, {"max_new_tokens": 5}, reasoning=("<think>", "</think>"), **asked)
    assert [(c.text, c.reasoning) for c in split.completions] == [(s[:5], s[:3]) for s in SENTENCES]


def test_whether_a_model_thinks_can_be_searched(tmp_path: Path) -> None:
    """Prompts as choices, and spans, go together: where the template closes the span, all is answer."""
    result = run(
        tmp_path, chat_template=None, chat_template_kwargs={"open_thinking": [True, False]}, space=SPACE, n_trials=4
    )
    thoughts: dict[bool, set[bool]] = {}
    for trial in result.trials:
        opened = bool(json.loads(json.dumps(trial.user_attrs["params"]))["chat_template_kwargs.open_thinking"])
        thoughts.setdefault(opened, set()).add(all(r.reasoning is not None for r in result.records(trial.number)))
    assert thoughts == {True: {True}, False: {False}}


BUDGETS = {"max_new_tokens": 18, "thinking_budget": IntDistribution(0, 12, step=3)}


def test_a_budget_can_be_searched_and_a_study_goes_on_with_it(tmp_path: Path) -> None:
    for name in ("halves", "whole"):
        (tmp_path / name).mkdir()
    whole = run(tmp_path / "whole", space=BUDGETS, n_trials=5)
    run(tmp_path / "halves", space=BUDGETS, n_trials=2)
    assert facts(run(tmp_path / "halves", space=BUDGETS, n_trials=5)) == facts(whole)
    budgets = {trial.number: trial.params["thinking_budget"] for trial in whole.trials if trial.params}
    assert len(set(budgets.values())) > 1
    for number, budget in budgets.items():
        assert all(record.reasoning_tokens <= budget + 1 for record in whole.records(number))
        assert any(record.completion.answer_tokens > 0 for record in whole.records(number))


def test_a_budget_without_markers_is_refused_before_the_first_trial(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="thinking_budget has to know between which tokens"):
        run(tmp_path, space=BUDGETS, reasoning=False)
    rows = [{"q": "How", "a": "7"}]
    asked: dict[str, Any] = {"prompt": "{q}", "reference": "a", "metric": length, "reasoning": False}
    with pytest.raises(InputError, match="thinking_budget has to know between which tokens"):
        score(thinking_model(), rows, {"max_new_tokens": 9, "thinking_budget": 2}, thinking_tokenizer(), **asked)


def test_sampling_behind_a_thought_can_be_searched(tmp_path: Path) -> None:
    """Under the same names in Optuna, in a nested dict or not, and from a study file."""
    searched = FloatDistribution(0.0, 1.5, step=0.5)
    flat = {"max_new_tokens": 18, "do_sample": True, "thinking_budget": 4, "after_thinking.temperature": searched}
    nested = {
        "max_new_tokens": 18,
        "do_sample": True,
        "thinking_budget": 4,
        "after_thinking": {"temperature": searched},
    }
    table = {**nested, "after_thinking": {"temperature": {"low": 0.0, "high": 1.5, "step": 0.5}}}
    spaces = [Space.of(flat), Space.of(nested), Space.from_tables(table)]
    assert all(space.description == spaces[0].description for space in spaces)
    for name in ("halves", "whole"):
        (tmp_path / name).mkdir()
    whole = run(tmp_path / "whole", space=nested, n_trials=6)
    run(tmp_path / "halves", space=nested, n_trials=3)
    assert facts(run(tmp_path / "halves", space=flat, n_trials=6)) == facts(whole)
    chosen = {trial.number: trial.params["after_thinking.temperature"] for trial in whole.trials if trial.params}
    assert len(set(chosen.values())) > 1
    texts = {number: [r.text for r in whole.records(number)] for number in chosen}
    thoughts = [[r.reasoning for r in whole.records(number)] for number in chosen]
    assert all(thought[: len(thoughts[0])] == thoughts[0][: len(thought)] for thought in thoughts)
    assert len({str(found) for found in texts.values()}) > 1


def test_a_space_function_may_say_it_too(tmp_path: Path) -> None:
    def space(trial: Any) -> dict[str, Any]:
        warm = trial.suggest_float("warm", 0.1, 1.5)
        return {"max_new_tokens": 18, "do_sample": True, "after_thinking": {"temperature": warm}}

    result = run(tmp_path, space=space, n_trials=3)
    trial = result.trials[-1]
    assert trial.user_attrs["params"]["after_thinking.temperature"] == pytest.approx(trial.params["warm"])


class Repeater(Writer):
    """Another engine, which leaves both in one text."""

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[str]:
        return [f"{len(prompt)} letters</think>\n\n{prompt[:4]}" for prompt in prompts]


def test_another_engine_is_confirmed_on_its_answers(tmp_path: Path) -> None:
    """It has no tokenizer to find the markers by: they are the study's."""
    result = run(tmp_path, holdout=0.4, n_trials=3, baseline={"max_new_tokens": 3})
    rows = [{"q": f"{sentence[:12]} {n}", "a": "7"} for n in range(4) for sentence in SENTENCES]
    found = confirm(result, Repeater(), rows, prompt="{q}", reference="a", metric=length)
    assert found.here.winner_mean == found.here.baseline_mean == 4.0
    stored = [r for rows_of in result.opened.records.all_rows("confirm").values() for r in rows_of]
    assert stored
    assert all(r.reasoning is not None and r.reasoning.endswith(" letters") for r in stored)
    assert all(len(r.text or "") == 4 for r in stored)


def test_a_vote_over_samples_is_a_vote_over_answers() -> None:
    rows = [{"q": sentence[:20], "a": "7"} for sentence in SENTENCES]
    asked: dict[str, Any] = {"prompt": "{q}", "reference": "a", "chat_template": {"open_thinking": True}}
    seen: list[str] = []

    def judged(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
        seen.extend(predictions)
        return [float(len(text)) for text in predictions]

    found = score(
        Engine(thinking_model(), thinking_tokenizer()),
        rows,
        SPACE | {"samples": 3},
        metric=judged,
        aggregate="mean",
        **asked,
    )
    answers = [completion.text for completion in found.completions]
    assert set(answers) <= set(seen)
    assert any(completion.reasoning for completion in found.completions)
    assert not any(completion.reasoning in seen for completion in found.completions if completion.reasoning)

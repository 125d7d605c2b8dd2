"""What engines did is added up over sessions and workers, and nobody overwrites what another one counted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.api import search
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.optimize.throughput import engine_work, stored_engine_work
from llmsearch_optuna.report import collect
from llmsearch_optuna.search_result import SearchResult, load_result
from tests.engine_work import since
from tests.synthetic import TextEngine, dataset, number_metric
from tests.tiny import SENTENCES

SPACE = [{"max_new_tokens": 20}, {"max_new_tokens": 20, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)}]


class Counting(TextEngine):
    """Counts its tokens; Ctrl-C comes at one of its calls."""

    def __init__(self, *, cache: int = 0, interrupted_at: int = 0) -> None:
        super().__init__()
        self.stats = {"tokens": 0, "seconds": 0.0, "cache_bytes": cache}
        self._calls_left = interrupted_at

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        self._calls_left -= 1
        if self._calls_left == 0:
            raise KeyboardInterrupt
        made = super().generate(prompts, params)
        self.stats["tokens"] += sum(len(completion.token_ids) for completion in made)
        self.stats["seconds"] += 0.5
        return made


def run(folder: Path, engine: Any, n_trials: int) -> SearchResult:
    storage = f"sqlite:///{folder}/s.db"
    return search(
        engine,
        dataset(40),
        SPACE,
        holdout=0.3,
        metric=number_metric,
        n_trials=n_trials,
        storage=storage,
        study_name="study",
        progress=False,
    )


def work_of(folder: Path) -> dict[str, Any]:
    return engine_work(load_result(f"{folder}/s.db").study.user_attrs)


def test_sessions_add_up_and_one_that_did_nothing_changes_nothing(tmp_path: Path) -> None:
    first, second, third = Counting(cache=700), Counting(cache=300), Counting(cache=900)
    run(tmp_path, first, 4)
    assert work_of(tmp_path) == first.stats
    run(tmp_path, second, 8)
    both = {name: first.stats[name] + second.stats[name] for name in ("tokens", "seconds")}
    assert second.stats["tokens"] > 0
    assert work_of(tmp_path) == both | {"cache_bytes": 700}
    result = run(tmp_path, third, 8)
    assert third.stats["tokens"] == 0
    assert work_of(tmp_path) == both | {"cache_bytes": 700}
    assert dict(collect(result).costs)["tokens generated"] == f"{both['tokens']:,}"


def test_an_engine_that_goes_on_is_not_counted_twice(tmp_path: Path) -> None:
    engine = Counting()
    run(tmp_path, engine, 4)
    run(tmp_path, engine, 8)
    run(tmp_path, engine, 8)
    assert work_of(tmp_path) == engine.stats


def test_an_interrupted_session_counts(tmp_path: Path) -> None:
    first, second = Counting(interrupted_at=9), Counting()
    with pytest.raises(StudyInterrupted):
        run(tmp_path, first, 4)
    assert first.stats["tokens"] > 0
    assert work_of(tmp_path) == first.stats
    run(tmp_path, second, 4)
    assert work_of(tmp_path)["tokens"] == first.stats["tokens"] + second.stats["tokens"]


def test_our_engine_is_counted(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    engine.generate(SENTENCES[:1], {"max_new_tokens": 3})
    before = engine.stats.snapshot()
    search(
        engine,
        [{"prompt": f"{sentence} {n}", "answer": sentence} for n in range(4) for sentence in SENTENCES],
        {"max_new_tokens": 4, "do_sample": True, "temperature": FloatDistribution(0.5, 1.5)},
        holdout=0.3,
        reference="answer",
        metric="f1",
        n_trials=2,
        storage=f"sqlite:///{tmp_path}/s.db",
        study_name="study",
        progress=False,
    )
    assert work_of(tmp_path) == asdict(since(before, engine.stats))
    assert work_of(tmp_path)["forward_tokens"] > 0


def test_workers_that_end_at_the_same_time_keep_each_others_counts() -> None:
    study = optuna.create_study()
    one, other = {"tokens": 1, "host_bytes": 5}, {"tokens": 10, "host_bytes": 7}
    with stored_engine_work(study, "a", lambda: dict(one)), stored_engine_work(study, "b", lambda: dict(other)):
        one["tokens"], other["tokens"] = 3, 40
    assert engine_work(study.user_attrs) == {"tokens": 32, "host_bytes": 7}


def test_what_an_earlier_version_stored_is_one_session() -> None:
    old = {"tokens": 100, "seconds": 1.5, "cache_bytes": 10}
    assert engine_work({"engine": old, "power": "enough"}) == old
    assert engine_work({"engine": old, "engine_ab12": {"tokens": 5, "steps": 2}}) == {
        "tokens": 105, "seconds": 1.5, "cache_bytes": 10, "steps": 2
    }  # fmt: skip
    assert engine_work({}) == {}


def test_a_trial_counts_its_own_work_whatever_the_engine_did_before(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    engine, result = Engine(tiny_llama, tiny_tokenizer), None

    def tokens(name: str) -> list[int]:
        nonlocal result
        result = search(
            engine,
            [{"prompt": sentence} for sentence in SENTENCES * 4],
            SPACE,
            holdout=0.3,
            metric=lambda predictions, references: [float(len(p) % 7) for p in predictions],
            n_trials=3,
            pruner="none",
            storage=f"sqlite:///{tmp_path}/{name}.db",
            study_name="study",
            progress=False,
        )
        return [trial.user_attrs["engine"]["tokens"] for trial in result.trials]

    assert tokens("first") == tokens("second")
    assert result is not None
    costs = dict(collect(result).costs)
    assert re.fullmatch(r"0 \(0%\)|[\d,]+ \(\d+%\)", costs["of these replayed, not computed"])
    assert {"tokens generated", "kept for later trials"} <= set(costs)
    first = dict(collect(load_result(f"sqlite:///{tmp_path}/first.db")).costs)
    computed, asked = re.fullmatch(r"([\d,]+) of ([\d,]+) asked for", first["prompt tokens through the model"]).groups()  # type: ignore[union-attr]
    assert 0 < int(computed.replace(",", "")) < int(asked.replace(",", ""))

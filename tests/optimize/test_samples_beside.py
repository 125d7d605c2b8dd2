"""Several samples a row beside what else a study can do: servers, halves, prompts as choices, salvage."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from llmsearch_optuna import score
from llmsearch_optuna.search_result import load_result
from llmsearch_optuna.storage.salvage import salvage
from tests.backends.stub_server import StubServer
from tests.optimize.studies import run, signature
from tests.optimize.test_samples import ASKED, Votes
from tests.synthetic import dataset, number_metric


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer().running() as server:
        yield server


def test_a_server_is_asked_once_a_sample_with_a_seed_of_its_own(stub: StubServer) -> None:
    sampled = {"max_new_tokens": 8, "do_sample": True, "temperature": 1.0}
    found = score(stub.url, dataset(5), sampled, metric=number_metric, samples=3, skip_probe=True)
    asked = Counter((json.dumps(body["messages"]), body["seed"]) for body in stub.bodies())
    assert len(asked) == 15
    assert set(asked.values()) == {1}
    assert not any("samples" in body or "n" in body for body in stub.bodies())
    assert [len(samples) for samples in found.samples] == [3] * 5
    before = [samples[:2] for samples in found.samples]
    fewer = score(stub.url, dataset(5), sampled, metric=number_metric, samples=2, skip_probe=True)
    assert [[c.text for c in samples] for samples in fewer.samples] == [[c.text for c in row] for row in before]


def test_halves_judge_each_others_winner_by_all_samples(tmp_path: Path) -> None:
    engine = Votes()
    found = run(tmp_path, engine, **{**ASKED, "holdout": "cross", "n_trials": 8})
    assert max(Counter(engine.calls).values()) == 1, "what was decoded before is taken over, every sample of it"
    judged = [r for number in {0, *found.looks[-1].winners} for r in found.records(number, "holdout")]
    assert {len(r.samples) for r in judged} <= {1, 3}
    assert all(r.score is not None for r in judged)


def test_prompts_and_samples_are_searched_together(tmp_path: Path) -> None:
    asked: dict[str, Any] = {**ASKED, "prompt": {"short": "{prompt}", "long": "Please: {prompt}"}, "n_trials": 8}
    found = run(tmp_path, Votes(), **asked)
    prompts = {t.user_attrs["params"]["prompt"] for t in found.trials}
    assert prompts == {"short", "long"}
    assert {t.user_attrs["params"].get("samples") for t in found.trials if t.user_attrs["role"] == "searched"} == {3}


def test_a_study_that_is_salvaged_goes_on_without_decoding_anything(tmp_path: Path) -> None:
    asked = {**ASKED, "n_trials": 3, "space": {"max_new_tokens": 5, "do_sample": True, "temperature": 0.6}}
    asked["space"]["top_p"] = FloatDistribution(0.5, 1.0)
    whole = run(tmp_path, Votes(), **asked)
    salvage(tmp_path / "s.db", tmp_path / "saved.db")
    saved = load_result(str(tmp_path / "saved.db"), "study")
    assert [t.state for t in saved.trials] == [t.state for t in whole.trials]
    engine = Votes()
    again = run(tmp_path, engine, name="saved", **asked)
    assert engine.calls == []
    assert signature(again) == signature(whole)

"""The verdict in words and JSON, and the cases in which nothing is said."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.optimism import Optimism
from llmsearch_optuna.stats.verdict import Verdict, baseline_won, no_holdout_verdict, unscored_verdict


def test_the_same_seed_gives_the_same_verdict_and_json_keeps_it() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.random((50, 2)), rng.random((50, 2))
    gap = Optimism(0.02, -0.01, 0.05)
    first = compare(a, b, seed=11, look=2, optimism=gap)
    assert first == compare(a, b, seed=11, look=2, optimism=gap)
    assert Verdict.from_json(json.loads(json.dumps(first.to_json()))) == first
    assert "look number 2" in first.sentence
    few = compare(np.zeros(3), np.ones(3))
    assert Verdict.from_json(json.loads(json.dumps(few.to_json()))) == few


def test_where_there_was_no_look_the_verdict_says_why() -> None:
    few = no_holdout_verdict(rows=12)
    assert few.answer == "no evidence"
    assert "12 rows" in few.sentence
    assert few.interval is None
    assert Verdict.from_json(few.to_json()) == few
    own = baseline_won()
    assert own.answer == "no evidence"
    assert "baseline itself won" in own.sentence
    assert not own.recommends_winner


def test_where_no_held_out_row_could_be_scored_the_verdict_does_not_say_that_there_were_none() -> None:
    verdict = unscored_verdict(rows=14, direction="minimize")
    assert (verdict.answer, verdict.direction, verdict.unscored) == ("no evidence", "minimize", 14)
    assert "none of the 14 held-out rows could be scored" in verdict.sentence
    assert "held out." not in verdict.sentence
    assert not verdict.recommends_winner
    assert Verdict.from_json(verdict.to_json()) == verdict


def test_what_an_earlier_version_called_optimism_is_not_said() -> None:
    rng = np.random.default_rng(5)
    stored = {**compare(rng.random(20), rng.random(20)).to_json(), "optimism": 0.04}
    del stored["optimism_low"], stored["optimism_high"], stored["baseline_replicates"], stored["winner_replicates"]
    verdict = Verdict.from_json({**stored, "chance_better": 0.66, "sentence": "chance of being better 66%"})
    assert verdict.optimism is None
    assert "search rows" not in verdict.sentence
    assert "chance" not in verdict.sentence
    assert verdict.decoded == "Both were decoded once."


@pytest.mark.parametrize(("gap", "said"), [(0.04, "0.04 larger than here"), (-0.04, "0.04 smaller than here")])
def test_the_notes_say_how_much_the_search_flattered(gap: float, said: str) -> None:
    rng = np.random.default_rng(5)
    verdict = compare(rng.random(20), rng.random(20), optimism=Optimism(gap, gap - 0.1, gap + 0.1))
    assert f"On the search rows the winner's lead was {said} (95% interval -0.06 to +0.14)" in verdict.notes


def test_what_was_decoded_once_is_not_said_to_be_decoded_three_times() -> None:
    rng = np.random.default_rng(6)
    sampled, greedy = rng.random((20, 3)), rng.random(20)
    assert compare(greedy, sampled).decoded == ("The baseline was decoded once, the winner 3 times with fresh noise.")
    assert compare(sampled, sampled).decoded == "Both were decoded 3 times with fresh noise."


@pytest.mark.parametrize("answer", ["better", "worse", "not worse than margin", "no evidence"])
def test_a_headline_has_twenty_words_at_most(answer: str) -> None:
    shift = {"better": 0.3, "worse": -0.3, "not worse than margin": -0.001, "no evidence": 0.0}[answer]
    rng = np.random.default_rng(7)
    rows = 18 if answer == "no evidence" else 400
    baseline = rng.random(rows)
    verdict = compare(baseline, baseline + shift + 0.05 * rng.normal(size=rows), bounds=(-1, 2), margin=0.1)
    if answer == "no evidence":
        verdict = compare(baseline, rng.random(rows), bounds=(-1, 2))
    assert verdict.answer == answer
    assert len(verdict.headline.split()) <= 20
    assert verdict.sentence == f"{verdict.headline} {verdict.notes}"
    for other in (no_holdout_verdict(rows=12), no_holdout_verdict(rows=50), unscored_verdict(rows=14), baseline_won()):
        assert len(other.headline.split()) <= 20
        assert other.sentence == f"{other.headline} {other.notes}".strip()

"""The verdict: the test that decides, the interval that agrees, and the cases in which nothing is said."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.paired_tests import Clusters, mcnemar_test, sign_flip_test
from llmsearch_optuna.stats.verdict import (
    Optimism,
    Verdict,
    baseline_won,
    compare,
    compare_corpus,
    no_holdout_verdict,
    optimism,
    unscored_verdict,
)


def test_a_clear_gain_is_better_and_the_numbers_say_so() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.random((40, 3)) * 0.5
    verdict = compare(baseline, baseline + 0.1 + 0.05 * rng.normal(size=(40, 3)), bounds=(0, 1))
    assert verdict.answer == "better"
    assert verdict.recommends_winner
    assert verdict.difference == pytest.approx(0.1, abs=0.02)
    assert verdict.low is not None
    assert verdict.high is not None
    assert 0 < verdict.low < verdict.difference < verdict.high
    assert verdict.p_value is not None
    assert verdict.p_value < 0.001
    assert (verdict.rows, verdict.prompts, verdict.replicates) == (40, 40, 3)
    assert (verdict.wins or 0) + (verdict.ties or 0) + (verdict.losses or 0) == 40
    assert f"{verdict.difference:+.4g}" in verdict.headline
    assert len(verdict.headline.split()) <= 20


def test_swapping_the_two_mirrors_the_verdict() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((12, 2)), rng.random((12, 2)) + 0.4
    there, back = compare(a, b), compare(b, a)
    assert (there.answer, back.answer) == ("better", "worse")
    assert there.p_value == back.p_value
    assert back.interval == pytest.approx((-there.high, -there.low))  # type: ignore[operator]
    assert (there.wins, there.losses) == (back.losses, back.wins)


def test_minimize_turns_the_answer_and_leaves_the_numbers() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(30), rng.random(30) - 0.5
    up, down = compare(a, b, direction="maximize"), compare(a, b, direction="minimize")
    assert (up.answer, down.answer) == ("worse", "better")
    assert up.difference == down.difference
    assert (up.wins, up.losses) == (down.losses, down.wins)
    mirrored = compare(-a, -b, direction="minimize")
    assert (mirrored.answer, mirrored.p_value) == (up.answer, up.p_value)
    assert mirrored.interval == pytest.approx((-up.high, -up.low))  # type: ignore[operator]


def test_the_p_value_is_the_enumeration_of_all_sign_flips() -> None:
    d = np.array([0.3, -0.1, 0.2, 0.25, 0.05, 0.4, -0.02])
    extreme = [abs(np.dot(s, d)) >= abs(d.sum()) - 1e-12 for s in itertools.product((-1, 1), repeat=7)]
    verdict = compare(np.zeros(7), d)
    assert verdict.p_value == pytest.approx(np.mean(extreme))


def test_the_interval_is_what_the_test_does_not_reject() -> None:
    rng = np.random.default_rng(3)
    d = rng.normal(size=10) + 0.4
    test = sign_flip_test(Clusters(d, np.ones(10)), alpha=0.05, seed=0)
    for shift in np.linspace(-1, 2, 400):
        rejected = sign_flip_test(Clusters(d - shift, np.ones(10)), alpha=0.05, seed=0).p_value <= 0.05
        assert rejected == (not test.low <= shift <= test.high)


def test_zero_one_scores_get_mcnemars_exact_test() -> None:
    baseline = np.r_[np.zeros(12), np.ones(3), np.ones(25)]
    best = np.r_[np.ones(12), np.zeros(3), np.ones(25)]
    verdict = compare(baseline, best, bounds=(0, 1))
    assert verdict.p_value == pytest.approx(stats.binomtest(3, 15, 0.5).pvalue)
    assert (verdict.wins, verdict.ties, verdict.losses) == (12, 25, 3)
    assert verdict.answer == "better"
    on_hundred = compare(baseline * 100, best * 100, bounds=(0, 100))
    assert on_hundred.low == pytest.approx(100 * (verdict.low or 0))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from(["continuous", "zero_one", "coarse"]))
def test_test_and_interval_never_contradict_each_other(seed: int, rows: int, shape: str) -> None:
    rng = np.random.default_rng(seed)
    gain = rng.normal() * 0.5
    a, b = rng.normal(size=(rows, 2)), rng.normal(size=(rows, 2)) + gain
    if shape == "zero_one":
        a, b = (a[:, :1] > 0).astype(float), (b[:, :1] > 0).astype(float)
    elif shape == "coarse":
        a, b = np.round(a), np.round(b)
    verdict = compare(a, b, prompts=[int(x) for x in rng.integers(0, rows, rows)] if seed % 2 else None)
    assert verdict.interval is not None
    low, high = verdict.interval
    assert verdict.difference is not None
    assert low <= verdict.difference + 1e-9
    assert verdict.difference - 1e-9 <= high
    assert (verdict.answer == "no evidence") == (low <= 0 <= high)
    assert (verdict.answer == "better") == (low > 0)


def test_rows_with_the_same_prompt_are_one_observation() -> None:
    rng = np.random.default_rng(4)
    d = rng.normal(size=8) * 0.3 + 0.12
    once = compare(np.zeros(8), d)
    copied = compare(np.zeros(80), np.repeat(d, 10), prompts=list(np.repeat(np.arange(8), 10)))
    assert copied.p_value == once.p_value
    assert copied.interval == pytest.approx(once.interval)
    assert copied.prompts == 8
    fooled = compare(np.zeros(80), np.repeat(d, 10))
    assert fooled.p_value is not None
    assert copied.p_value is not None
    assert fooled.p_value < copied.p_value


def test_no_difference_at_all_is_no_evidence() -> None:
    scores = np.random.default_rng(5).random((30, 2))
    verdict = compare(scores, scores[:, ::-1])
    assert verdict.answer == "no evidence"
    assert verdict.p_value == 1.0
    rule_of_three = (scores.mean() - scores.min()) * (1 - 0.05 ** (1 / 30))
    assert (verdict.low, verdict.high) == pytest.approx((-rule_of_three, rule_of_three))
    assert verdict.ties == 30
    assert not verdict.recommends_winner


def test_a_handful_of_rows_can_never_convince() -> None:
    for rows in range(1, 6):
        verdict = compare(np.zeros(rows), np.arange(rows) + 1.5)
        assert verdict.answer == "no evidence"
        assert verdict.low is None
        assert "no limit" in verdict.sentence
    assert compare(np.zeros(6), np.arange(6) + 1.0).answer == "better"


def test_no_difference_has_no_sign_when_minimizing() -> None:
    verdict = compare(np.ones(8), np.ones(8), direction="minimize")
    assert "difference: +0 (" in verdict.sentence


def test_a_margin_asks_whether_the_winner_is_good_enough() -> None:
    rng = np.random.default_rng(6)
    baseline = rng.random(400)
    best = baseline - 0.01 + 0.02 * rng.normal(size=400)
    assert compare(baseline, best).answer == "worse"
    good_enough = compare(baseline, best, margin=0.03)
    assert good_enough.answer == "not worse than margin"
    assert good_enough.recommends_winner
    assert good_enough.margin_p_value is not None
    assert good_enough.margin_p_value < 0.001
    assert compare(baseline, best, margin=0.005).answer == "worse"
    assert compare(baseline, baseline + 0.05 * rng.random(400), margin=0.03).answer == "better"
    assert compare(baseline, best, margin=0.0).margin is None


def test_one_deterministic_replicate_compares_with_many() -> None:
    rng = np.random.default_rng(7)
    verdict = compare(rng.random((25, 4)), rng.random(25) + 0.5)
    assert (verdict.answer, verdict.replicates) == ("better", 4)


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


@pytest.mark.parametrize(
    ("a", "b"),
    [([1.0, 2.0], [1.0]), ([], []), ([float("nan")], [1.0]), (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)))],
)
def test_scores_that_cannot_be_compared_are_refused(a: Any, b: Any) -> None:
    with pytest.raises(InputError):
        compare(a, b)


def test_one_label_a_row_is_needed() -> None:
    with pytest.raises(InputError, match="labels"):
        compare([0.0, 1.0], [1.0, 1.0], prompts=["a"])


@pytest.mark.parametrize("shape", ["continuous", "skewed", "zero_one"])
def test_equal_configurations_are_called_better_rarely_and_the_interval_covers(shape: str) -> None:
    rng, better, covered, runs = np.random.default_rng(9), 0, 0, 250
    for seed in range(runs):
        rows = rng.normal(size=30)
        a, b = rows + rng.normal(size=30), rows + rng.normal(size=30)
        if shape == "skewed":
            a, b = np.exp(a), np.exp(b)
        elif shape == "zero_one":
            a, b = (a > 0.5).astype(float), (b > 0.5).astype(float)
        verdict = compare(a, b, seed=seed)
        better += verdict.answer == "better"
        covered += verdict.interval is not None and verdict.interval[0] <= 0 <= verdict.interval[1]
    assert better / runs <= 0.05
    assert covered / runs >= 0.93


def test_mcnemars_interval_covers_where_few_rows_differ() -> None:
    rng, covered, runs = np.random.default_rng(10), 0, 2000
    for _ in range(runs):
        wins, losses, _ = rng.multinomial(30, [0.08, 0.02, 0.9])
        test = mcnemar_test(int(wins), int(losses), 30, alpha=0.05)
        covered += test.low <= 0.06 <= test.high
    assert covered / runs >= 0.93


def _share_of_hits(predictions: Sequence[str], references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> float:
    """A ratio of sums, as BLEU is: long predictions weigh more."""
    hits = sum(p.split().count(r) for p, r in zip(predictions, references, strict=True))
    return hits / max(1, sum(len(p.split()) for p in predictions))


def _texts(rng: np.random.Generator, rows: int, chance: float) -> list[list[str]]:
    return [
        [" ".join(rng.choice(["x", "y"], p=[chance, 1 - chance], size=rng.integers(2, 12))) for _ in range(2)]
        for _ in range(rows)
    ]


def test_corpus_metrics_are_recomputed_on_swapped_and_resampled_rows() -> None:
    rng = np.random.default_rng(11)
    worse, better = _texts(rng, 40, 0.3), _texts(rng, 40, 0.6)
    references = ["x"] * 40
    verdict = compare_corpus(_share_of_hits, worse, better, references=references, permutations=199, resamples=100)
    assert verdict.answer == "better"
    assert verdict.difference == pytest.approx(0.3, abs=0.1)
    assert verdict.wins is None
    assert verdict.replicates == 2
    again = compare_corpus(_share_of_hits, worse, better, references=references, permutations=199, resamples=100)
    assert again == verdict
    down = compare_corpus(
        _share_of_hits, worse, better, references=references, direction="minimize", permutations=199, resamples=100
    )
    assert down.answer == "worse"
    assert down.difference == pytest.approx(verdict.difference)


def test_equal_corpora_are_no_evidence() -> None:
    same = [["x y"]] * 25
    verdict = compare_corpus(_share_of_hits, same, same, references=["x"] * 25, permutations=99, resamples=50)
    assert (verdict.answer, verdict.p_value) == ("no evidence", 1.0)
    with pytest.raises(InputError):
        compare_corpus(_share_of_hits, same, same[:3], references=["x"] * 25)


def test_the_same_completions_are_not_worse_than_a_margin() -> None:
    same, references = [["x y"]] * 25, ["x"] * 25
    verdict = compare_corpus(
        _share_of_hits, same, same, references=references, bounds=(0, 1), margin=0.1, permutations=99
    )
    assert verdict.answer == "not worse than margin"
    assert verdict.margin_p_value == pytest.approx((1 - 0.1 / 0.5) ** 25, rel=1e-3)
    few = compare_corpus(
        _share_of_hits, same[:6], same[:6], references=references[:6], bounds=(0, 1), margin=0.1, permutations=99
    )
    assert few.answer == "no evidence"
    unbounded = compare_corpus(_share_of_hits, same, same, references=references, margin=0.1, permutations=99)
    assert (unbounded.answer, unbounded.interval) == ("no evidence", (-math.inf, math.inf))


def test_a_corpus_metric_that_cannot_be_computed_on_what_is_drawn_leaves_the_interval_open() -> None:
    rng = np.random.default_rng(13)
    worse, better = _texts(rng, 40, 0.3), _texts(rng, 40, 0.6)

    def broken(predictions: Sequence[str], references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> float:
        known = [[row[0] for row in worse], [row[0] for row in better], [row[1] for row in worse]]
        if list(predictions) in [*known, [row[1] for row in better]]:
            return _share_of_hits(predictions, references, rows)
        return math.nan

    verdict = compare_corpus(broken, worse, better, references=["x"] * 40, permutations=99, resamples=50)
    assert verdict.answer == "no evidence"
    assert verdict.interval == (-math.inf, math.inf)
    assert verdict.p_value == 1.0


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


def test_held_out_rows_that_could_not_be_scored_are_told() -> None:
    scores = np.random.default_rng(4).random((12, 2))
    plain, fewer = compare(scores, scores + 0.1), compare(scores, scores + 0.1, unscored=3)
    assert "could not be scored" not in plain.sentence
    assert "3 of 15 held-out rows could not be scored and do not count" in fewer.sentence
    assert (fewer.rows, fewer.unscored) == (12, 3)
    earlier = {name: value for name, value in plain.to_json().items() if name != "unscored"}
    assert Verdict.from_json(earlier) == plain
    texts = [["x"], ["y"]] * 6
    corpus = compare_corpus(
        _share_of_hits, texts, texts, references=["x"] * 12, unscored=1, permutations=9, resamples=9
    )
    assert "1 of 13 held-out rows" in corpus.sentence


def test_where_no_held_out_row_could_be_scored_the_verdict_does_not_say_that_there_were_none() -> None:
    verdict = unscored_verdict(rows=14, direction="minimize")
    assert (verdict.answer, verdict.direction, verdict.unscored) == ("no evidence", "minimize", 14)
    assert "none of the 14 held-out rows could be scored" in verdict.sentence
    assert "held out." not in verdict.sentence
    assert not verdict.recommends_winner
    assert Verdict.from_json(verdict.to_json()) == verdict


def test_optimism_is_a_difference_of_two_leads_with_welchs_interval() -> None:
    rng = np.random.default_rng(14)
    searched, held_out = rng.normal(0.06, 0.1, 42), rng.normal(0.01, 0.2, 18)
    gap = optimism(searched, held_out)
    assert gap is not None
    assert gap.gap == pytest.approx(searched.mean() - held_out.mean())
    welch = stats.ttest_ind(searched, held_out, equal_var=False).confidence_interval(0.95)
    assert (gap.low, gap.high) == pytest.approx((welch.low, welch.high))
    assert optimism(searched, held_out[:1]) is None


def test_hard_or_easy_rows_are_no_optimism() -> None:
    """Means of different rows differ by chance; the lead over the baseline on them does not."""
    rng, outside, runs = np.random.default_rng(15), 0, 300
    for _ in range(runs):
        leads = []
        for rows in (42, 18):
            difficulty = rng.normal(0.3, 0.15, rows)
            baseline, winner = (difficulty + 0.05 * rng.normal(size=rows) for _ in range(2))
            leads.append(winner - baseline)
        gap = optimism(*leads)
        outside += gap is not None and not gap.low <= 0 <= gap.high
    assert outside / runs == pytest.approx(0.05, abs=0.03)


def test_what_an_earlier_version_called_optimism_is_not_said() -> None:
    rng = np.random.default_rng(5)
    stored = {**compare(rng.random(20), rng.random(20)).to_json(), "optimism": 0.04}
    del stored["optimism_low"], stored["optimism_high"], stored["baseline_replicates"], stored["winner_replicates"]
    verdict = Verdict.from_json({**stored, "chance_better": 0.66, "sentence": "chance of being better 66%"})
    assert verdict.optimism is None
    assert "search rows" not in verdict.sentence
    assert "chance" not in verdict.sentence
    assert verdict.decoded == "Both were decoded once."


@pytest.mark.parametrize(
    ("rows", "wrong", "right"), [(18, 0.02, 0.06), (30, 0.02, 0.06), (30, 0.02, 0.02), (30, 0.4, 0.45)]
)
def test_the_interval_covers_where_nearly_all_replicates_fail(rows: int, wrong: float, right: float) -> None:
    rng = np.random.default_rng(7)
    covered, runs = 0, 150
    for seed in range(runs):
        chances = (rng.beta(p, 1 - p, (rows, 1)) for p in (wrong, right))  # rows differ: some always work, most never
        baseline, best = ((rng.random((rows, 3)) < chance).astype(float) for chance in chances)
        interval = compare(baseline, best, bounds=(0, 1), seed=seed).interval
        assert interval is not None
        covered += interval[0] <= right - wrong <= interval[1]
    assert covered >= 0.92 * runs  # 85 % of 18 rows before there were pseudo rows


def test_rows_that_all_fail_prove_no_equality() -> None:
    verdict = compare(np.zeros((20, 3)), np.zeros((20, 3)), bounds=(0, 1))
    assert verdict.interval is not None
    assert verdict.interval[0] < -0.05
    assert verdict.interval[1] > 0.05
    assert verdict.p_value == 1.0


def test_replicated_zero_one_scores_scale_with_their_bounds() -> None:
    rng = np.random.default_rng(3)
    baseline, best = rng.integers(0, 2, (2, 25, 2)).astype(float)
    ones = compare(baseline, best, bounds=(0, 1))
    tens = compare(10 * baseline, 10 * best, bounds=(0, 10))
    assert ones.interval is not None
    assert tens.interval == pytest.approx([10 * end for end in ones.interval])
    assert tens.p_value == ones.p_value


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

"""The verdict: does the winner of a search beat the baseline on rows that no trial saw?

Scores come in, one paired comparison goes out, in words and numbers. A test decides, its interval agrees with it,
and where nothing can be said, that is what is said. Nothing is decoded here and no study is known.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats import verdict_text
from llmsearch_optuna.stats.detectable import (
    POWER,
    detectable_gain,
    detectable_replicated_share,
    detectable_share,
    room_above,
)
from llmsearch_optuna.stats.jackknife import influences
from llmsearch_optuna.stats.paired_tests import (
    FEWEST_CLUSTERS,
    Clusters,
    Floats,
    LargestLosses,
    PairedTest,
    cluster_numbers,
    margin_p_value,
    mcnemar_test,
    sign_flip_test,
    swap_test,
    two_valued_test,
)
from llmsearch_optuna.stats.tail_bound import mean_above_p_value
from llmsearch_optuna.stats.verdict_numbers import Answer, VerdictNumbers
from llmsearch_optuna.types import Bounds, Direction

_MOST_GROUPS = 200
"""Of prompts that are left out together to see what each adds to a score of all rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(VerdictNumbers):
    """The outcome of one look at the holdout, or why there was none, in numbers and in words.

    The attributes are those of `VerdictNumbers`.
    """

    @property
    def headline(self) -> str:
        """The answer, the difference with its interval, and the rows: 20 words at most."""
        return verdict_text.headline(self)

    @property
    def notes(self) -> str:
        """What has to be known beside the headline, in a few sentences."""
        return verdict_text.notes(self)

    @property
    def decoded(self) -> str:
        """How often each side was decoded on the held-out rows, in a sentence."""
        return verdict_text.decoded(self)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "differences": list(self.differences)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verdict:
        """Read what to_json gave; keys of later versions are ignored."""
        known = {field.name for field in fields(cls)}
        found = {name: value for name, value in values.items() if name in known}
        if found.get("optimism_low") is None:
            found["optimism"] = None  # an earlier version compared means of different rows
        return _in_words(cls(**{**found, "differences": tuple(values.get("differences", ()))}))


class CorpusScore(Protocol):
    """A metric that scores all rows at once."""

    def __call__(
        self, completions: Sequence[Any], references: Sequence[Any], rows: Sequence[Mapping[str, Any]], /
    ) -> float:
        """Return one score of all rows."""
        ...


def compare(
    baseline: ArrayLike,
    best: ArrayLike,
    *,
    prompts: Sequence[Hashable] | None = None,
    bounds: Bounds | None = None,
    direction: Direction = "maximize",
    seed: int = 0,
    margin: float | None = None,
    alpha: float = 0.05,
    look: int = 1,
    optimism: Optimism | None = None,
    unscored: int = 0,
) -> Verdict:
    """Compare two configurations on the same held-out rows.

    Replicates are averaged within their row, rows with the same prompt form one cluster. The decision is an exact
    McNemar test where the scores are 0/1 (one replicate, distinct prompts), otherwise a sign-flip permutation test of
    the clusters, and Stringer's bound where that is more cautious: rows that were not seen could have lost all of
    their score. The interval is the one that goes with the test (see `paired_tests`), and both always agree. With
    fewer than 6 prompts no result can be significant.

    Args:
        baseline: Scores [rows] or [rows, replicates].
        best: The winner's scores on the same rows; the number of replicates may differ (a deterministic
            configuration needs one).
        prompts: One label a row; rows with the same label are one cluster. Default: all rows are distinct.
        bounds: Of the metric; they tell 0/1 scores, limit the interval, and say what a row can lose. Without bounds
            the worst score that either side got stands for the worst one.
        direction: ``"maximize"`` or ``"minimize"``.
        seed: Of the sampled permutations.
        margin: A loss below this is acceptable; None or 0 asks plainly whether the winner is better.
        alpha: The error rate of the two-sided test; the interval has 1 - alpha.
        look: Which look at this holdout it is.
        optimism: See `optimism`, carried along.
        unscored: Held-out rows that are missing here since they could not be scored, carried along.

    Raises:
        InputError: The scores do not match or are not finite.
    """
    first, second = _score_table(baseline, "baseline"), _score_table(best, "best")
    if len(first) != len(second):
        raise InputError(f"the baseline has {len(first)} rows, the winner {len(second)}; compare them on the same rows")
    labels = _labels(prompts, len(first))
    sign = -1.0 if direction == "minimize" else 1.0
    differences = second.mean(axis=1) - first.mean(axis=1)
    scale = float(np.max(np.abs([first.mean(axis=1), second.mean(axis=1)])))
    differences[np.abs(differences) <= 1e-12 * scale] = 0.0  # replicates averaged in another order
    clusters = Clusters.of(sign * differences, labels)
    unit = _two_valued_unit(first, second, bounds)
    wins, losses = int(np.sum(sign * differences > 0)), int(np.sum(sign * differences < 0))
    worst = _worst_score(sign * first, sign * second, bounds if unit is None else bounds or (0.0, 1.0), sign)
    largest_loss = float(np.max(sign * first)) - worst
    unseen = LargestLosses(float(np.mean(sign * first)) - worst, float(np.mean(sign * second)) - worst)
    if unit is None:
        test = sign_flip_test(clusters, alpha=alpha, seed=seed).with_unseen_rows(clusters, unseen, alpha=alpha)
    elif first.shape[1] == second.shape[1] == 1 and len(clusters) == len(first):
        test = _scaled(mcnemar_test(wins, losses, len(first), alpha=alpha), unit)
    else:
        test = two_valued_test(clusters, unit, alpha=alpha, seed=seed).with_unseen_rows(clusters, unseen, alpha=alpha)
    return _judged(
        test,
        gain=clusters.mean,
        detectable=_detectable(sign * first, sign * second, labels, unit, worst, alpha, seed),
        margin_p_value=margin_p_value(clusters, margin, largest_loss=largest_loss, seed=seed) if margin else None,
        means=(float(first.mean()), float(second.mean())),
        counts=(wins, len(first) - wins - losses, losses),
        rows=len(first),
        prompts=len(clusters),
        replicates=(first.shape[1], second.shape[1]),
        widest=None if bounds is None else bounds[1] - bounds[0],
        direction=direction,
        margin=margin or None,
        alpha=alpha,
        look=look,
        optimism=optimism,
        unscored=unscored,
        differences=tuple(float(d) for d in differences),
    )


def compare_corpus(
    score: CorpusScore,
    baseline: Sequence[Sequence[Any]],
    best: Sequence[Sequence[Any]],
    *,
    references: Sequence[Any],
    rows: Sequence[Mapping[str, Any]] | None = None,
    prompts: Sequence[Hashable] | None = None,
    bounds: Bounds | None = None,
    direction: Direction = "maximize",
    seed: int = 0,
    margin: float | None = None,
    alpha: float = 0.05,
    look: int = 1,
    optimism: Optimism | None = None,
    unscored: int = 0,
    permutations: int = 999,
    resamples: int = 300,
) -> Verdict:
    """Compare two configurations under a metric that scores all rows at once (BLEU …).

    The decision is an approximate randomisation test: baseline and winner swap their completions on random prompts
    and the metric is computed again. The interval comes from resampling prompts and computing the metric again: t
    quantiles around the difference with the bootstrap's standard error. Stringer's bound counts where it is more
    cautious, on what each prompt adds to the score (the jackknife's).

    Args:
        score: The metric; called 2 · replicates · (permutations + resamples + prompts, 200 at most) times. Not a
            number means that it cannot be computed on the rows drawn (see `swap_test`).
        baseline: Completions [rows][replicates], in the form that ``score`` takes.
        best: The winner's completions on the same rows.
        references: One a row.
        rows: The rows' columns, handed to the metric.
        prompts: As for `compare`, and so are the arguments not named here.
        permutations: Swaps drawn.
        resamples: Bootstrap samples drawn.
    """
    if not len(baseline) == len(best) == len(references) > 0:
        raise InputError(f"{len(baseline)} and {len(best)} completions for {len(references)} references do not match")
    columns = rows if rows is not None else [{} for _ in references]
    labels = _labels(prompts, len(references))
    count, replicates = int(labels.max()) + 1, max(len(baseline[0]), len(best[0]))
    sign = -1.0 if direction == "minimize" else 1.0
    pairs = (baseline, best)

    def corpus_score(picked: Sequence[int], who: NDArray[np.int64]) -> float:
        """The mean over replicates; ``who[row]`` says whose completion is taken."""
        scores = []
        for replicate in range(replicates):
            found = [pairs[who[row]][row][replicate % len(pairs[who[row]][row])] for row in picked]
            scores.append(score(found, [references[r] for r in picked], [columns[r] for r in picked]))
        return math.fsum(scores) / replicates

    everything = range(len(references))
    means = (
        corpus_score(everything, np.zeros(len(references), dtype=np.int64)),
        corpus_score(everything, np.ones(len(references), dtype=np.int64)),
    )
    gain = sign * (means[1] - means[0])
    test, error = swap_test(
        lambda picked, who: sign * (corpus_score(picked, who) - corpus_score(picked, 1 - who)),
        labels,
        alpha=alpha,
        seed=seed,
        permutations=permutations,
        resamples=resamples,
    )
    sides = [
        sign * influences(partial(corpus_score, who=np.full(len(references), who)), labels, most_groups=_MOST_GROUPS)
        for who in (0, 1)
    ]
    unseen = _unseen_corpus_rows(sides[0], sides[1], bounds, sign)
    if unseen is not None:
        test = test.with_unseen_rows(*unseen, alpha=alpha)
    return _judged(
        test,
        gain=gain,
        detectable=_detectable_corpus(error, count, alpha),
        margin_p_value=_corpus_margin_p_value(gain, margin, error, count, unseen) if margin else None,
        means=means,
        counts=None,
        rows=len(references),
        prompts=count,
        replicates=(len(baseline[0]), len(best[0])),
        widest=None if bounds is None else bounds[1] - bounds[0],
        direction=direction,
        margin=margin or None,
        alpha=alpha,
        look=look,
        optimism=optimism,
        unscored=unscored,
        differences=(),
    )


def _unseen_corpus_rows(
    baseline: Floats, best: Floats, bounds: Bounds | None, sign: float
) -> tuple[Clusters, LargestLosses] | None:
    """What each prompt adds to the gain, and the most that one more could cost; None where that is not known.

    Args:
        baseline: What each prompt adds to the baseline's score, gains positive, [prompts]; see `influences`.
        best: To the winner's.
        bounds: Of the metric.
        sign: -1 where a lower score is better.
    """
    gains = best - baseline
    if not np.all(np.isfinite(gains)):
        return None
    worst = _worst_score(baseline, best, bounds, sign)
    losses = LargestLosses(max(0.0, float(baseline.mean()) - worst), max(0.0, float(best.mean()) - worst))
    return Clusters(gains, np.ones(len(gains))), losses


def _corpus_margin_p_value(
    gain: float, margin: float, error: float, prompts: int, unseen: tuple[Clusters, LargestLosses] | None
) -> float:
    """Return the one-sided p-value of "the loss is the margin or more"."""
    if unseen is None:
        return 1.0
    clusters, losses = unseen
    p_value = mean_above_p_value(clusters.units, largest_loss=losses.winner, threshold=-margin)
    if error > 0:  # Nothing varies where the completions are the same: then only what was not seen counts.
        return max(p_value, float(stats.t.sf((gain + margin) / error, prompts - 1)))
    return p_value if gain > -margin else 1.0


def no_holdout_verdict(*, rows: int, direction: Direction = "maximize", fewest: int = 20) -> Verdict:
    """Return the verdict of a study that could hold no rows out."""
    why = (
        f"{rows} rows are too few to hold some out (from {fewest} on they are)"
        if rows < fewest
        else "no rows were held out"
    )
    sentence = (
        f"No evidence: {why}. The scores of the search are all there is, and they flatter the winner. "
        "The baseline stays recommended."
    )
    return Verdict(answer="no evidence", sentence=sentence, direction=direction)


def unscored_verdict(*, rows: int, direction: Direction = "maximize") -> Verdict:
    """Return the verdict of a look at so many held-out rows of which none could be scored."""
    sentence = (
        f"No evidence: none of the {rows} held-out rows could be scored for both the baseline and the winner. "
        "Nothing was compared, and the baseline stays recommended."
    )
    return Verdict(answer="no evidence", sentence=sentence, direction=direction, unscored=rows)


def baseline_won(*, direction: Direction = "maximize", look: int = 1) -> Verdict:
    """Return the verdict of a search that the baseline won: the holdout stays unseen."""
    sentence = "No evidence: the baseline itself won the search, so the holdout was not looked at."
    return Verdict(answer="no evidence", sentence=sentence, direction=direction, look=look)


@dataclass(frozen=True, slots=True)
class Optimism:
    """How much larger the winner's lead was on the search rows than on the holdout, with its interval."""

    gap: float
    low: float
    high: float


def optimism(searched: ArrayLike, held_out: ArrayLike, *, alpha: float = 0.05) -> Optimism | None:
    """Compare the winner's lead over the baseline on the search rows with that on the holdout.

    Both settings are scored on the same rows, so that hard or easy rows change both. The interval is Welch's, for
    two independent samples of rows. None where a sample has fewer than two prompts.

    Args:
        searched: The winner's gain over the baseline on each search prompt, [prompts].
        held_out: The same on each held-out prompt, [prompts].
        alpha: 1 minus the confidence.
    """
    first, second = (np.asarray(gains, dtype=np.float64) for gains in (searched, held_out))
    if min(len(first), len(second)) < 2:
        return None
    gap = float(first.mean() - second.mean())
    if first.std() == second.std() == 0:
        return None
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(1 - alpha)
    return Optimism(gap, float(interval.low), float(interval.high))


def _judged(
    test: PairedTest,
    *,
    gain: float,
    detectable: float | None,
    margin_p_value: float | None,
    means: tuple[float, float],
    counts: tuple[int, int, int] | None,
    rows: int,
    prompts: int,
    replicates: tuple[int, int],
    widest: float | None,
    direction: Direction,
    margin: float | None,
    alpha: float,
    look: int,
    optimism: Optimism | None,
    unscored: int,
    differences: tuple[float, ...],
) -> Verdict:
    """Turn a test on gains (positive is good) into the answer and back into the metric's own direction."""
    limit = math.inf if widest is None else widest
    low, high = max(test.low, -limit), min(test.high, limit)
    answer: Answer = "no evidence"
    if test.p_value <= alpha and gain > 0:
        answer = "better"
    elif margin is not None and margin_p_value is not None and low > -margin and margin_p_value <= alpha / 2:
        answer = "not worse than margin"
    elif test.p_value <= alpha and gain < 0:
        answer = "worse"
    if direction == "minimize":
        low, high = 0.0 - high, 0.0 - low  # never -0.0
    verdict = Verdict(
        answer=answer,
        sentence="",
        direction=direction,
        baseline_mean=means[0],
        winner_mean=means[1],
        difference=0.0 - gain if direction == "minimize" else gain,
        low=_finite(low),
        high=_finite(high),
        confidence=1 - alpha,
        p_value=test.p_value,
        margin_p_value=margin_p_value,
        detectable=detectable,
        wins=counts and counts[0],
        ties=counts and counts[1],
        losses=counts and counts[2],
        rows=rows,
        prompts=prompts,
        replicates=max(replicates),
        baseline_replicates=replicates[0],
        winner_replicates=replicates[1],
        margin=margin,
        look=look,
        optimism=None if optimism is None else optimism.gap,
        optimism_low=None if optimism is None else optimism.low,
        optimism_high=None if optimism is None else optimism.high,
        unscored=unscored,
        method=test.method,
        differences=differences,
    )
    return _in_words(verdict)


def _in_words(verdict: Verdict) -> Verdict:
    """Return it with the sentence that its numbers make; where nothing was compared the sentence is the reason."""
    if verdict.difference is None:
        return verdict
    return replace(verdict, sentence=f"{verdict.headline} {verdict.notes}")


def _detectable(
    first: Floats, second: Floats, labels: NDArray[np.int64], unit: float | None, worst: float, alpha: float, seed: int
) -> float | None:
    """The true difference that a look like this one finds in 4 of 5 cases; scores with gains positive."""
    clusters = int(labels.max()) + 1
    if unit is None:
        weight = clusters / len(labels)
        ours, theirs = (np.asarray(weight * np.bincount(labels, side.mean(axis=1)), float) for side in (first, second))
        return detectable_gain(ours, theirs, units=clusters, worst=worst, alpha=alpha, seed=seed)
    answers = [(side - worst) / unit for side in (first, second)]
    if first.shape[1] == second.shape[1] == 1 and clusters == len(labels):
        return _scaled_gain(_detectable_answers(answers[0][:, 0], answers[1][:, 0], alpha), unit)
    if clusters < len(labels):
        answers = [(np.bincount(labels, side.mean(axis=1)) / np.bincount(labels))[:, None] for side in answers]
    gain = detectable_replicated_share(answers[0], answers[1], units=clusters, alpha=alpha, seed=seed)
    return _scaled_gain(gain, unit)


def _detectable_answers(first: Floats, second: Floats, alpha: float) -> float | None:
    rows, right = len(first), float((first.mean() + second.mean()) / 2)
    discordant = (float(np.sum(first != second)) + 0.5) / (rows + 1)
    share = min(max((right * rows + 0.5) / (rows + 1), discordant / 2), 1 - discordant / 2)
    room = min(room_above(right, rows), 1 - share)
    return detectable_share(discordant, share, units=rows, room=room, alpha=alpha)


def _scaled_gain(gain: float | None, unit: float) -> float | None:
    return None if gain is None else unit * gain


def _detectable_corpus(standard_error: float, units: int, alpha: float) -> float | None:
    """By the normal formula: a metric of all rows at once cannot be asked hundreds of times more."""
    if units < FEWEST_CLUSTERS or not math.isfinite(standard_error) or standard_error == 0:
        return None
    return float(standard_error * (stats.t.isf(alpha / 2, units - 1) + stats.t.isf(1 - POWER, units - 1)))


def _scaled(test: PairedTest, unit: float) -> PairedTest:
    return replace(test, low=unit * test.low, high=unit * test.high)


def _two_valued_unit(first: Floats, second: Floats, bounds: Bounds | None) -> float | None:
    """Return the distance of the two values where every single score is one of the ends of the bounds."""
    low, high = bounds or (0.0, 1.0)
    both = np.concatenate([first.ravel(), second.ravel()])
    return high - low if bool(np.all((both == low) | (both == high))) else None


def _worst_score(first: Floats, second: Floats, bounds: Bounds | None, sign: float) -> float:
    """The worst possible score, with gains positive; without bounds the worst one seen.

    Minus infinity where there are no bounds and all scores are alike: they do not show how low one can be.
    """
    if bounds is not None:
        return sign * bounds[0 if sign > 0 else 1]
    worst = float(min(first.min(), second.min()))
    return worst if max(first.max(), second.max()) > worst else -math.inf


def _score_table(scores: ArrayLike, name: str) -> Floats:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.size == 0 or not np.all(np.isfinite(table)):
        raise InputError(f"{name}: scores must be finite numbers, [rows] or [rows, replicates]; got {table.shape}")
    return table


def _labels(prompts: Sequence[Hashable] | None, rows: int) -> NDArray[np.int64]:
    if prompts is None:
        return np.arange(rows)
    if len(prompts) != rows:
        raise InputError(f"{len(prompts)} prompt labels for {rows} rows; give one a row")
    return cluster_numbers(prompts)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""The verdict: does the winner of a search beat the baseline on rows that no trial saw?

A test of a comparison goes in, the answer comes out, in words and numbers; where nothing can be said, that is what is
said. Nothing is decoded or tested here and no study is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from llmsearch_optuna.stats import verdict_text
from llmsearch_optuna.stats.conditions import ConditionOutcome
from llmsearch_optuna.stats.crossed import HalfOutcome
from llmsearch_optuna.stats.holm import BaselineComparison
from llmsearch_optuna.stats.optimism import Optimism
from llmsearch_optuna.stats.paired_tests import PairedTest
from llmsearch_optuna.stats.verdict_numbers import Answer, VerdictNumbers
from llmsearch_optuna.types import Direction


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
        found["differences"] = tuple(values.get("differences", ()))
        found["conditions"] = tuple(ConditionOutcome(**condition) for condition in values.get("conditions", ()))
        found["baselines"] = tuple(BaselineComparison(**other) for other in values.get("baselines", ()))
        found["halves"] = tuple(HalfOutcome(**half) for half in values.get("halves", ()))
        return in_words(cls(**found))

    def with_baselines(self, baselines: tuple[BaselineComparison, ...]) -> Verdict:
        """Return it with the winner's comparisons with all baselines."""
        return in_words(replace(self, baselines=baselines)) if baselines else self

    def with_halves(self, halves: tuple[HalfOutcome, ...]) -> Verdict:
        """Return it with what the winners of two halves did that judged each other."""
        return in_words(replace(self, halves=halves))

    def with_conditions(self, conditions: tuple[ConditionOutcome, ...]) -> Verdict:
        """Return it with how the study's conditions stand on the held-out rows."""
        return in_words(replace(self, conditions=conditions)) if conditions else self


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


def infeasible_verdict(broken: Sequence[str], *, trial: int, direction: Direction = "maximize") -> Verdict:
    """Return the verdict of a study without a feasible trial: the holdout stays unseen.

    Args:
        broken: What the nearest trial breaks, in words.
        trial: Its number.
        direction: Of the metric.
    """
    sentence = (
        "No evidence: no trial keeps all conditions by the bound of its rows, so the holdout was not looked at. "
        f"The nearest is trial {trial}: {'; '.join(broken)}. The baseline stays recommended."
    )
    return Verdict(answer="no evidence", sentence=sentence, direction=direction)


def unscored_verdict(*, rows: int, direction: Direction = "maximize") -> Verdict:
    """Return the verdict of a look at so many held-out rows of which none could be scored."""
    sentence = (
        f"No evidence: none of the {rows} held-out rows could be scored for both the baseline and the winner. "
        "Nothing was compared, and the baseline stays recommended."
    )
    return Verdict(answer="no evidence", sentence=sentence, direction=direction, unscored=rows)


def baseline_won_both(*, direction: Direction = "maximize") -> Verdict:
    """Return the verdict of two halves that the baseline won both: there is nothing to compare it with."""
    sentence = "No evidence: the baseline itself won the search on both halves, so there was nothing to judge."
    return Verdict(answer="no evidence", sentence=sentence, direction=direction)


def baseline_won(*, direction: Direction = "maximize", look: int = 1) -> Verdict:
    """Return the verdict of a search that the baseline won: the holdout stays unseen."""
    sentence = "No evidence: the baseline itself won the search, so the holdout was not looked at."
    return Verdict(answer="no evidence", sentence=sentence, direction=direction, look=look)


def judged(
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
    return in_words(verdict)


def in_words(verdict: Verdict) -> Verdict:
    """Return it with the sentence that its numbers make; where nothing was compared the sentence is the reason."""
    if verdict.difference is None:
        return verdict
    return replace(verdict, sentence=f"{verdict.headline} {verdict.notes}")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""A comparison that is made in stages: it ends with evidence, where hope is gone, or when all planned rows are in.

After each stage all rows so far are compared by the same tests as rows that are looked at once, at a level that keeps
the error of all stages together (see `alpha_spending`). Numbers in, numbers out; nothing is decoded here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from scipy import stats

from llmsearch_optuna.stats.alpha_spending import levels, repeated_p_value
from llmsearch_optuna.stats.detectable import PlannedLook
from llmsearch_optuna.stats.verdict import Verdict, in_words
from llmsearch_optuna.stats.verdict_numbers import StopReason

MOST_STAGES = 4
FEWEST_PROMPTS_A_STAGE = 40
"""Four stages of equal size take half of the rows where nothing is to be found, and cost 3 of 80 finds."""

HOPELESS = 0.05
"""The chance of evidence at the end below which a comparison ends early. 0.1 would cost 5 of 80 finds, not 3."""


@dataclass(frozen=True)
class StageDesign:
    """After how many prompts the comparison is looked at.

    Attributes:
        prompts: Different prompts at the end of each stage, all stages before included.
        alpha: The two-sided error of all stages together.
    """

    prompts: tuple[int, ...]
    alpha: float = 0.05

    @classmethod
    def of(cls, prompts: int, alpha: float = 0.05, *, most: int = MOST_STAGES) -> StageDesign:
        """Return stages of equal size for so many prompts: of 40 prompts at least, and always one.

        Args:
            prompts: Of all stages.
            alpha: The two-sided error of all stages together.
            most: How many stages at most.
        """
        count = max(1, min(most, prompts // FEWEST_PROMPTS_A_STAGE))
        return cls(tuple(math.ceil(prompts * (stage + 1) / count) for stage in range(count)), alpha)

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def fractions(self) -> tuple[float, ...]:
        """Of the planned prompts, at the end of each stage."""
        return tuple(count / self.prompts[-1] for count in self.prompts)

    @property
    def levels(self) -> tuple[float, ...]:
        """At which each stage tests, two-sided."""
        return levels(self.fractions, self.alpha)

    @property
    def planned(self) -> PlannedLook:
        """The whole look, of which is said what it finds."""
        return PlannedLook(self.prompts[-1], self.levels[-1])

    def rows(self, labels: Sequence[int]) -> tuple[int, ...]:
        """Return how many rows each stage ends with.

        Args:
            labels: The number of each row's prompt, in the order in which they are decoded: from 0, rising, the rows
                of a prompt one after another.
        """
        return tuple(sum(label < count for label in labels) for count in self.prompts)


def judge_stage(compare: Callable[[float], Verdict], design: StageDesign, stage: int) -> Verdict:
    """Compare what has been decoded, and say whether the comparison ends here.

    The interval is Jennison and Turnbull's repeated confidence interval: that of the stage's own level, which covers
    at all stages together, whatever made one stop. So is the p-value. Giving up is not binding: the levels do not
    count on it, so the error holds where it is not followed, too.

    Args:
        compare: Makes the verdict at a two-sided level, from all rows until this stage.
        design: The stages.
        stage: Which one, from 0.

    Returns:
        The verdict; `stopped` is None where the next stage is to follow.
    """
    level = design.levels[stage]
    found = compare(level)
    if found.difference is None or found.p_value is None:
        return found
    numbers = replace(
        found,
        confidence=1 - design.alpha,
        p_value=repeated_p_value(found.p_value, design.fractions, stage),
        margin_p_value=_repeated_one_sided(found.margin_p_value, design, stage),
        stage=stage + 1,
        stages=len(design),
        planned_prompts=design.prompts[-1],
        stopped=_stop_reason(found, design, stage),
    )
    return in_words(numbers)


def chance_of_evidence(standard_score: float, design: StageDesign, stage: int) -> float:
    """Return the predictive power: how likely the last stage rejects upwards, given what is seen (flat prior).

    Spiegelhalter, Freedman and Blackburn 1986, "Monitoring clinical trials: conditional or predictive power?"

    Args:
        standard_score: The gain in standard errors so far.
        design: The stages.
        stage: Which one has ended, from 0.
    """
    fraction = design.fractions[stage]
    if fraction >= 1:
        return float(standard_score >= stats.norm.isf(design.levels[-1] / 2))
    limit = float(stats.norm.isf(design.levels[-1] / 2))
    return float(stats.norm.sf((limit * math.sqrt(fraction) - standard_score) / math.sqrt(1 - fraction)))


def _stop_reason(found: Verdict, design: StageDesign, stage: int) -> StopReason | None:
    if found.answer != "no evidence":
        return "evidence"
    if stage == len(design) - 1:
        return "all rows"
    return "futility" if chance_of_evidence(_standard_score(found), design, stage) < HOPELESS else None


def _standard_score(found: Verdict) -> float:
    """How many standard errors the gain lies above zero by the test's own p-value; with a margin, above its loss."""
    assert found.difference is not None
    assert found.p_value is not None
    gain = -found.difference if found.direction == "minimize" else found.difference
    score = math.copysign(float(stats.norm.isf(found.p_value / 2)), gain) if gain else 0.0
    if found.margin_p_value is None:
        return score
    return max(score, float(stats.norm.isf(min(found.margin_p_value, 1 - 1e-9))))


def _repeated_one_sided(p_value: float | None, design: StageDesign, stage: int) -> float | None:
    """Half of the two-sided one; as it is above one half, where it is evidence of nothing."""
    if p_value is None or p_value >= 0.5:
        return p_value
    return repeated_p_value(2 * p_value, design.fractions, stage) / 2

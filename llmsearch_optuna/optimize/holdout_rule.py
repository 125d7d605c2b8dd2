"""What keeps rows from the search: a share that is held out, or two halves that judge each other; and why this one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import optuna

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.constraints import Constraints
from llmsearch_optuna.optimize.objectives import Objectives
from llmsearch_optuna.options import PlanOptions
from llmsearch_optuna.stats.crossed import FEWEST_PROMPTS, MOST_PROMPTS
from llmsearch_optuna.task.split import Split, split_rows, split_with_reserve

AUTO: Literal["auto"] = "auto"
CROSS: Literal["cross"] = "cross"

SHARE = 0.3
"""Of the distinct prompts, held out by default where halves do not judge each other."""

FIRST_WITH_HALVES = 4
"""The algorithm since which halves may be taken where the user leaves it open; see `prepare.ALGORITHM`."""


@dataclass(frozen=True)
class HoldoutRule:
    """How the rows are split.

    Attributes:
        kept: The share of the distinct prompts that is held out, or ``"cross"``: halves judge each other.
        why: Why this one, in words for people; empty where the user said it or nothing is to be said.
    """

    kept: float | Literal["cross"] = SHARE
    why: str = ""

    @classmethod
    def of(
        cls,
        options: PlanOptions,
        distinct_ids: Sequence[int],
        objectives: Objectives,
        constraints: Constraints,
        algorithm: int,
    ) -> HoldoutRule:
        """Settle what the user asks for, or leaves open.

        Args:
            options: Those of the study.
            distinct_ids: One id a row; rows with the same prompt have the same id.
            objectives: What is optimized.
            constraints: What the winner has to keep.
            algorithm: By which rules the study goes; see `prepare.ALGORITHM`.

        Raises:
            InputError: Halves are asked for, and do not go together with something else; says what.
        """
        asked, prompts = options["holdout"], len(set(distinct_ids))
        refused = list(_refused(options, objectives, constraints))
        if asked == CROSS:
            if prompts < FEWEST_PROMPTS:
                raise InputError(
                    f'holdout="cross" splits {prompts} different prompts into two halves; {FEWEST_PROMPTS} are the '
                    "least"
                )
            for what in refused:
                raise InputError(f'holdout="cross" does not go together with {what}; give a share, such as holdout=0.3')
            return cls(CROSS)
        if not isinstance(asked, str):
            return cls(asked)
        if algorithm < FIRST_WITH_HALVES or not FEWEST_PROMPTS <= prompts <= MOST_PROMPTS:
            return cls()
        if split_of(cls(), options, distinct_ids, algorithm).is_reserve:
            return cls()
        if refused:
            return cls(SHARE, f"Two halves that judge each other find more, but do not go together with {refused[0]}.")
        return cls(
            CROSS,
            f"That is the default for {FEWEST_PROMPTS} to {MOST_PROMPTS} different prompts, since it finds more than "
            "rows that are held out; holdout=0.3 holds out 30 %.",
        )


def split_of(rule: HoldoutRule, options: PlanOptions, distinct_ids: Sequence[int], algorithm: int) -> Split:
    """Return which rows are searched and which are held out.

    Args:
        rule: See `HoldoutRule`.
        options: Those of the study.
        distinct_ids: One id a row; rows with the same prompt have the same id.
        algorithm: By which rules the study goes; see `prepare.ALGORITHM`.
    """
    share = 0.0 if rule.kept == CROSS else rule.kept
    if rule.kept == CROSS or algorithm < 3:
        return Split(*split_rows(distinct_ids, share, options["seed"]))
    return split_with_reserve(
        distinct_ids,
        share,
        options["seed"],
        search_rows=options["search_rows"],
        holdout_rows=options["holdout_rows"],
    )


def _refused(options: PlanOptions, objectives: Objectives, constraints: Constraints) -> Iterator[str]:
    """What of a study has not been shown to work where halves judge each other, in words."""
    sampler, pruner = options["sampler"], options["pruner"]
    if options["margin"]:
        yield f"margin={options['margin']}: it asks whether one setting is as good, and halves judge two together"
    if not isinstance(sampler, str):
        yield f"sampler={type(sampler).__name__}: it would see the trials of both halves"
    if isinstance(pruner, optuna.pruners.BasePruner):
        yield f"pruner={type(pruner).__name__}: it would see the trials of both halves"
    if not objectives.is_single:
        yield "objectives= with more than the score"
    if constraints:
        yield "constraints="
    if options["folds"] is not None:
        yield f"folds={options['folds']}"

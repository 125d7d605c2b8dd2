"""How a reserve is decoded: how many rows, how often each, and after how many of them the comparison may end.

Planned from the search rows alone, before the first row of the reserve is decoded, and stored with the winner: a look
that was interrupted goes on with the same plan.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmsearch_optuna.stats.group_sequential import FEWEST_PROMPTS_A_STAGE, MOST_STAGES, StageDesign
from llmsearch_optuna.stats.paired_tests import cluster_numbers
from llmsearch_optuna.stats.replicate_allocation import DifferenceVariance, allocate


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The stages of one look at a reserve.

    Attributes:
        prompts: Different prompts at the end of each stage.
        rows: Rows at the end of each stage.
        replicates: How often a row is decoded where something is sampled.
    """

    prompts: tuple[int, ...]
    rows: tuple[int, ...]
    replicates: int

    @property
    def design(self) -> StageDesign:
        """After how many prompts it may end, and at which levels."""
        return StageDesign(self.prompts)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StagePlan:
        """Read what to_json gave."""
        return cls(prompts=tuple(values["prompts"]), rows=tuple(values["rows"]), replicates=int(values["replicates"]))

    def stage_of(self, rows_done: int) -> int:
        """Return which stage is under way, from 1.

        Args:
            rows_done: Rows that have been decoded.
        """
        return min(len(self.rows), 1 + sum(rows_done >= end for end in self.rows))


@dataclass(frozen=True)
class TokenCosts:
    """Generated tokens that a row of both settings takes.

    Attributes:
        fixed: Of settings that sample nothing and are decoded once.
        sampled: Of each replicate of the others.
    """

    fixed: float
    sampled: float


def plan_stages(
    prompts: Sequence[Hashable],
    *,
    budget: int,
    max_tokens: int | None,
    most_replicates: int,
    variance: DifferenceVariance | None,
    costs: TokenCosts,
    most_stages: int = MOST_STAGES,
) -> StagePlan:
    """Return the stages with the smallest error that the budget pays for.

    Args:
        prompts: The prompt of each row of the reserve, in the order of decoding.
        budget: Rows of one replicate that may be decoded.
        max_tokens: Generated tokens that may be spent; None for as many as it takes.
        most_replicates: Of a row.
        variance: Of the differences on the search rows; None where it is not known.
        costs: Of a row.
        most_stages: In which they are decoded.
    """
    labels = cluster_numbers(prompts).tolist()
    count = labels[-1] + 1
    rows_a_prompt = len(labels) / count
    tokens = budget * (costs.fixed + costs.sampled) * rows_a_prompt
    is_sampled = costs.sampled > 0
    found = allocate(
        variance,
        rows=count,
        budget=tokens if max_tokens is None else min(tokens, max_tokens),
        most_replicates=most_replicates if is_sampled else 1,
        row_cost=costs.fixed * rows_a_prompt if is_sampled else 0.0,
        replicate_cost=(costs.sampled if is_sampled else costs.fixed) * rows_a_prompt,
        fewest_rows=FEWEST_PROMPTS_A_STAGE,
    )
    design = StageDesign.of(found.rows, most=most_stages)
    return StagePlan(prompts=design.prompts, rows=design.rows(labels), replicates=found.replicates)

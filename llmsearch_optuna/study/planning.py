"""What a study is, before anything is decoded: which rows, in which order, and what the first two trials are.

Everything here follows from the arguments, so a study that is resumed gets the same plan.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna

from llmsearch_optuna.decoding.params import GenerationParams
from llmsearch_optuna.inputs.splits import assign_folds, split_rows
from llmsearch_optuna.ledger import Item
from llmsearch_optuna.objectives import Objectives
from llmsearch_optuna.pruning import PairedPruner
from llmsearch_optuna.rows import Rows
from llmsearch_optuna.space import Space
from llmsearch_optuna.storage import OpenedStudy
from llmsearch_optuna.study.inertness import inert_by_branch, inert_warning
from llmsearch_optuna.study.serving import Served
from llmsearch_optuna.task import PreparedTask

logger = logging.getLogger("llmsearch_optuna.study.planning")


@dataclass(frozen=True)
class Plan:
    """What follows from the arguments alone.

    Attributes:
        task: With its prompts, references and metric.
        rows: The search rows, in the order in which every trial sees them.
        holdout: Row numbers that no trial sees.
        baseline: What trial 0 decodes with.
        greedy: What trial 1 decodes with; None where that is the baseline.
    """

    task: PreparedTask
    rows: Rows
    holdout: tuple[int, ...]
    baseline: GenerationParams
    greedy: GenerationParams | None

    def write(self, opened: OpenedStudy, served: Served, *, n_trials: int, seed: int) -> None:
        """Store what reports want to show, and every row of the task."""
        opened.ledger.write_settings(
            {
                "model": served.name,
                "data": self.task.name,
                "metric": self.task.metric.name,
                "metric_bounds": self.task.metric.bounds,
                "direction": self.task.direction,
                "objectives": self.rows.objectives.names,
                "n_trials": n_trials,
                "seed": seed,
                "rows": {"search": len(self.rows.order), "holdout": len(self.holdout)},
                "replicates": self.rows.replicates,
                "baseline": self.baseline.canonical,
                "model_defaults": readable(served.defaults),
            }
        )
        parts: list[tuple[Literal["search", "holdout"], Sequence[int]]] = [
            ("search", self.rows.order),
            ("holdout", self.holdout),
        ]
        opened.ledger.write_items(
            Item(
                row=row,
                part=part,
                position=position,
                prompt=self.task.prompts[row],
                reference=self.task.references[row],
                columns=self.task.rows[row],
                occurrence=self.task.occurrences[row],
            )
            for part, order in parts
            for position, row in enumerate(order)
        )


def make_plan(
    task: PreparedTask,
    served: Served,
    space: Space,
    baseline: Mapping[str, Any] | None,
    holdout: float,
    seed: int,
    replicates: int,
    folds: int | None,
    pruner: PairedPruner | optuna.pruners.BasePruner | None,
    objectives: Sequence[str] = ("score",),
) -> Plan:
    """Split the rows and settle the first two trials.

    Raises:
        InputError: max_new_tokens is missing, a prompt is too long for the model, or a share is out of range.
    """
    values = space.baseline_values(served.defaults, baseline)
    first = GenerationParams.of(values, served.defaults)
    useless = {
        branch and f"branch {branch}": names for branch, names in inert_by_branch(space, served.defaults).items()
    }
    if warning := inert_warning(
        {**useless, "the baseline": [name for name in first.inert if name in (baseline or {})]}
    ):
        logger.warning("%s", warning)
    # Only how tokens are picked changes; a penalty or a stop string of the baseline stays.
    greedy = GenerationParams.of({**values, "do_sample": False, "num_beams": 1}, served.defaults)
    task.check_lengths(served.tokenizer, served.positions, first.max_new_tokens)
    order, locked = split_rows(task.distinct, holdout, seed)
    rows = Rows(
        order=order,
        prompts=task.prompts,
        references=task.references,
        columns=task.rows,
        occurrences=task.occurrences,
        add_special_tokens=task.add_special_tokens,
        metric=task.metric,
        objectives=Objectives.of(objectives, task.direction),
        encode_args=task.encode_args,
        folds=() if folds is None else assign_folds([task.distinct[row] for row in order], folds, seed),
        replicates=replicates,
        **({"first_look": pruner.min_rows, "look_every": pruner.step} if isinstance(pruner, PairedPruner) else {}),
    )
    if holdout and not locked:
        logger.warning("%d rows are too few to lock some away; there will be no verdict", len(task))
    return Plan(task, rows, locked, first, None if greedy == first else greedy)


def readable(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are set."""
    return {name: value for name, value in values.items() if value is not None}

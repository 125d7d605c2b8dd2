"""Two halves of the rows that are searched apart, so that each can judge the other's winner.

The first trials (baseline, greedy, what is tried first) are run on all rows; every other trial belongs to one half in
turn, decodes that half's rows only, and what it tries follows from that half's scores alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from optuna.trial import FrozenTrial, TrialState, create_trial

from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.optimize.set_aside import stored_set_aside
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.storage.study import OpenedStudy
from llmsearch_optuna.storage.trials import score_of
from llmsearch_optuna.task.split import assign_folds


@dataclass(frozen=True)
class Halves:
    """Which rows are in which half, and which trials are run on which.

    Attributes:
        parts: The search rows of each half, in the study's permutation.
        shared: So many first trials are run on all rows.
    """

    parts: tuple[SearchRows, SearchRows]
    shared: int

    @classmethod
    def of(cls, rows: SearchRows, *, shared: int, seed: int) -> Halves:
        """Split all rows by distinct prompt.

        Args:
            rows: All rows.
            shared: So many first trials are run on all of them.
            seed: Which split.
        """
        half_of = assign_folds([rows.task.distinct[row] for row in rows.order], 2, seed)
        first, second = (
            replace(rows, order=tuple(row for row, half in zip(rows.order, half_of, strict=True) if half == which))
            for which in (0, 1)
        )
        return cls((first, second), shared)

    def of_trial(self, number: int) -> int | None:
        """The half that a trial is run on; None where it is run on all rows."""
        return None if number < self.shared else (number - self.shared) % 2

    def shows(self, number: int, half: int) -> bool:
        """Whether trials of this half may see what this trial scored."""
        return self.of_trial(number) in (None, half)

    def without(self, rows: Collection[int]) -> Halves:
        """The same halves without some rows."""
        first, second = self.parts
        return replace(self, parts=(first.without(rows), second.without(rows)))


@dataclass
class HalfScores:
    """What a half's trials may know: its own trials, and what trials of all rows scored on its rows.

    Attributes:
        opened: The study.
        halves: Its halves.
    """

    opened: OpenedStudy
    halves: Halves
    _running: dict[tuple[int, int], tuple[float, ...]] = field(default_factory=dict)

    def value(self, trial: FrozenTrial, number: int, half: int) -> float | None:
        """The score of a complete trial on the rows of a half; None where it has none there.

        Args:
            trial: As Optuna has it.
            number: Its number.
            half: 0 or 1.
        """
        if trial.state is not TrialState.COMPLETE or not self.halves.shows(number, half):
            return None
        if self.halves.of_trial(number) == half:
            return score_of(trial)
        running = self.running(number, half)
        return running[-1] if running else None

    def running(self, number: int, half: int) -> tuple[float, ...]:
        """What a complete trial of all rows had scored at each pruning step of a half, as a trial of it reports."""
        if (number, half) not in self._running:
            self._running[number, half] = self._running_of(self.opened.records.rows("search", number), half)
        return self._running[number, half]

    def _running_of(self, records: Sequence[RowRecord], half: int) -> tuple[float, ...]:
        rows, set_aside = self.halves.parts[half], stored_set_aside(self.opened)
        found = []
        for seen in rows.steps:
            counted = set(rows.order[:seen]) - set(set_aside)
            if not counted:
                continue
            try:
                found.append(rows.value([record for record in records if record.row in counted]))
            except MetricError:
                return ()
        return tuple(found)

    def values(self, trials: Sequence[FrozenTrial], half: int) -> dict[int, float]:
        """Trial number -> score on the rows of a half, of all complete trials that it may see."""
        found = {number: self.value(trial, number, half) for number, trial in enumerate(trials)}
        return {number: value for number, value in found.items() if value is not None}

    def shown(self, trials: Mapping[int, FrozenTrial], half: int) -> list[FrozenTrial]:
        """These trials as a half's sampler sees them: without those of the other half.

        Args:
            trials: Number -> trial, see `visible`.
            half: 0 or 1.
        """
        return [
            self._as_shown(trial, number, half) for number, trial in trials.items() if self.halves.shows(number, half)
        ]

    def _as_shown(self, trial: FrozenTrial, number: int, half: int) -> FrozenTrial:
        if self.halves.of_trial(number) == half or trial.state is not TrialState.COMPLETE:
            return trial
        value = self.value(trial, number, half)
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        shown = create_trial(
            state=state, value=value, params=dict(trial.params), distributions=dict(trial.distributions)
        )
        shown.number = trial.number
        return shown

"""What the engine has learned about the device's memory, kept with the study for the processes that come after.

Sizes of batches decide how fast rows come, never which tokens, so they are no part of what a study is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmsearch_optuna import progress
from llmsearch_optuna.database.fingerprints import digest
from llmsearch_optuna.ledger import Ledger
from llmsearch_optuna.study.serving import Served


@dataclass
class BatchSizeKeeper:
    """Passes events on; starts the engine from the batch sizes that fitted before, and stores what it learns.

    Attributes:
        observer: Is told everything.
        ledger: Where the sizes are kept.
        served: The engine; one that does not learn batch sizes is left alone.
    """

    observer: progress.Observer
    ledger: Ledger
    served: Served
    _kept: dict[tuple[int, int], int] = field(default_factory=dict)

    def on(self, event: progress.Event) -> None:
        """Pass the event on."""
        self.observer.on(event)
        if not hasattr(self._engine, "batch_sizes"):
            return
        if isinstance(event, progress.StudyStarted):
            self._kept = self.ledger.batch_sizes(*self._place)
            self._engine.start_from(self._kept)
        elif isinstance(event, progress.TrialEnded | progress.StudyEnded):
            self._keep(dict(self._engine.batch_sizes))

    def _keep(self, learned: dict[tuple[int, int], int]) -> None:
        if learned == self._kept:
            return
        self.ledger.remember_batch_sizes(*self._place, learned)
        self._kept = learned

    @property
    def _engine(self) -> Any:
        return self.served.engine

    @property
    def _place(self) -> tuple[str, str]:
        return self._engine.device_name, digest(dict(self.served.description))

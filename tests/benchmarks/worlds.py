"""Synthetic models: a score is a pure function of the world, the configuration, the row and the replicate.

A row's score has a part of the row (easy or hard for everybody), a part of the configuration (its true worth), a part
of the two together (this row happens to suit it) and a part of chance in decoding. What is true is known exactly, so
what a search claims can be counted right or wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llmsearch_optuna.engine.request import Completion, Finished, Request

Floats = NDArray[np.float64]
Shape = Literal["continuous", "0/1", "skewed"]

ROW, TOGETHER, CHANCE = 1.5, 0.7, 0.7
"""Standard deviations of the three random parts on the inner scale; a configuration's own noise is 1."""

TOTAL = float(np.sqrt(ROW**2 + TOGETHER**2 + CHANCE**2))
SCALE = 0.08
BEST_AT, REACH = 0.7, 0.35


@dataclass(frozen=True)
class World:
    """One synthetic model with its dataset.

    Attributes:
        shape: ``"continuous"`` (mean 0.3, standard deviation 0.14), ``"0/1"`` (40 % right) or ``"skewed"``
            (log-normal: most scores small, few large).
        rows: Rows of the dataset.
        gain: What the best setting is worth over the baseline, in points of the mean score; 0 makes all settings
            equal. The worth of a setting u in [0, 1] falls from `gain` at 0.7 to -2 · gain far away.
        seed: Which world of this kind.
    """

    shape: Shape
    rows: int
    gain: float = 0.0
    seed: int = 0

    def worth(self, setting: float | None) -> float:
        """The true mean score of a setting over that of the baseline (None), in points."""
        if setting is None or self.gain == 0:
            return 0.0
        return self.gain * max(-2.0, 1.0 - ((setting - BEST_AT) / REACH) ** 2)

    def scores(self, setting: float | None, replicates: int, *, greedy: bool = False) -> Floats:
        """Return the scores [rows, replicates] of a setting (None: the baseline)."""
        name = f"{self.seed}|{'greedy' if greedy else setting!r}"
        own = _generator(name)
        rows = ROW * _generator(f"{self.seed}|rows").normal(size=self.rows)
        together = TOGETHER * own.normal(size=self.rows)
        chance = np.stack(
            [CHANCE * _generator(f"{name}|{r}").normal(size=self.rows) for r in range(replicates)], axis=1
        )
        return self.observed(rows[:, None] + together[:, None] + chance, setting)

    def observed(self, luck: Floats, setting: float | None) -> Floats:
        """Return the scores of a setting, given all random parts on the inner scale."""
        z = luck + self._inner(self.worth(setting) / 100)
        if self.shape == "0/1":
            return (z > _THRESHOLD).astype(np.float64)
        return 0.3 + SCALE * z if self.shape == "continuous" else np.exp(0.7 * z) / 10

    @property
    def bounds(self) -> tuple[float, float] | None:
        """What the metric declares."""
        return (0.0, 1.0) if self.shape == "0/1" else None

    def _inner(self, difference: float) -> float:
        """The shift on the inner scale that changes the mean score by this much."""
        if self.shape == "continuous":
            return difference / SCALE
        if self.shape == "0/1":
            return TOTAL * float(stats.norm.ppf(_RIGHT + difference)) + _THRESHOLD
        mean = float(np.exp((0.7 * TOTAL) ** 2 / 2)) / 10
        return float(np.log1p(difference / mean)) / 0.7


_RIGHT = 0.4
_THRESHOLD = -TOTAL * float(stats.norm.ppf(_RIGHT))


class WorldServer:
    """Serves requests in a world: what a search drives instead of a model."""

    name = "synthetic"

    def __init__(self, world: World, replicates: int) -> None:
        self._world = world
        self._replicates = replicates
        self._queue: list[Request] = []
        self._known: dict[str, Floats] = {}
        self.served: dict[Hashable, int] = {}
        self.default_params: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0}

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests."""
        self._queue.extend(requests)

    def cancel(self, tag: Hashable) -> None:
        """Drop requests."""
        self._queue = [r for r in self._queue if r.tag != tag]

    def poll(self) -> list[Finished]:
        """Answer eight rows."""
        now, self._queue = self._queue[:8], self._queue[8:]
        for request in now:
            self.served[request.tag] = self.served.get(request.tag, 0) + 1
        return [Finished(r, Completion(text=repr(self._score(r)), token_ids=(1,))) for r in now]

    def _score(self, request: Request) -> float:
        setting = setting_of(request.params)
        greedy = request.params.get("do_sample") is not True
        key = f"{setting!r}|{greedy}"
        if key not in self._known:
            self._known[key] = self._world.scores(setting, self._replicates, greedy=greedy)
        return float(self._known[key][int(request.prompt), request.replicate])


def setting_of(params: Any) -> float | None:
    """The setting u that generation parameters stand for; the model's own temperature 1.0 is the baseline."""
    temperature = float(params.get("temperature", 1.0)) if params.get("do_sample") is True else 1.0
    return None if temperature == 1.0 else temperature - 1.0


def _generator(name: str) -> np.random.Generator:
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return np.random.Generator(np.random.PCG64(seed))

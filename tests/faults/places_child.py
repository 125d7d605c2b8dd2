"""Runs a study of a real model in a process that kills itself at a place with a name, not at a moment that is drawn."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import sqlalchemy as sa
import torch
from optuna.distributions import FloatDistribution

from llmsearch_optuna import progress
from llmsearch_optuna.api import search
from llmsearch_optuna.engine.engine import Engine
from tests.tiny import SENTENCES, make_llama, make_tokenizer

Place = Literal[
    "prefill", "decode", "commit", "trial", "prefill in the verdict", "decode in the verdict", "commit in the verdict"
]

SPACE = {"max_new_tokens": 6, "do_sample": True, "temperature": FloatDistribution(0.5, 3.0)}
TRIALS = 10


def letters(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
    """How many different characters a text has: the more is sampled, the better, so that there is a verdict."""
    return [min(1.0, len(set(text)) / 20) for text in predictions]


letters.bounds = (0.0, 1.0)  # type: ignore[attr-defined]


class Bomb(progress.Quiet):
    """Kills this process as soon as it is at a place for the so many-th time.

    Args:
        place: Where; "prefill" and "decode" are in the middle of a pass of the model, "commit" is when all has been
            written to a transaction, and before it is closed; "trial" is between two trials.
        times: When.
    """

    def __init__(self, place: Place, times: int) -> None:
        self._place, self._times = place, times
        self._met = Counter[str]()
        self._in_verdict = False

    def on(self, event: progress.Event) -> None:
        self._in_verdict |= isinstance(event, progress.VerdictStarted)
        if isinstance(event, progress.TrialEnded):
            self._meet("trial")

    def in_the_model(self, _module: Any, given: tuple[torch.Tensor, ...]) -> None:
        self._meet("decode" if given[0].shape[1] == 1 else "prefill")

    def at_a_commit(self, _connection: sa.Connection) -> None:
        self._meet("commit")

    def _meet(self, place: str) -> None:
        for name in (place, *([f"{place} in the verdict"] if self._in_verdict else [])):
            self._met[name] += 1
        if self._met[self._place] == self._times:
            os.kill(os.getpid(), signal.SIGKILL)


def main(database: str, place: Place, times: int) -> None:
    """Go on with the study until it is complete, or until that place."""
    bomb = Bomb(place, times)
    model = make_llama()
    model.model.layers[1].register_forward_pre_hook(bomb.in_the_model)
    sa.event.listen(sa.Engine, "commit", bomb.at_a_commit)
    run(Engine(model, make_tokenizer(), batch_size=4), database, bomb)


def run(engine: Engine, database: str, observer: progress.Callback) -> Any:
    torch.set_num_threads(1)
    return search(
        engine,
        [{"prompt": f"{sentence} {n}", "answer": ""} for n in range(4) for sentence in SENTENCES],
        SPACE,
        holdout=0.3,
        metric=letters,
        n_trials=TRIALS,
        storage=f"sqlite:///{database}",
        study_name="study",
        observer=observer,
    )

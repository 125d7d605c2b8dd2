"""Engines without a model: a completion is a pure function of the prompt and the parameters."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from llmsearch_optuna.backends.function import params_of_replicate
from llmsearch_optuna.engine.request import Completion, Finished, Request

Quality = Callable[[Mapping[str, Any]], float]


def unit(*parts: object) -> float:
    """A number from 0 to 1 that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big") / 2**48


def score_of(prompt: str, params: Mapping[str, Any], quality: Quality) -> float:
    """Difficulty of the row, plus what the parameters are worth, plus noise; from 0 to 1."""
    noise = unit(prompt, sorted((k, str(v)) for k, v in params.items()), "noise") - 0.5
    return min(1.0, max(0.0, 0.6 * unit(prompt) + 0.4 * quality(params) + 0.1 * noise))


def temperature_near(best: float) -> Quality:
    """Worth 1 at the best temperature, less the farther away."""
    return functools.partial(_nearness, best)


def _nearness(best: float, params: Mapping[str, Any]) -> float:
    return 1.0 - min(1.0, abs(float(params.get("temperature", 0.0)) - best))


class TextEngine:
    """An engine of one method; writes the score that its text deserves.

    Args:
        quality: What parameters are worth, from 0 to 1.
        log: A file that gets one line for every prompt that was decoded.
    """

    def __init__(self, quality: Quality | None = None, *, log: str | None = None) -> None:
        self.quality = quality or temperature_near(0.7)
        self.calls: list[tuple[str, str]] = []
        self._log = log

    def generate(self, prompts: Sequence[str], params: Mapping[str, Any]) -> list[Completion]:
        made = [self.complete(prompt, params) for prompt in prompts]
        if self._log is not None:
            with open(self._log, "a") as file:
                file.writelines(f"{prompt}\t{getattr(params, 'fingerprint', '')}\n" for prompt in prompts)
        self.calls += [(prompt, str(getattr(params, "fingerprint", params))) for prompt in prompts]
        return made

    def complete(self, prompt: str, params: Mapping[str, Any]) -> Completion:
        score = score_of(prompt, params, self.quality)
        return Completion(f"{score:.6f}", tuple(range(int(score * 10) + 1)), "eos", len(prompt))


class ShuffledServer:
    """A request server that ends requests of all trials in a random order, a few at a time."""

    def __init__(self, engine: TextEngine, seed: int) -> None:
        self._engine = engine
        self._random = random.Random(seed)
        self._waiting: list[Request] = []

    def submit(self, requests: Iterable[Request]) -> None:
        self._waiting += list(requests)

    def poll(self) -> list[Finished]:
        count = min(len(self._waiting), self._random.randint(1, 5))
        self._random.shuffle(self._waiting)
        done, self._waiting = self._waiting[:count], self._waiting[count:]
        found = []
        for request in done:
            (completion,) = self._engine.generate([request.prompt], params_of_replicate(request))
            found.append(Finished(request, completion))
        return found

    def cancel(self, tag: Hashable) -> None:
        self._waiting = [r for r in self._waiting if r.tag != tag]


def number_metric(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
    """The score is what the text says."""
    return [float(p) if p.replace(".", "", 1).isdigit() else 0.0 for p in predictions]


number_metric.bounds = (0.0, 1.0)  # type: ignore[attr-defined]


def dataset(rows: int) -> list[dict[str, Any]]:
    """Rows whose prompts differ."""
    return [{"prompt": f"row {i}", "answer": str(i)} for i in range(rows)]

"""What a good engineer writes to tune a server: Optuna asks, the openai client answers, a score for every trial.

All rows of a trial are in flight at once, up to twice the server's slots, under a seed of each row's own; the mean of
their scores goes back to Optuna's TPE. Nothing is pruned or stored, and no row is held out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import openai
import optuna
from optuna.distributions import BaseDistribution

from llmsearch_optuna.metrics.text_scores import rouge


class Watch(Protocol):
    """Is told of every request that is sent."""

    async def watch(self, asked: Any) -> Any:
        """Wait for an answer."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a study stood when a trial ended.

    Attributes:
        tokens: Generated since the study began, by the server's count.
        best: The best mean score on all searched rows so far.
    """

    tokens: int
    best: float


@dataclass(frozen=True)
class LoopResult:
    """What the loop did.

    Attributes:
        progress: After each trial.
        requests: How many were answered.
        seconds: From the first request to the last answer.
        processor_seconds: Of this process.
    """

    progress: Sequence[Progress]
    requests: int
    seconds: float
    processor_seconds: float


def plain_study(
    url: str,
    rows: Sequence[tuple[str, str]],
    space: Mapping[str, BaseDistribution],
    *,
    tokens: int,
    trials: int,
    at_once: int,
    watch: Watch,
) -> LoopResult:
    """Run the loop.

    Args:
        url: The server's address.
        rows: Prompts and references.
        space: What is searched, under the names of the server's fields.
        tokens: Most new ones of a row.
        trials: How many.
        at_once: Most requests in flight.
        watch: Is told of every request.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    begun, processor = time.perf_counter(), time.process_time()
    progress = asyncio.run(_loop(url, rows, space, tokens, trials, at_once, watch))
    return LoopResult(progress, trials * len(rows), time.perf_counter() - begun, time.process_time() - processor)


def tokens_until(progress: Sequence[Progress], score: float) -> int | None:
    """Return how many tokens had been generated when a study had first come to a score; None where it never did."""
    return next((entry.tokens for entry in progress if entry.best >= score), None)


async def _loop(
    url: str,
    rows: Sequence[tuple[str, str]],
    space: Mapping[str, BaseDistribution],
    tokens: int,
    trials: int,
    at_once: int,
    watch: Watch,
) -> list[Progress]:
    client = openai.AsyncOpenAI(base_url=url, api_key="none", timeout=600.0)
    slots, score = asyncio.Semaphore(at_once), rouge("rouge1")
    model = (await client.models.list()).data[0].id
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    progress: list[Progress] = []
    generated, best = 0, 0.0

    async def ask(row: int, params: Mapping[str, Any]) -> tuple[str, int]:
        fields = {name: params[name] for name in ("temperature", "top_p") if name in params}
        beside = {name: value for name, value in params.items() if name not in fields}
        async with slots:
            answer = await watch.watch(
                client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": rows[row][0]}],
                    max_tokens=tokens,
                    seed=row,
                    extra_body={**OFF, **beside},
                    **fields,
                )
            )
        return answer.choices[0].message.content or "", answer.usage.completion_tokens

    for _ in range(trials):
        trial = study.ask(dict(space))
        answers = await asyncio.gather(*(ask(row, trial.params) for row in range(len(rows))))
        value = sum(score(text, rows[row][1]) for row, (text, _) in enumerate(answers)) / len(rows)
        study.tell(trial, value)
        generated += sum(count for _, count in answers)
        best = max(best, value)
        progress.append(Progress(generated, best))
    await client.close()
    return progress


OFF = {"min_p": 0.0, "top_k": 0, "repeat_penalty": 1.0}
"""What llama.cpp's server would do by itself, switched off as in the study."""

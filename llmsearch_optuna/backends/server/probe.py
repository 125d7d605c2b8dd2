"""Asks a server a few short texts before a study, to see what its settings do and whether it repeats itself.

A server may take a parameter with a friendly 200 and ignore it; a study on such a parameter tunes nothing. And most
servers draw other texts from the same seed when other requests are computed beside it; scores then carry that noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol

from llmsearch_optuna.backends.protocol import ParameterEnds, Repetition
from llmsearch_optuna.engine.request import Completion, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams

PROBE_TOKENS = 24
PROBE_ROWS = 4

Effect = Literal["has an effect", "ignored", "refused", "cannot tell"]


class Asked(Protocol):
    """Answers requests at once."""

    def ask(self, requests: Sequence[Request]) -> list[Completion | None]:
        """Return a completion for each; None where it is refused."""
        ...


def effects(server: Asked, rows: Sequence[Request], ends: Sequence[ParameterEnds]) -> dict[str, Effect]:
    """Say what each parameter does: the same rows with the same seeds, under both of its ends.

    Args:
        server: Is asked.
        rows: Any rows of the task; a few are taken.
        ends: The parameters, each with its two ends.
    """
    found: dict[str, Effect] = {}
    for end in ends:
        low, again, high = (_texts(server, rows, params) for params in (end.low, end.low, end.high))
        if low is None or again is None or high is None:
            found[end.name] = "refused"
        elif low == high == again:
            found[end.name] = "ignored"
        elif low != again:
            found[end.name] = "cannot tell"
        else:
            found[end.name] = "has an effect"
    return found


def repetition(
    server: Asked, rows: Sequence[Request], params: GenerationParams, *, only_alone: bool = False
) -> Repetition:
    """Count how many rows have the same text again under the same seed, alone and beside others.

    Args:
        server: Is asked.
        rows: Any rows of the task; a few are taken.
        params: How they are decoded.
        only_alone: Ask each row once, alone, and count it as repeated.
    """
    taken = _short(rows, params)
    alone = [server.ask([row])[0] for row in taken]
    texts = tuple("" if answer is None else _digest(answer.text) for answer in alone)
    if only_alone:
        return Repetition(len(taken), len(taken), len(taken), texts)
    again = [server.ask([row])[0] for row in taken]
    beside = server.ask([*taken, *(replace(row, replicate=row.replicate + n) for row in taken for n in (1, 2))])
    return Repetition(len(taken), _equal(alone, again), _equal(alone, beside[: len(taken)]), texts)


def ignored_warning(found: Mapping[str, Effect], server: str) -> str | None:
    """Return the warning that names what a server ignores; None where it ignores nothing."""
    names = sorted(name for name, effect in found.items() if effect == "ignored")
    if not names:
        return None
    return (
        f"{server} answers with the same texts at both ends of {', '.join(names)}: it seems to ignore "
        f"{'it' if len(names) == 1 else 'them'}, so that searching tunes nothing"
    )


def _texts(server: Asked, rows: Sequence[Request], params: GenerationParams) -> list[str] | None:
    answers = server.ask(_short(rows, params))
    texts = [answer.text for answer in answers if answer is not None]
    return texts if len(texts) == len(answers) else None


def _short(rows: Sequence[Request], params: GenerationParams) -> list[Request]:
    length = min(PROBE_TOKENS, params.max_new_tokens)
    short = GenerationParams.of({**params.canonical, "max_new_tokens": length})
    return [replace(row, params=short, replicate=0) for row in rows[:PROBE_ROWS]]


def _equal(first: Sequence[Completion | None], second: Sequence[Completion | None]) -> int:
    pairs = zip(first, second, strict=True)
    return sum(a is not None and b is not None and a.text == b.text for a, b in pairs)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

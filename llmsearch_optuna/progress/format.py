"""How parameters, times and sizes are written in one line, and texts so that none can drive a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmsearch_optuna.progress.events import VerdictStarted, WorkMeasured

_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def describe_params(params: Mapping[str, Any], *, hide: Mapping[str, Any] | None = None) -> str:
    """``temperature=0.7 top_p=0.9``: parameters in one line, without those that have the value they have in `hide`.

    Special tokens are shown only where `hide` has others: they belong to the model and say nothing about a choice.
    """
    hidden = {name: params[name] for name in _SPECIAL_TOKENS if name in params} | dict(hide or {})
    shown = {n: value for n, value in params.items() if n not in hidden or hidden[n] not in (value, _only(value))}
    return " ".join(f"{name}={_short_value(value)}" for name, value in shown.items())


def _only(value: Any) -> Any:
    """A list of one and its element say the same: ``eos_token_id=[2]`` and ``2``."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def short_time(seconds: float) -> str:
    """``8 s``, ``4 min``, ``1 h 20 min``: a duration as people say it."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def describe_verdict(event: VerdictStarted) -> str:
    """``stage 2 of 4, up to 500 held-out rows``: what is decoded for the verdict."""
    if event.halves:
        return f"{event.rows:,} rows, each by the winner of the other half"
    if event.stages == 1:
        return f"{event.rows:,} held-out rows"
    return f"stage {event.stage} of {event.stages}, up to {event.rows:,} held-out rows"


def describe_work(work: WorkMeasured) -> str:
    """``4.2 rows/s   2.1 GB memory   47% of tokens replayed``: what is known of it; may be empty."""
    words = []
    if work.rows_per_second is not None:
        words.append(f"{_two_digits(work.rows_per_second)} rows/s")
    if work.memory is not None:
        words.append(f"{work.memory / 1e9:.1f} GB memory")
    if work.gpu_memory is not None:
        words.append(f"{work.gpu_memory / 1e9:.1f} GB on the GPU")
    if work.replayed_share is not None:
        words.append(f"{work.replayed_share:.0%} of tokens replayed")
    return "   ".join(words)


def with_error(score: float, error: float | None) -> str:
    """``0.2541 ± 0.0123``; the score alone where its error is not known."""
    return f"{score:.4f}" if error is None else f"{score:.4f} ± {error:.4f}"


def printable(text: str) -> str:
    """The text with control characters shown as escapes, so that no text can drive the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _short_value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, int) else str(value)
    return f"{value:.4g}"


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"

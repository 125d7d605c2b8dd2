"""What an engine did between two snapshots of its counters, and ratios of them."""

from __future__ import annotations

from dataclasses import fields

from llmsearch_optuna.engine.stats import EngineStats


def since(earlier: EngineStats, now: EngineStats) -> EngineStats:
    """What was done after an earlier snapshot (bytes are levels and stay as they are)."""
    levels = {"cache_bytes", "host_bytes"}
    changes = {
        f.name: getattr(now, f.name) - (0 if f.name in levels else getattr(earlier, f.name)) for f in fields(now)
    }
    return EngineStats(**changes)


def rows_per_step(stats: EngineStats) -> float:
    """Rows in the average decoding pass."""
    return stats.step_rows / stats.steps if stats.steps else 0.0


def outside_share(stats: EngineStats) -> float:
    """Share of the engine's time that was not spent inside the model."""
    return 1.0 - stats.forward_seconds / stats.seconds if stats.seconds else 0.0


def distance_from_floor(stats: EngineStats) -> float:
    """Forwards for every distinct prefix; 1.0 is the least possible."""
    return stats.forward_tokens / stats.distinct_prefixes if stats.distinct_prefixes else 1.0

"""What engines did for a study, added up over its sessions and workers.

Every session writes one attribute of the study, with its own name: no worker overwrites what another one counted.
Counters are for people; nothing that a study decides depends on them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optuna

ATTRIBUTE = "engine"
"""Begins the names of these attributes; alone it holds what one session of an earlier version left."""

Counters = dict[str, int | float]


@contextlib.contextmanager
def tallied(study: optuna.Study, session: str, stats: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Store with the study what its engine does in this block, also where the block is interrupted.

    After any other error nothing is stored: it may be the database's own.

    Args:
        study: The study.
        session: A name that no other block has.
        stats: The engine's counters since it was made (see `EngineStats`); empty where it keeps none.
    """
    before = stats()
    try:
        yield
    except KeyboardInterrupt:
        # A database that does not take the counters must not hide that somebody is waiting for the end.
        with contextlib.suppress(optuna.exceptions.StorageInternalError):
            _store(study, session, since(before, stats()))
        raise
    _store(study, session, since(before, stats()))


def engine_work(attributes: Mapping[str, Any]) -> Counters:
    """What all sessions together did, from the study's attributes: counts and seconds add up, bytes are the most."""
    total: Counters = {}
    for name, counters in attributes.items():
        if name == ATTRIBUTE or name.startswith(f"{ATTRIBUTE}_"):
            total = _together(total, counters)
    return total


def _store(study: optuna.Study, session: str, work: Counters) -> None:
    if any(value for name, value in work.items() if not _is_level(name)):
        study.set_user_attr(f"{ATTRIBUTE}_{session}", work)


def since(before: Mapping[str, Any], now: Mapping[str, Any]) -> Counters:
    """What an engine did after an earlier moment: it may have served other studies, and earlier sessions of this."""
    numbers = {name: value for name, value in now.items() if isinstance(value, int | float)}
    return {name: value if _is_level(name) else value - before.get(name, 0) for name, value in numbers.items()}


def _together(one: Mapping[str, int | float], other: Mapping[str, int | float]) -> Counters:
    pairs = {name: (one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}
    return {name: max(pair) if _is_level(name) else sum(pair) for name, pair in pairs.items()}


def _is_level(name: str) -> bool:
    """Whether this is what something takes at a moment, where all other counters only grow."""
    return name.endswith("_bytes")

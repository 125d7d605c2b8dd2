"""Requests decoded to their end by a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmsearch_optuna.backends.protocol import EngineBackend
from llmsearch_optuna.engine.request import Completion, Request


def decoded(backend: EngineBackend, asked: Sequence[Request]) -> dict[tuple[Any, int], Completion]:
    """The completion of each request, by tag and row; none of them may fail."""
    backend.submit(asked)
    found: dict[tuple[Any, int], Completion] = {}
    while len(found) < len(asked):
        ended = backend.poll()
        assert ended
        for item in ended:
            assert item.completion is not None, item.error
            found[item.request.tag, item.request.row] = item.completion
    return found

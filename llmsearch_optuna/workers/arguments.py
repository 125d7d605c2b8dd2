"""What the arguments of `search` say to those who place and watch workers."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from llmsearch_optuna.api import search

logger = logging.getLogger("llmsearch_optuna.workers")


def with_defaults(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with what `search` does where nothing is given."""
    return {name: p.default for name, p in inspect.signature(search).parameters.items()} | dict(arguments)


def warn_of_idle(arguments: Mapping[str, Any], workers: int) -> None:
    """Say that some of the workers would have nothing to do."""
    in_flight = with_defaults(arguments)["trials_in_flight"]
    if workers > in_flight:
        logger.warning(
            "trials_in_flight is %d, so only %d of %d workers will have something to do; a new study may be given more",
            in_flight,
            in_flight,
            workers,
        )

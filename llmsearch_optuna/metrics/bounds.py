"""The lowest and the highest score that there can be, as a user says them."""

from __future__ import annotations

from typing import Any

from llmsearch_optuna.errors import InputError


def checked_bounds(bounds: Any, said: str, example: tuple[int, int]) -> tuple[float, float]:
    """Return two numbers, the lower one first.

    Args:
        bounds: What was given.
        said: How the user gave it, for messages.
        example: What could be given.

    Raises:
        InputError: They are not two numbers in this order.

    >>> checked_bounds([0, 2], "bounds=[0, 2]", (0, 1))
    (0.0, 2.0)
    """
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{said} must be two numbers, such as {example}") from None
    if not low < high:
        raise InputError(f"{said}: the lowest score must be below the highest one")
    return low, high

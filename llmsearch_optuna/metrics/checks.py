"""What a metric's function answered: how many scores there are, and what is wrong with them.

Numbers of numpy, torch and pandas count as numbers. No metric is called here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from llmsearch_optuna.errors import short as short


def is_number(answer: Any) -> bool:
    """Tell whether the answer is one number: not a text, not a list, not an array with dimensions."""
    if isinstance(answer, str | bytes | Mapping) or answer is None:
        return False
    if getattr(answer, "ndim", 0) or (hasattr(answer, "__len__") and not hasattr(answer, "ndim")):
        return False
    try:
        float(answer)
    except OverflowError:  # a whole number beyond what a float holds: one number, and a wrong one
        return True
    except KeyboardInterrupt:
        raise
    except BaseException:
        return False
    return True


def listed(answer: Any) -> list[Any]:
    """Return the scores as a list of plain numbers where they came as an array."""
    return list(answer.tolist() if hasattr(answer, "tolist") else answer)


def count_of(answer: Any) -> int | None:
    """Return how many scores there are, or None when the answer is no list of scores."""
    if isinstance(answer, str | bytes | Mapping | AbstractSet) or is_number(answer):
        return None  # a set has no order, so nobody knows which score is whose
    if not isinstance(answer, Iterable):
        return None
    return len(listed(answer)) if hasattr(answer, "__len__") else None


def score_problem(score: Any, bounds: tuple[float, float] | None) -> str | None:
    """Say what is wrong with one score (a half sentence), or return None; rounding may leave the bounds by 1e-9."""
    if not is_number(score):
        return f"{short(score)}, which is no number"
    try:
        value = float(score)
    except OverflowError:
        return f"{short(score)}, which is too large"
    if not math.isfinite(value):
        return f"{value}, which is no finite number"
    slack = 0.0 if bounds is None else 1e-9 * max(map(abs, bounds))
    if bounds is not None and not bounds[0] - slack <= value <= bounds[1] + slack:
        return f"{value}, outside its bounds {bounds}"
    return None


def bad_places(answer: Any, bounds: tuple[float, float] | None) -> list[int]:
    """Return the places of the scores with which something is wrong."""
    return [place for place, score in enumerate(listed(answer)) if score_problem(score, bounds)]

from __future__ import annotations

from typing import Any

import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.bounds import checked_bounds


def test_two_numbers_in_their_order_are_bounds() -> None:
    assert checked_bounds(["0", 2], "scale=['0', 2]", (1, 5)) == (0.0, 2.0)


@pytest.mark.parametrize("wrong", [5, (1,), (0, 1, 2), ("low", "high")])
def test_what_is_no_pair_of_numbers_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^scale=here must be two numbers, such as \(1, 5\)$"):
        checked_bounds(wrong, "scale=here", (1, 5))


@pytest.mark.parametrize("wrong", [(1, 1), (2, 1), (float("nan"), 1)])
def test_the_lower_one_comes_first(wrong: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="the lowest score must be below the highest one"):
        checked_bounds(wrong, "scale=here", (1, 5))

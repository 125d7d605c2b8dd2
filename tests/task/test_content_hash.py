"""What counts in the hash of a task's contents, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from llmsearch_optuna.task.content_hash import content_hash


@pytest.mark.parametrize("other", [["a"], ["a", "c"], ["b", "a"], ["a", "b", ""], ["a\nb"], [["a", "b"]], ["a", None]])
def test_other_values_have_another_hash(other: list[Any]) -> None:
    assert content_hash(other) != content_hash(["a", "b"])


def test_addresses_and_the_order_of_keys_and_sets_do_not_count() -> None:
    class Reader:
        pass

    def values() -> list[Any]:
        return [Reader(), {"x": 1, "y": 2}, {"oslo", "bergen"}]

    assert content_hash(values()) == content_hash([Reader(), {"y": 2, "x": 1}, {"bergen", "oslo"}])

"""How a batch shrinks and grows, and what is remembered of it."""

from __future__ import annotations

import pytest

from llmsearch_optuna.engine.batch_size import PROMPTS, BatchLimit, BatchSizes, length_bucket


def test_a_batch_shrinks_at_once_and_grows_after_a_calm() -> None:
    limit = BatchLimit(16, growth_after=3)
    assert limit.ran_out(12)
    assert limit.rows == 6
    assert limit.ran_out(1) is False
    for _ in range(3):
        limit.succeeded()
    assert limit.rows == 12
    for _ in range(3):
        limit.succeeded()
    assert limit.rows == 16


def test_a_size_that_failed_after_growing_is_tried_again_later() -> None:
    limit = BatchLimit(8, 4, growth_after=2)
    for _ in range(2):
        limit.succeeded()
    assert limit.rows == 8
    limit.ran_out(8)
    for _ in range(3):
        limit.succeeded()
    assert limit.rows == 4
    limit.succeeded()
    assert limit.rows == 8


@pytest.mark.parametrize(("tokens", "bucket"), [(0, 64), (1, 64), (64, 64), (65, 128), (128, 128), (1000, 1024)])
def test_rows_of_like_length_share_a_bucket(tokens: int, bucket: int) -> None:
    assert length_bucket(tokens) == bucket


def test_short_rows_beams_and_prompts_do_not_suffer_from_what_long_rows_need() -> None:
    sizes = BatchSizes(32)
    assert sizes.ran_out(sizes.of(500), 32)
    assert sizes.of(500).rows == 16
    assert sizes.rows == 16, "what the engine can make use of"
    assert sizes.of(50).rows == sizes.of(500, beams=4).rows == sizes.of(500, PROMPTS).rows == 32
    assert sizes.of(600).rows == 16, "longer rows start where shorter ones stand"
    assert sizes.learned == {(512, 1): 16}


def test_what_was_learned_is_where_the_next_engine_starts() -> None:
    first = BatchSizes(32)
    first.ran_out(first.of(500), 9)
    second = BatchSizes(32)
    second.start_from(first.learned)
    assert second.of(512).rows == 4
    assert second.learned == first.learned
    for _ in range(64 * 3):
        second.of(512).succeeded()
    assert second.of(512).rows == 32, "and it grows back"
    smaller = BatchSizes(2)
    smaller.start_from(first.learned)
    assert smaller.of(512).rows == 2, "never more than the user allows"

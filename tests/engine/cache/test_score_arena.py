"""The arena of next-token scores against a list of rows."""

from __future__ import annotations

import gc

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsearch_optuna.engine.cache import score_arena
from llmsearch_optuna.engine.cache.score_arena import NextTokenScores, ScoreArena, candidates_of, states_of

Row = tuple[list[float], list[int], float, list[float]]


def rows(first: int, count: int) -> list[Row]:
    """Rows that no other number has."""
    return [
        ([n + 0.5, n, n - 0.5], [3 * n, 3 * n + 1, 3 * n + 2], n + 0.25, [-float(n)] * 2)
        for n in range(first, first + count)
    ]


def store(arena: ScoreArena, given: list[Row]) -> list[NextTokenScores]:
    values, ids, totals, states = (torch.tensor([row[part] for row in given]) for part in range(4))
    return arena.store(values, ids, totals, states)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.floats(0, 1)), min_size=1, max_size=12), st.randoms(use_true_random=False)
)
def test_rows_are_where_they_were_put_whatever_came_and_went(passes: list[tuple[int, float]], random: object) -> None:
    arena, held, number = ScoreArena(), [], 0
    for count, kept in passes:
        new = rows(number, count)
        held += zip(store(arena, new), new, strict=True)
        number += count
        random.shuffle(held)  # type: ignore[attr-defined]
        del held[max(1, int(kept * len(held))) :]
        scores = [item for item, _ in held]
        for width in (1, 2, None):
            found = candidates_of(scores, 500, width)
            assert found.values.tolist() == [row[0][:width] for _, row in held]
            assert found.ids.tolist() == [row[1][:width] for _, row in held]
            assert found.log_total.tolist() == [row[2] for _, row in held]
        assert states_of(scores).tolist() == [row[3] for _, row in held]
        for item, row in held[:3]:
            assert (item.values.tolist(), item.ids.tolist(), item.log_total, item.state.tolist()) == row
    del item, scores
    held.clear()
    gc.collect()
    assert arena.nbytes <= 90 * score_arena.FIRST_ROWS * 64


def test_rows_that_are_free_again_are_used_again_and_empty_chunks_are_given_back() -> None:
    arena = ScoreArena()
    kept = store(arena, rows(0, 1))
    one = arena.nbytes
    assert one == score_arena.FIRST_ROWS * kept[0].nbytes
    for _ in range(10):
        store(arena, rows(0, score_arena.FIRST_ROWS - 1))
    assert arena.nbytes == one
    many = store(arena, rows(0, 500))
    assert arena.nbytes > 500 * kept[0].nbytes
    del many
    assert arena.nbytes == one
    assert kept[0].values.tolist() == rows(0, 1)[0][0]


def test_a_chunk_has_a_limit_in_bytes() -> None:
    arena = ScoreArena()
    states = torch.zeros(1, 2**20)
    held = [arena.store(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1), states) for _ in range(40)]
    assert arena.nbytes < len(held) * 2 * (2**22 + 100)


def test_candidates_own_their_memory_or_are_read_at_once() -> None:
    arena = ScoreArena()
    held = store(arena, rows(0, 3))
    before = candidates_of(held, 500)
    held = []
    store(arena, rows(7, 3))
    assert before.values.tolist() == [row[0] for row in rows(0, 3)]
    assert isinstance(before.log_total, np.ndarray)


def test_bytes_are_those_of_all_parts() -> None:
    (one,) = store(ScoreArena(), rows(0, 1))
    assert one.nbytes == 3 * 4 + 3 * 4 + 2 * 4 + 8

"""What an encoder made, kept by prompt within a budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmsearch_optuna.engine.cache.encoder_cache import EncoderCache

WIDTH = 4
A_TOKEN = WIDTH * 4  # bytes


class Encoder:
    """Every state is its token's number."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, prompts: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        self.asked += prompts
        return [torch.tensor(ids, dtype=torch.float32)[:, None].repeat(1, WIDTH) for ids in prompts]


def test_each_prompt_is_encoded_once_and_filled_on_the_right() -> None:
    encode, encoder_cache = Encoder(), EncoderCache(1000)
    first = encoder_cache.of([[1, 2, 3], [4], [4]], encode)
    assert first is not None
    assert first[..., 0].tolist() == [[1, 2, 3], [4, 0, 0], [4, 0, 0]]
    again = encoder_cache.of([[4], [5, 6]], encode)
    assert again is not None
    assert again[..., 0].tolist() == [[4, 0], [5, 6]]
    assert encode.asked == [(1, 2, 3), (4,), (5, 6)]
    assert encoder_cache.nbytes == 6 * A_TOKEN


def test_those_not_asked_for_longest_leave_and_all_can_be_given_up() -> None:
    encode, encoder_cache = Encoder(), EncoderCache(3 * A_TOKEN)
    for prompt in ([1], [2], [3], [1], [4]):
        encoder_cache.of([prompt], encode)
    assert encode.asked == [(1,), (2,), (3,), (4,)]
    encoder_cache.of([[1], [2]], encode)
    assert encode.asked[4:] == [(2,)], "2 had left, 1 had not"
    assert encoder_cache.evict() == 3 * A_TOKEN
    assert encoder_cache.nbytes == 0


def test_without_a_budget_nothing_is_kept_and_what_cannot_be_kept_is_not() -> None:
    encode, encoder_cache = Encoder(), EncoderCache(0)
    assert encoder_cache.of([[1, 2]], encode) is not None
    assert encoder_cache.nbytes == 0
    assert encoder_cache.of([[1, 2]], lambda prompts: None) is None

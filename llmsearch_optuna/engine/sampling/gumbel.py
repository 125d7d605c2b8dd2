"""Noise that belongs to a row: a pure function of seed, row, position and token, with no generator state.

It is the same on every machine, in every batch and in every order, and the same for all configurations, which
pairs them: two trials differ only where their parameters differ. Nothing else may draw random tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_GUMBEL = -math.log(-math.log1p(-(2.0**-53)))
"""No value of :func:`gumbel` is larger (36.74)."""

BLOCK = 8192

_ONE, _ELEVEN = np.uint64(1), np.uint64(11)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # increment of splitmix64
_SEED_SALT = np.uint64(0xD1B54A32D192ED03)
_MIX_STEPS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
    (np.uint64(31), None),
)


def row_key(prompt_token_ids: Sequence[int], occurrence: int = 0, replicate: int = 0) -> int:
    """64 bits that name a row: the prompt's tokens, which of its copies it is, and the replicate.

    Args:
        prompt_token_ids: The prompt without padding.
        occurrence: How many earlier rows of the task have the same prompt.
        replicate: Which repetition of the row this is.
    """
    numbers = np.array([occurrence, replicate, *prompt_token_ids], dtype="<i8")
    return int.from_bytes(hashlib.blake2b(numbers.tobytes(), digest_size=8).digest(), "little")


def gumbel(
    seed: int | ArrayLike, row_keys: ArrayLike, positions: ArrayLike, token_ids: ArrayLike
) -> NDArray[np.float64]:
    """Standard Gumbel noise ``-log(-log(u))``, so that ``argmax(log_softmax + noise)`` draws from the softmax.

    Args:
        seed: The generation seed, one for all rows or ``[rows]``.
        row_keys: ``[rows]`` of :func:`row_key`.
        positions: ``[rows]``, how many tokens each row has generated so far.
        token_ids: ``[rows, tokens]``, or ``[1, tokens]`` for all rows.

    Returns:
        ``[rows, tokens]`` float64 between -3.61 and ``MAX_GUMBEL``.
    """
    return gumbel_of_bits(noise_bits(seed, row_keys, positions, token_ids))


def noise_bits(
    seed: int | ArrayLike, row_keys: ArrayLike, positions: ArrayLike, token_ids: ArrayLike
) -> NDArray[np.uint64]:
    """The 53 uniform bits behind :func:`gumbel`: the larger, the larger the noise. The lowest one is always set."""
    streams = _streams(seed, row_keys, positions)
    tokens = np.atleast_2d(np.asarray(token_ids)).astype(np.uint64)
    rows, width = max(len(streams), len(tokens)), tokens.shape[1]
    bits = np.empty((rows, width), dtype=np.uint64)
    streams = np.broadcast_to(streams, rows)
    tokens = np.broadcast_to(tokens, (rows, width))
    for part in _blocks(rows, width):
        block = bits[part]
        np.add(tokens[part], _ONE, out=block)
        block *= _GOLDEN
        block += streams[part[0], None]
        _mix(block)
        block >>= _ELEVEN
        block |= _ONE  # odd numbers below 2**53: as a fraction neither 0 nor 1
    return bits


def gumbel_of_bits(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The Gumbel value of 53 uniform bits."""
    noise = np.empty(bits.shape, dtype=np.float64)
    for part in _blocks(*bits.shape):
        block = noise[part]
        np.multiply(bits[part], 2.0**-53, out=block, dtype=np.float64, casting="unsafe")
        np.log(block, out=block)
        np.negative(block, out=block)
        np.log(block, out=block)
        np.negative(block, out=block)
    return noise


def _blocks(rows: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Pieces of ``[rows, width]`` that stay in a core's cache while they are worked on (4 times as fast)."""
    height = max(1, BLOCK // max(1, width))
    for top in range(0, rows, height):
        for left in range(0, width, BLOCK):
            yield slice(top, min(top + height, rows)), slice(left, min(left + BLOCK, width))


def _streams(seed: int | ArrayLike, row_keys: ArrayLike, positions: ArrayLike) -> NDArray[np.uint64]:
    """One splitmix64 state for each row at its position, ``[rows]``."""
    state = np.atleast_1d(np.asarray(seed, dtype=np.uint64)) * _GOLDEN + _SEED_SALT
    _mix(state)
    state = state + np.atleast_1d(np.asarray(row_keys, dtype=np.uint64))
    _mix(state)
    state = state + (np.atleast_1d(np.asarray(positions, dtype=np.uint64)) + np.uint64(1)) * _GOLDEN
    _mix(state)
    return state


def _mix(state: NDArray[np.uint64]) -> None:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), in place."""
    shifted = np.empty_like(state)
    for shift, factor in _MIX_STEPS:
        np.right_shift(state, shift, out=shifted)
        state ^= shifted
        if factor is not None:
            state *= factor

"""The noise is a pure function, uniform, independent between positions and rows, and never changes."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llmsearch_optuna.engine.sampling.gumbel import BLOCK, MAX_GUMBEL, gumbel, gumbel_of_bits, noise_bits, row_key

SIGNIFICANT = 1e-4


def uniform(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.float64) * 2.0**-53


def test_values_never_change() -> None:
    """Stored completions, resumed studies and shared seeds rest on these numbers."""
    assert row_key([1, 2, 3]) == 2141542520064864664
    assert row_key([1, 2, 3], 1, 2) == 6594096439832441654
    assert noise_bits(0, [1], [0], [[0, 1, 2]]).tolist() == [[8228793507068593, 2592958499574245, 4529919291208457]]
    expected = [[2.40367952, -0.219315968, 0.374955226]]
    np.testing.assert_allclose(gumbel(0, [1], [0], [[0, 1, 2]]), expected, rtol=1e-7, atol=0)
    np.testing.assert_allclose(gumbel(7, [2**64 - 1], [300], [[151_000]]), [[-0.4298321691901441]], rtol=1e-7, atol=0)


def test_bits_are_odd_so_that_no_logarithm_is_infinite() -> None:
    bits = noise_bits(3, np.arange(50), np.zeros(50), np.arange(5000)[None])
    assert (bits % 2 == 1).all()
    assert bits.max() < 2**53
    ends = gumbel_of_bits(np.array([[1, 2**53 - 1]], dtype=np.uint64))
    np.testing.assert_allclose(ends, [[-math.log(53 * math.log(2)), MAX_GUMBEL]])


def test_uniform() -> None:
    u = uniform(noise_bits(0, np.arange(100), np.arange(100), np.arange(10_000)[None]))
    counts = np.histogram(u, bins=1000, range=(0.0, 1.0))[0]
    assert stats.chisquare(counts).pvalue > SIGNIFICANT
    assert stats.chisquare(np.bincount((u.ravel() * 2**53).astype(np.int64) // 2 % 256)).pvalue > SIGNIFICANT


def test_neighbours_are_independent() -> None:
    """Seeds, rows, positions and tokens that follow one another give pairs that fill the square evenly."""
    count = 200_000
    steps = np.arange(count)
    zeros = np.zeros(count, dtype=np.int64)
    one = np.zeros((1, 1), dtype=np.int64)
    sequences = {
        "seeds": noise_bits(steps, zeros, zeros, one),
        "rows": noise_bits(0, steps, zeros, one),
        "positions": noise_bits(0, zeros[:1], steps, one),
        "tokens": noise_bits(0, [0], [0], steps[None]),
    }
    for name, bits in sequences.items():
        u = uniform(bits).ravel()
        counts = np.histogram2d(u[:-1:2], u[1::2], bins=16, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(counts.ravel()).pvalue > SIGNIFICANT, name


def test_draws_follow_the_softmax_in_pairs_of_positions() -> None:
    """``argmax(log p + noise)`` draws from p at every position, independently of the position before."""
    rows = 60_000
    p = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
    keys = np.array([row_key([row]) for row in range(rows)], dtype=np.uint64)
    tokens = np.array([[17, 3, 49_151, 0, 2]])
    drawn = [
        np.argmax(np.log(p) + gumbel(11, keys, np.full(rows, position), tokens), axis=1) for position in (0, 1, 57)
    ]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        pairs = np.bincount(drawn[first] * 5 + drawn[second], minlength=25)
        assert stats.chisquare(pairs, rows * np.outer(p, p).ravel()).pvalue > SIGNIFICANT


@given(
    keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12),
    seed=st.integers(0, 2**63 - 1),
    width=st.sampled_from([1, 7, 1024, BLOCK + 3]),
    data=st.data(),
)
def test_a_value_does_not_depend_on_what_is_computed_beside_it(
    keys: list[int], seed: int, width: int, data: st.DataObject
) -> None:
    generator = np.random.default_rng(len(keys))
    positions = generator.integers(0, 4000, len(keys))
    tokens = generator.integers(0, 200_000, (len(keys), width))
    together = gumbel(seed, keys, positions, tokens)
    row = data.draw(st.integers(0, len(keys) - 1))
    column = data.draw(st.integers(0, width - 1))
    alone = gumbel([seed], [keys[row]], [positions[row]], [[tokens[row, column]]])
    assert alone[0, 0] == together[row, column]


def test_row_key_tells_prompts_occurrences_and_replicates_apart() -> None:
    keys = {row_key(prompt, *place) for prompt in ([], [0], [0, 0], [1, 0]) for place in ((0, 0), (1, 0), (0, 1))}
    assert len(keys) == 12
    assert row_key((5, 6)) == row_key(np.array([5, 6]))  # type: ignore[arg-type]

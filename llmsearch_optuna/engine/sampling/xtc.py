"""XTC ("exclude top choices"): by the throw of a coin, all likely tokens go but the least likely of them.

Once for a row of the engine, once as an ordinary logits processor. The coin is row-keyed noise: a function of seed, row
and position, as every draw here.

Source: p-e-w's sampler as llama.cpp has it (``llama_sample_xtc_apply`` in src/llama-sampling.cpp). There it is the last
before temperature, behind the truncations. Here it is the last before temperature too, but ``model.generate`` truncates
after temperature, so that probabilities are those of all tokens, and top_k, top_p, min_p and the like see what it
leaves; without these, both are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor

from llmsearch_optuna.engine.sampling.double_precision import in_double
from llmsearch_optuna.engine.sampling.gumbel import noise_bits, row_key
from llmsearch_optuna.engine.sampling.param_specs import check_value
from llmsearch_optuna.engine.sampling.penalties import TextStart

DEFAULT_THRESHOLD = 0.1
"""That of llama.cpp."""

COIN = 2**40
"""No token has this id: its noise is the coin."""


def coin(seed: int, key: int, step: int) -> float:
    """The throw of a row at a step, uniform between 0 and 1.

    Args:
        seed: The generation seed.
        key: The row's, see `row_key`.
        step: How many tokens it has generated.
    """
    return float(noise_bits(seed, [key], [step], [[COIN]])[0, 0]) * 2.0**-53


def without_top_choices(scores: NDArray[np.float32], threshold: float) -> NDArray[np.float32]:
    """Scores ``[vocab]`` without the tokens of at least this probability, but for the least likely of them.

    Of probabilities .5, .3, .15, .05 and a threshold of .1 the first two go:

    >>> without_top_choices(np.log(np.float32([0.5, 0.3, 0.15, 0.05])), 0.1) > -np.inf
    array([False, False,  True,  True])
    """
    exact = scores.astype(np.float64)
    top = exact.max()
    if not np.isfinite(top):
        return scores
    p = np.exp(exact - top)
    likely = np.flatnonzero(p / p.sum() >= threshold)
    if len(likely) < 2:
        return scores
    kept = likely[np.argmin(exact[likely])]
    left = scores.copy()
    left[likely[likely != kept]] = -np.inf
    return left


class XTCLogitsWarper(LogitsProcessor):
    """The same for ``model.generate(do_sample=True, logits_processor=[...])``; it sees where a new text begins.

    >>> XTCLogitsWarper(1.0, 0.1)(torch.tensor([[7]]), torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()).isfinite()
    tensor([[False, False,  True,  True]])

    Args:
        xtc_probability: How often it is applied, from 0 (never) to 1.
        xtc_threshold: From which probability on a token counts as likely; above 0.5 nothing happens.
        generation_seed: Which throws.
        row_keys: Whose throws, one for each prompt; None makes them of the prompts, which must be unfilled then.
        prompt_length: Columns of ``input_ids`` before the first generated token; None takes those of the first call.
        filter_value: The score of what is removed.
    """

    def __init__(
        self,
        xtc_probability: float,
        xtc_threshold: float = DEFAULT_THRESHOLD,
        generation_seed: int = 0,
        row_keys: Sequence[int] | None = None,
        prompt_length: int | None = None,
        filter_value: float = -float("inf"),
    ) -> None:
        self.xtc_probability: float = check_value("xtc_probability", xtc_probability)
        self.xtc_threshold: float = check_value("xtc_threshold", xtc_threshold)
        self.generation_seed: int = check_value("generation_seed", generation_seed)
        self.filter_value = filter_value
        self._given_keys = row_keys
        self._start = TextStart(prompt_length)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores ``[rows, vocab]`` with removed tokens at ``filter_value``."""
        start = self._start.of(input_ids)
        step = int(input_ids.shape[1]) - start
        keys = self._given_keys or [row_key(row) for row in input_ids[:, :start].tolist()]
        beams = len(input_ids) // len(keys)
        thrown = [coin(self.generation_seed, keys[row // beams], step) for row in range(len(input_ids))]
        hit = torch.tensor(thrown, device=scores.device) <= self.xtc_probability
        removed = self._likely_but_the_last(scores) & hit[:, None]
        return scores.masked_fill(removed, self.filter_value)

    def _likely_but_the_last(self, scores: torch.Tensor) -> torch.Tensor:
        exact = in_double(scores)
        likely = exact.softmax(dim=-1) >= self.xtc_threshold
        least = exact.masked_fill(~likely, torch.inf).amin(dim=-1, keepdim=True)
        last = likely & (exact == least)
        return (likely & ~(last & (last.cumsum(dim=-1) == 1))).to(scores.device)

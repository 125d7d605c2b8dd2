"""Mirostat 2.0: truncation whose limit follows the text, so that its surprise stays near a target.

A token may surprise by so many bits at most; after each token the limit moves against the error. The limit is a
state, and each row has its own: here once for a row of the engine, once as an ordinary logits processor.

Source: Basu et al., "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity", 2021
(https://arxiv.org/abs/2007.14966), in the simpler second version that its authors published afterwards and that
llama.cpp has under the same names. As there, temperature comes before it, and no other truncation goes with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor

from llmsearch_optuna.engine.sampling.double_precision import in_double
from llmsearch_optuna.engine.sampling.param_specs import MIROSTAT_ETA, MIROSTAT_TAU, check_value

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIROSTAT_NAMES = ("mirostat_mode", "mirostat_tau", "mirostat_eta")


class MirostatState:
    """One row's limits, step by step.

    A limit that is known stays, so that a step may be looked at again. Three tokens of probability .5, .25, .25 have
    surprises of 1, 2, 2 bits; with a target of .75 bits the limit begins at 1.5, and only the first may be drawn.
    Alone it is no surprise, so the limit rises by ``eta`` times the .75 bits that are missing.

    >>> state, log_p = MirostatState(tau=0.75, eta=0.4), np.log([0.5, 0.25, 0.25])
    >>> state.kept(log_p, step=0)
    array([0])
    >>> state.took(0, log_p, step=0)
    >>> round(state.limits[1], 3)
    1.8

    Args:
        tau: The surprise to aim at, in bits.
        eta: How fast the limit follows.
    """

    __slots__ = ("_eta", "_tau", "limits")

    def __init__(self, tau: float, eta: float) -> None:
        self._tau = tau
        self._eta = eta
        self.limits = [2 * tau]

    @classmethod
    def of(cls, params: Mapping[str, Any], step: int = 0) -> MirostatState | None:
        """The state of a row that begins under these parameters; None where they do not ask for Mirostat.

        Args:
            params: One configuration.
            step: How many tokens the row has already.
        """
        if not params.get("mirostat_mode"):
            return None
        state = cls(params["mirostat_tau"], params["mirostat_eta"])
        state.limits *= step + 1
        return state

    def kept(self, log_p: Floats, step: int) -> Ints:
        """The tokens that may be drawn at a step, rising; the likeliest always may.

        Args:
            log_p: ``[vocab]``, natural logarithms of the probabilities.
            step: How many tokens the row has.
        """
        allowed = -log_p / math.log(2) <= self.limits[step]
        allowed[np.argmax(log_p)] = True
        return np.flatnonzero(allowed)

    def took(self, token: int, log_p: Floats, step: int) -> None:
        """Move the limit of the next step after a token that was drawn from what :meth:`kept` leaves."""
        kept = log_p[self.kept(log_p, step)]
        top = kept.max()
        surprise = (top + math.log(np.exp(kept - top).sum()) - log_p[token]) / math.log(2)
        self.limits[step + 1 :] = [self.limits[step] - self._eta * (float(surprise) - self._tau)]


class MirostatLogitsWarper(LogitsProcessor):
    """Keeps the tokens that surprise by at most so many bits, and moves that limit, for each row on its own.

    Alone with ``model.generate(do_sample=True, top_k=0, logits_processor=[...])``: without ``top_k=0`` Hugging Face
    truncates once more. It sees for itself where a new text begins; beams, which change places, it cannot follow.

    >>> MirostatLogitsWarper(0.75)(torch.tensor([[7]]), torch.tensor([[0.5, 0.25, 0.25]]).log()).isfinite()
    tensor([[ True, False, False]])

    Args:
        mirostat_tau: The surprise to aim at, in bits; above 0.
        mirostat_eta: How fast the limit follows; above 0.
        temperature: The temperature that ``generate`` applies afterwards: the surprise is that of the draw.
        filter_value: The score of what is removed.
    """

    def __init__(
        self,
        mirostat_tau: float = MIROSTAT_TAU,
        mirostat_eta: float = MIROSTAT_ETA,
        temperature: float = 1.0,
        filter_value: float = -float("inf"),
    ) -> None:
        self.mirostat_tau: float = check_value("mirostat_tau", mirostat_tau)
        self.mirostat_eta: float = check_value("mirostat_eta", mirostat_eta)
        self.temperature: float = check_value("temperature", temperature)
        self.filter_value = filter_value
        self._input_ids: torch.Tensor | None = None
        self._surprise = torch.empty(0)
        self._limits = torch.empty(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores ``[rows, vocab]`` with removed tokens at ``filter_value``."""
        bits = -(in_double(scores) / self.temperature).log_softmax(dim=-1) / math.log(2)
        limits = self._next_limits(input_ids).to(bits.device)
        removed = (bits > limits[:, None]).scatter(-1, bits.argmin(dim=-1, keepdim=True), False)
        left = bits.masked_fill(removed, math.inf)
        total = (-left * math.log(2)).logsumexp(dim=-1, keepdim=True) / math.log(2)
        self._input_ids, self._limits, self._surprise = input_ids.clone(), limits, left + total
        return scores.masked_fill(removed.to(scores.device), self.filter_value)

    def _next_limits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """``[rows]``: moved by the last token of each row; at the beginning of a text twice the target."""
        before = self._input_ids
        if before is None or not torch.equal(before, input_ids[:, :-1].to(before.device)):
            start = 2 * self.mirostat_tau
            return torch.full((len(input_ids),), start, dtype=torch.float64)
        surprise = self._surprise.gather(-1, input_ids[:, -1:].to(self._surprise.device))[:, 0]
        moved = self._limits - self.mirostat_eta * (surprise - self.mirostat_tau)
        return torch.where(surprise.isfinite(), moved, self._limits)  # a row that has ended goes on with filling

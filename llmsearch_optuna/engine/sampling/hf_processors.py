"""Truncations of our own that transformers lacks: tail-free, top-a and top-n-sigma sampling.

See also `mirostat`, `penalties`, `dry`, `xtc` and `thinking_budget`.

Ordinary logits processors, usable alone with ``model.generate(logits_processor=…)``. ``generate`` applies such
processors before its own warpers, so they see the distribution at temperature 1; so does our engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from llmsearch_optuna.engine.sampling.double_precision import in_double
from llmsearch_optuna.engine.sampling.dry import Breakers, Dry, DryLogitsProcessor
from llmsearch_optuna.engine.sampling.mirostat import MirostatLogitsWarper
from llmsearch_optuna.engine.sampling.param_specs import check_value
from llmsearch_optuna.engine.sampling.penalties import PresenceFrequencyLogitsProcessor
from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan
from llmsearch_optuna.engine.sampling.thinking_budget import ThinkingBudgetLogitsProcessor
from llmsearch_optuna.engine.sampling.xtc import DEFAULT_THRESHOLD, XTCLogitsWarper


class TopNSigmaLogitsWarper(LogitsProcessor):
    """Keeps the tokens whose logit is within ``top_n_sigma`` standard deviations of the largest one.

    Source: Tang et al., "Top-nσ: Not All Logits Are You Need", 2024 (https://arxiv.org/abs/2411.07641). The
    deviation is the population's, over all tokens that are still possible.

    Logits 4, 3, 0, -3 have mean 1 and deviation 2.74; with ``top_n_sigma=1`` what lies above 4 - 2.74 stays.

    >>> TopNSigmaLogitsWarper(1.0)(None, torch.tensor([[4.0, 3.0, 0.0, -3.0]]))
    tensor([[4., 3., -inf, -inf]])

    Args:
        top_n_sigma: Above 0; 1 is the paper's choice, larger keeps more.
        filter_value: The score of what is removed.
    """

    def __init__(self, top_n_sigma: float, filter_value: float = -float("inf")) -> None:
        self.top_n_sigma: float = check_value("top_n_sigma", top_n_sigma)
        self.filter_value = filter_value

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores ``[rows, vocab]`` with removed tokens at ``filter_value``."""
        possible = torch.isfinite(scores)
        exact = in_double(torch.where(possible, scores, 0.0))
        possible = possible.to(exact.device)
        count = possible.sum(dim=-1, keepdim=True)
        mean = exact.sum(dim=-1, keepdim=True) / count
        variance = torch.where(possible, (exact - mean) ** 2, 0.0).sum(dim=-1, keepdim=True) / count
        largest = in_double(scores.amax(dim=-1, keepdim=True))
        removed = in_double(scores) < largest - self.top_n_sigma * variance.sqrt()
        return scores.masked_fill(removed.to(scores.device), self.filter_value)


class TailFreeLogitsWarper(LogitsProcessor):
    """Cuts off the tail where the curve of sorted probabilities has become flat.

    The absolute second differences of the sorted probabilities are normalised to sum 1; a token is kept while
    their sum up to it is at most ``tfs``. The least likely token always goes, the likeliest never.

    Source: Bricken, "Tail Free Sampling", 2020 (https://www.trentonbricken.com/Tail-Free-Sampling/), with the
    offsets of the implementation in KoboldAI and text-generation-webui, which llmsearch used too.

    Probabilities .6, .2, .15, .05 differ by .4, .05, .1, these by .35, .05; normalised .875, .125. With
    ``tfs=0.9`` the second token is kept (.875 <= .9), the third is not (1 > .9).

    >>> TailFreeLogitsWarper(0.9)(None, torch.tensor([[0.6, 0.2, 0.15, 0.05]]).log()).isfinite()
    tensor([[ True,  True, False, False]])

    Args:
        tfs: Above 0 and at most 1, which switches it off; 0.95 is usual.
        filter_value: The score of what is removed.
    """

    def __init__(self, tfs: float, filter_value: float = -float("inf")) -> None:
        self.tfs: float = check_value("tfs", tfs)
        self.filter_value = filter_value

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores ``[rows, vocab]`` with removed tokens at ``filter_value``."""
        if self.tfs >= 1.0 or scores.shape[-1] < 3:
            return scores
        ordered, order = torch.sort(scores, dim=-1, stable=True)
        probabilities = in_double(ordered.flip(-1)).softmax(dim=-1)
        curvature = probabilities.diff(dim=-1).diff(dim=-1).abs()
        total = curvature.sum(dim=-1, keepdim=True)
        removed = curvature.cumsum(dim=-1) > self.tfs * total
        # a flat distribution has no tail
        ends = (total > 0).expand(-1, 1)
        removed = torch.cat((torch.zeros_like(ends), removed, ends), dim=-1).to(scores.device)
        return scores.masked_fill(removed.flip(-1).scatter(-1, order, removed.flip(-1)), self.filter_value)


class TopALogitsWarper(LogitsProcessor):
    """Keeps the tokens whose probability is at least ``top_a`` times the square of the largest one.

    Source: BlinkDL, "The top-a sampling method", 2022 (https://github.com/BlinkDL/RWKV-LM#the-top-a-sampling-method).

    With ``top_a=0.2`` and a largest probability of .5 all below .05 goes; with .9 all below .162.

    >>> TopALogitsWarper(0.2)(None, torch.tensor([[0.5, 0.4, 0.06, 0.04]]).log()).isfinite()
    tensor([[ True,  True,  True, False]])

    Args:
        top_a: From 0, which switches it off, to 1; 0.2 is usual.
        filter_value: The score of what is removed.
    """

    def __init__(self, top_a: float, filter_value: float = -float("inf")) -> None:
        self.top_a: float = check_value("top_a", top_a)
        self.filter_value = filter_value

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores ``[rows, vocab]`` with removed tokens at ``filter_value``."""
        probabilities = in_double(scores).softmax(dim=-1)
        limit = self.top_a * probabilities.amax(dim=-1, keepdim=True) ** 2
        return scores.masked_fill((probabilities < limit).to(scores.device), self.filter_value)


def own_processors(
    params: Mapping[str, Any],
    breakers: Breakers | None = None,
    row_keys: Sequence[int] | None = None,
    prompt_length: int | None = None,
    reasoning: ReasoningSpan | None = None,
) -> LogitsProcessorList:
    """The processors that ``model.generate(logits_processor=…)`` needs beside ``params.to_hugging_face()``.

    Args:
        params: One configuration.
        breakers: The sequence breakers of DRY, see `breakers_of`.
        row_keys: Whose coins XTC throws, one for each prompt; None makes them of the prompts.
        prompt_length: Columns of ``input_ids`` before the first generated token; None lets the processors find out.
        reasoning: Between which markers the model thinks; what ``thinking_budget`` needs to know.
    """
    processors = LogitsProcessorList()
    presence, frequency = params.get("presence_penalty", 0.0), params.get("frequency_penalty", 0.0)
    if presence or frequency:
        processors.append(PresenceFrequencyLogitsProcessor(presence, frequency, prompt_length))
    if (dry := Dry.of(params)) is not None:
        processors.append(DryLogitsProcessor(dry, breakers))
    if params.get("mirostat_mode"):
        steering = params["mirostat_tau"], params["mirostat_eta"], params.get("temperature", 1.0)
        processors.append(MirostatLogitsWarper(*steering))
    if params.get("do_sample"):
        if (deviations := params.get("top_n_sigma")) is not None:
            processors.append(TopNSigmaLogitsWarper(deviations))
        if (mass := params.get("tfs")) is not None:
            processors.append(TailFreeLogitsWarper(mass))
        if (factor := params.get("top_a")) is not None:
            processors.append(TopALogitsWarper(factor))
        if (probability := params.get("xtc_probability")) is not None:
            threshold, seed = params.get("xtc_threshold", DEFAULT_THRESHOLD), params.get("generation_seed", 0)
            processors.append(XTCLogitsWarper(probability, threshold, seed, row_keys, prompt_length))
    if (budget := params.get("thinking_budget")) is not None and reasoning is not None:
        processors.append(ThinkingBudgetLogitsProcessor(budget, reasoning, prompt_length))
    return processors

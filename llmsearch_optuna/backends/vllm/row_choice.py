"""Which token a row of vLLM's batch goes on with: a pure function of its settings, prompt, tokens and logits.

The rules and the noise are those of this library's own engine (`engine.sampling`), so that both write the same text
where their logits agree, and no row depends on its neighbours. vLLM itself is not needed here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmsearch_optuna.engine.sampling.candidates import Candidates
from llmsearch_optuna.engine.sampling.gumbel import row_key
from llmsearch_optuna.engine.sampling.mirostat import MIROSTAT_NAMES, MirostatState
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan, unknown_span
from llmsearch_optuna.engine.sampling.sampler import needs_full_logits, pick, pick_from_logits, supports

ARGUMENT = "llmsearch_optuna"
"""The name in `SamplingParams.extra_args`, over HTTP in ``vllm_xargs``, under which a row's settings travel."""

VERSION = 1
"""Of what travels."""

MARK = f"the logits processor of llmsearch-optuna (version {VERSION})"
"""Stands in every refusal, so that a client can tell that the processor is there."""

TOP_CANDIDATES = 256
"""How many of the largest logits are tried before all of them."""


@dataclass(frozen=True)
class RowSettings:
    """What is sent with a request.

    Attributes:
        params: How its tokens are picked.
        occurrence: How many earlier rows of the task have the same prompt.
        replicate: Which repetition of the row this is.
        reasoning: Between which markers the model thinks, where the parameters have to know it.
    """

    params: GenerationParams
    occurrence: int = 0
    replicate: int = 0
    reasoning: ReasoningSpan | None = None

    def to_json(self) -> str:
        """Return the text that travels."""
        return json.dumps(
            {
                "version": VERSION,
                "params": self.params.to_json(),
                "occurrence": self.occurrence,
                "replicate": self.replicate,
                **({} if self.reasoning is None else {"reasoning": self.reasoning.to_json()}),
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: Any) -> RowSettings:
        """Read what `to_json` wrote.

        Raises:
            ValueError: It is something else, of another version, or has parameters that are not picked by row.
        """
        try:
            sent = json.loads(text)
            if sent["version"] != VERSION:
                raise ValueError(f"it was asked in version {sent['version']!r}")
            params = _params_of(sent["params"])
            numbers = int(sent["occurrence"]), int(sent["replicate"])
            reasoning = ReasoningSpan.from_json(sent["reasoning"]) if "reasoning" in sent else None
        except (TypeError, KeyError, ValueError) as problem:
            raise ValueError(f"{MARK} cannot read {ARGUMENT}={str(text)[:200]!r}: {problem}") from None
        if (reason := not_by_row(params) or unknown_span(params, reasoning)) is not None:
            raise ValueError(f"{MARK} cannot apply {params.to_json()}: {reason}")
        return cls(params, *numbers, reasoning)


def not_by_row(params: GenerationParams) -> str | None:
    """Say why these parameters cannot be applied to one row's logits; None where they can."""
    if params.kind not in ("greedy", "sampling"):
        return f"{params.kind} needs more than one row"
    if unknown := [name for name in _ELSEWHERE if name in params]:
        return f"it does not know {', '.join(unknown)}"
    return supports(params)


_ELSEWHERE = (
    *("dry_allowed_length", "dry_base", "dry_multiplier", "dry_penalty_last_n", "dry_sequence_breakers"),
    *("reasoning_effort", "repeat_last_n", "xtc_probability", "xtc_threshold"),
)
"""Parameters that are not applied in vLLM's process."""


@lru_cache(maxsize=4096)
def _params_of(text: str) -> GenerationParams:
    return GenerationParams.from_json(text)


class ChoosingRow:
    """A request in vLLM's batch, with the members that the sampler reads of a row (see `SamplerRow`).

    Args:
        settings: What was sent with it.
        prompt_ids: Its prompt.
        output_ids: Its tokens so far: the list that vLLM appends to.
    """

    def __init__(self, settings: RowSettings, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        self._settings = settings
        self.params = settings.params
        self.reasoning = None if settings.reasoning is None else settings.reasoning.state(prompt_ids)
        self.prompt_length = len(prompt_ids)
        self.row_key = row_key(prompt_ids, settings.occurrence, settings.replicate)
        self.mirostat = MirostatState.of(settings.params)
        self.context: list[int] = list(prompt_ids)
        self.seen: set[int] = set(prompt_ids)
        self._output_ids = output_ids
        self._pick_as_answer()

    @property
    def step(self) -> int:
        """How many tokens it has generated."""
        return len(self.context) - self.prompt_length

    def catch_up(self) -> None:
        """Take note of the tokens that vLLM has added."""
        for token in self._output_ids[self.step :]:
            self.context.append(token)
            self.seen.add(token)
            if self.reasoning is not None:
                self.reasoning.push(token)
                self._pick_as_answer()

    def _pick_as_answer(self) -> None:
        """Behind a thought, pick by the parameters of the answer, as `TokenSequence` does."""
        answer = self._settings.params.answer
        if self.reasoning is None or self.params is answer or not self.reasoning.is_answering:
            return
        before, self.params = self.params, answer
        if any(before.get(name) != answer.get(name) for name in MIROSTAT_NAMES):
            self.mirostat = MirostatState.of(answer, self.step)

    def follow(self, output_ids: Sequence[int]) -> None:
        """Go on with another list, in a request that vLLM had taken out of the batch."""
        self._output_ids = output_ids


def choose(logits: torch.Tensor, rows: Sequence[ChoosingRow]) -> NDArray[np.int64]:
    """Return the next token of each row, ``[rows]``.

    Args:
        logits: ``[rows, vocab]`` float32, before any rule.
        rows: In the same order; they are brought up to date.
    """
    for row in rows:
        row.catch_up()
    tokens = np.full(len(rows), -1, dtype=np.int64)
    listed = [place for place, row in enumerate(rows) if not needs_full_logits(row.params)]
    if listed:
        tokens[listed] = _from_largest(logits[listed], [rows[place] for place in listed])
    rest = np.flatnonzero(tokens < 0).tolist()
    if rest:
        tokens[rest] = pick_from_logits(logits[rest].cpu().numpy(), [rows[place] for place in rest])
    return tokens


def _from_largest(logits: torch.Tensor, rows: Sequence[ChoosingRow]) -> NDArray[np.int64]:
    """The tokens that the largest logits prove, -1 for the others."""
    top = torch.topk(logits, min(TOP_CANDIDATES, logits.shape[1]), dim=-1)
    totals = torch.logsumexp(logits, dim=-1)
    candidates = Candidates(
        top.values.cpu().numpy(), top.indices.cpu().numpy(), totals.double().cpu().numpy(), logits.shape[1]
    )
    tokens = pick(candidates, rows)
    tokens[~np.isfinite(candidates.log_total)] = -1
    return tokens

"""A stand-in for vLLM: a step loop over a tiny model, whose rows pick tokens as our logits processor lets them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.backends.vllm.row_choice import ARGUMENT, ChoosingRow, RowSettings, choose
from llmsearch_optuna.backends.vllm.step_engine import ModelFacts, StepOutput
from llmsearch_optuna.engine.sampling.params import model_defaults


class EngineDeadError(Exception):
    """Of the name that vLLM gives it."""


@dataclass
class Running:
    request_id: str
    prompt: list[int]
    arguments: Mapping[str, Any]
    streams: bool
    row: ChoosingRow
    output: list[int] = field(default_factory=list)
    told: int = 0


class TinyStepEngine:
    """Computes every row from its beginning at every step, all rows of a step picked in one call.

    Args:
        dies_after: How many steps it takes before it is dead.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        *,
        slots: int = 4,
        dies_after: int | None = None,
        dies_of: Exception | None = None,
        **facts: Any,
    ) -> None:
        self._model = model
        self._slots = slots
        self._steps_left = dies_after
        self._dies_of = dies_of or EngineDeadError("core")
        self._requests: list[Running] = []
        self.aborted: list[str] = []
        self.beam_calls: list[tuple[int, dict[str, Any]]] = []
        self.facts = replace(
            ModelFacts("tiny", {"engine": "vllm"}, tokenizer, model_defaults(model), slots, 128, True, True), **facts
        )

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        return "temperature must be in [0, 2]" if arguments["temperature"] > 2 else None

    def add(self, request_id: str, prompt_ids: Sequence[int], arguments: Mapping[str, Any], *, streams: bool) -> None:
        self._check()
        json.dumps(arguments)  # they travel to another process
        output: list[int] = []
        row = ChoosingRow(RowSettings.from_json(arguments["extra_args"][ARGUMENT]), prompt_ids, output)
        self._requests.append(Running(request_id, list(prompt_ids), arguments, streams, row, output))

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        if self._steps_left is not None:
            self._steps_left -= 1
        self._check()
        batch = self._requests[: self._slots]
        logits = [self._model(torch.tensor([r.prompt + r.output])).logits[0, -1] for r in batch]
        tokens = choose(torch.stack(logits), [r.row for r in batch]).tolist()
        return [output for r, token in zip(batch, tokens, strict=True) if (output := self._advance(r, token))]

    def _advance(self, request: Running, token: int) -> StepOutput | None:
        request.output.append(token)
        reason = "stop" if token in request.arguments["stop_token_ids"] else None
        reason = reason or ("length" if len(request.output) == request.arguments["max_tokens"] else None)
        if reason is not None:
            self._requests.remove(request)
        if reason is None and not request.streams:
            return None
        new, request.told = tuple(request.output[request.told :]), len(request.output)
        return StepOutput(request.request_id, new, reason)

    def abort(self, request_ids: Sequence[str]) -> None:
        self._check()
        self.aborted += request_ids
        self._requests = [request for request in self._requests if request.request_id not in request_ids]

    def beam_search(self, prompts: Sequence[Sequence[int]], arguments: Mapping[str, Any]) -> list[tuple[int, ...]]:
        assert not self._requests, "vLLM's beam search steps the engine until it is empty"
        self.beam_calls.append((len(prompts), dict(arguments)))
        return [(5, 6, 1, 9)] * len(prompts)

    def _check(self) -> None:
        if self._steps_left is not None and self._steps_left < 0:
            raise self._dies_of

"""A logits processor for vLLM that picks each row's token by this library's rules and noise.

``LLM(..., logits_processors=[RowKeyedSampler])``, or for a server ``--logits-processors`` with this module and class.
A request that carries settings (see `row_choice`) is left one possible token; all other requests are left alone. The
interface is that of vLLM's model runner V1 (0.32 and 0.33; on a GPU that is ``VLLM_USE_V2_MODEL_RUNNER=0``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from llmsearch_optuna.backends.vllm.row_choice import ARGUMENT, MARK, ChoosingRow, RowSettings, choose

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

_ROW = "llmsearch_optuna.row"
"""Where a request's row is kept in its own `extra_args`: a request that was preempted comes back with them."""


class RowKeyedSampler(LogitsProcessor):  # type: ignore[misc]  # vLLM need not be installed
    """Leaves one possible token to each row that carries settings of this library.

    Args:
        vllm_config: The engine's.
        device: Where logits are.
        is_pin_memory: Whether host memory is pinned.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request whose settings cannot be read or applied, or that asks vLLM to pick tokens as well.

        Raises:
            ValueError: Says so; over HTTP it is a 400.
        """
        sent = _sent(sampling_params)
        if sent is None:
            return
        RowSettings.from_json(sent)
        if sampling_params.n != 1:
            raise ValueError(f"{MARK} gives equal texts to all n={sampling_params.n} answers; ask for one")
        if sampling_params.temperature != 0 or sampling_params.repetition_penalty != 1:
            raise ValueError(f"{MARK} makes the whole choice; ask with temperature=0 and without penalties")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, ChoosingRow] = {}

    def is_argmax_invariant(self) -> bool:
        """Whether greedy rows could go without it: no."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests that came, went and changed places."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, prompt_ids, output_ids in batch_update.added:
            row = _row_of(params, prompt_ids, output_ids)
            if row is None:
                self._rows.pop(index, None)
            else:
                self._rows[index] = row
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._rows[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Make all tokens but the chosen one impossible, in the rows that are ours.

        Args:
            logits: ``[requests, vocab]``, changed in place.
        """
        if not self._rows:
            return logits
        places = torch.tensor(list(self._rows), device=logits.device)
        tokens = torch.from_numpy(choose(logits[places].float(), list(self._rows.values()))).to(logits.device)
        logits[places] = -torch.inf
        logits[places, tokens] = 0.0
        return logits


def _sent(params: SamplingParams) -> Any:
    return (params.extra_args or {}).get(ARGUMENT)


def _row_of(params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]) -> ChoosingRow | None:
    sent = _sent(params)
    if sent is None or params.extra_args is None:
        return None
    row = params.extra_args.get(_ROW)
    if isinstance(row, ChoosingRow):
        row.follow(output_ids)
        return row
    made = ChoosingRow(RowSettings.from_json(sent), prompt_ids or [], output_ids)
    params.extra_args[_ROW] = made
    return made

"""Forward passes: prompts in one go, then one token for every row of the slot buffer.

The runner finds out by trying what a model's cache can do, and runs the passes. Which rows are computed, and what
becomes of the scores, is decided by the engine.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from llmsearch_optuna.engine.cache.cache_shape import CacheShape, Segment
from llmsearch_optuna.engine.cache.score_arena import NextTokenScores, ScoreArena, states_of
from llmsearch_optuna.engine.cache.slots import SlotBuffer, assemble, extract, shape_of
from llmsearch_optuna.engine.largest_logits import largest_logits
from llmsearch_optuna.engine.memory import is_out_of_memory
from llmsearch_optuna.engine.output_head import Finish, finish_of
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.static_step import EAGER_USES, StaticStep
from llmsearch_optuna.engine.threads import ThreadTuner
from llmsearch_optuna.engine.timing import DeviceTimer
from llmsearch_optuna.models.awq_fused import REASON, is_fused

logger = logging.getLogger("llmsearch_optuna.engine")

TOP_CANDIDATES = 1024
"""How many of the largest logits are kept of every prefix."""

PROBE_LENGTHS = (9, 5)


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What a prompt's pass leaves behind.

    Attributes:
        segment: Keys and values of the row's own decoder tokens.
        state: The state after its last token, ``[state]``.
        cross: What the row attends to beside itself, in an encoder-decoder model.
    """

    segment: Segment
    state: torch.Tensor
    cross: Segment | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What was found out about a model by trying it.

    Attributes:
        shape: What one token occupies in the cache; None when rows cannot be cut out and put together.
        reason: Why rows cannot be handled one by one (then decoding runs through ``model.generate``).
        from_hidden: Whether logits can be recomputed from the last hidden state alone.
        longest: Rows of more tokens than this change the others in their batch, and go through ``model.generate``;
            None where no length does.
    """

    shape: CacheShape | None
    reason: str | None
    from_hidden: bool
    longest: int | None = None

    def __str__(self) -> str:
        if self.shape is None:
            return f"decodes through model.generate, because {self.reason}"
        state = "hidden states" if self.from_hidden else "full logits"
        rows = "row by row" if self.longest is None else f"rows of up to {self.longest} tokens one by one"
        rest = "" if self.longest is None else ", longer ones through model.generate"
        return (
            f"decodes {rows} with prompt cache, replay and slots{rest}; "
            f"{self.shape.bytes_per_token:,} bytes of cache a token, replays from {state}"
        )


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch off what a model does only in training, and put every part of it back as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Keep cuDNN's attention out, and put the user's setting back: it plans every new shape anew, 47 ms on an H100."""
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)


class ModelRunner:
    """Runs a causal model on prompts and on the rows of a slot buffer.

    Args:
        model: A causal language model.
        top: How many of the largest logits of a prefix are kept.

    Attributes:
        timer: How long the model has worked so far.
        samples_on_device: Whether tokens are picked where the scores are, as far as that can be done there.
        passes: Forward passes so far.
        start: What the decoder begins with where that is not the prompt.
        starts_with_encoder: Whether prompts go through an encoder.
    """

    start: tuple[int, ...] | None = None
    starts_with_encoder = False

    def __init__(self, model: PreTrainedModel, *, top: int = TOP_CANDIDATES) -> None:
        self.model = model
        self.device = model.device
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.timer = DeviceTimer(self.device)
        self.passes = 0
        self._static: StaticStep | None = None
        self._top = top
        self._arena = ScoreArena()
        self.samples_on_device = self.device.type == "cuda"
        self._body: Any = model
        self._from_hidden = False
        self._finish: Finish | None = None
        self._takes_positions = False
        self._layer_devices: tuple[torch.device, ...] = ()
        self._threads = ThreadTuner()
        self.capabilities = self._probe()
        if self.device.type == "cuda":
            self.use_static_steps()

    @torch.inference_mode()
    def prefill(self, suffixes: Sequence[Sequence[int]], prefix: Sequence[Segment] = ()) -> list[Prefilled]:
        """Run prompts (or what is missing of them behind a common prefix) in one pass.

        Rows are padded on the right, where causal attention cannot see the padding.

        Args:
            suffixes: Token ids of each row, none empty.
            prefix: Keys and values of what precedes all of them.

        Returns:
            For each row the keys and values of its own tokens, and the state after its last token.
        """
        past = sum(segment.shape[3] for segment in prefix)
        lengths = [len(suffix) for suffix in suffixes]
        width = max(lengths)
        ids = torch.zeros((len(suffixes), width), dtype=torch.long)
        mask = torch.zeros((len(suffixes), past + width), dtype=torch.long)
        for row, suffix in enumerate(suffixes):
            ids[row, : len(suffix)] = torch.tensor(suffix)
            mask[row, : past + len(suffix)] = 1
        positions = torch.arange(past, past + width).expand(len(suffixes), width)
        cache = assemble(prefix, len(suffixes), self.device, self._layer_devices)
        with self._threads.using():
            states = self._forward(ids, mask, positions, cache)  # [rows, width, state]
        return [
            Prefilled(extract(cache, row, past, past + length), states[row, length - 1].clone())
            for row, length in enumerate(lengths)
        ]

    def extend(self, tokens: Sequence[int], before: Sequence[Segment], cross: Segment | None) -> Segment:
        """Keys and values of tokens behind stored ones: what was evicted is computed again."""
        (result,) = self.prefill([tokens], before)
        return result.segment

    def other_start(self, params: GenerationParams) -> str | None:
        """Why these parameters do not begin as the rows here do; None where they do, as without an encoder always."""
        return None

    def buffer(self, slots: int) -> SlotBuffer:
        """An empty slot buffer for this model's rows."""
        assert self.capabilities.shape is not None
        return SlotBuffer(self.capabilities.shape, slots)

    @torch.inference_mode()
    def step(self, buffer: SlotBuffer, tokens: Sequence[int]) -> torch.Tensor:
        """Run one token for each row of the buffer; the caller commits the step.

        Returns:
            The states after these tokens, ``[rows, state]``.
        """
        if self._static is not None:
            self.passes += 1
            with self.timer.measuring():
                return self._static(buffer, tokens)
        ids = torch.tensor(tokens, dtype=torch.long)[:, None]
        positions = torch.tensor(buffer.lengths, dtype=torch.long)[:, None]
        with self._timed_step(len(tokens)):
            return self._forward(ids, buffer.attention_mask(), positions, buffer.cache)[:, -1]

    @torch.inference_mode()
    def use_static_steps(self) -> bool:
        """From now on take steps in static shapes, where they give what other steps give; tells whether they do."""
        shape = self.capabilities.shape
        if shape is None or self.starts_with_encoder or shape.devices:  # a graph is on one device
            return False
        try:
            static = StaticStep(self._states, self.device)
            alike = self._probe_static(static, shape)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            logger.info("steps in static shapes fail: %s: %s", type(error).__name__, error)
            return False
        if alike:
            self._static = static
        return alike

    @torch.inference_mode()
    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """All logits in float32, ``[rows, vocab]``, from states ``[rows, state]``."""
        if self._finish is None:
            return states.float()
        with self.timer.measuring(), self._threads.using():
            return self._finish(self.model.get_output_embeddings()(states.to(self.device))).float()

    def all_logits(self, scores: Sequence[NextTokenScores]) -> NDArray[np.float32]:
        """All logits of prefixes whose scores are stored, on the host: ``[rows, vocab]``."""
        rows: NDArray[np.float32] = self.logits(states_of(scores)).cpu().numpy()
        return rows

    @torch.inference_mode()
    def scores(self, states: torch.Tensor) -> list[NextTokenScores]:
        """Store what is kept of each state ``[rows, state]``: the largest logits, their total, the state."""
        logits = self.logits(states)
        with self._threads.using():
            found = largest_logits(logits, min(self._top, logits.shape[-1]))
        return self._arena.store(*found, states)

    def _timed_step(self, rows: int) -> contextlib.AbstractContextManager[None]:
        """Time a step to choose the number of threads; on a device other than the CPU there is nothing to choose."""
        return self._threads.timed(rows) if self.device.type == "cpu" else contextlib.nullcontext()

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """States of all positions, ``[rows, width, state]``: hidden states, or logits where those do not serve."""
        self.passes += 1
        with self.timer.measuring():
            return self._states(ids.to(self.device), mask.to(self.device), positions.to(self.device), cache)

    def _states(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "past_key_values": cache,
            "use_cache": True,
        }
        if self._takes_positions:
            inputs["position_ids"] = positions
        output = self._body(**inputs)
        states: torch.Tensor = output.last_hidden_state if self._from_hidden else output.logits
        return states

    def _probe(self) -> Capabilities:
        """Try the model on two short rows of different lengths, together and alone."""
        if "past_key_values" not in inspect.signature(self.model.forward).parameters:
            return Capabilities(None, "its forward takes no past_key_values", False)
        if is_fused(self.model):
            return Capabilities(None, REASON, False)
        try:
            self._choose_body()
            shape = self._probe_cache()
            reason = shape if isinstance(shape, str) else self._probe_rows(shape)
            longest = None if isinstance(shape, str) or reason is not None else self._probe_positions(shape)
        except Exception as error:  # whatever a foreign cache does, it only means: take the plain path
            return Capabilities(None, self._other_layers() or failure(error), False)
        finally:
            self.timer.reset()
            self._threads = ThreadTuner()  # steps of the probe say nothing about real ones
            self.passes = 0
        if isinstance(shape, str) or reason is not None:
            return Capabilities(None, reason, False)
        return Capabilities(shape, None, self._from_hidden, longest)

    def _probe_rows_ids(self) -> list[list[int]]:
        """Two rows of harmless token ids that do not depend on any generator."""
        return [
            [3 + (7 * i + 11 * row) % (self.vocab_size - 3) for i in range(n)] for row, n in enumerate(PROBE_LENGTHS)
        ]

    @torch.inference_mode()
    def _choose_body(self) -> None:
        """Use the model below the output head where the head gives exactly the model's own logits."""
        ids = torch.tensor([self._probe_rows_ids()[0]], device=self.device)
        self._body, self._from_hidden, self._finish = self.model, False, None
        self._takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters
        body, head = self.model.base_model, self.model.get_output_embeddings()
        if body is self.model or head is None:
            return
        try:
            hidden = body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            config = self.model.config.get_text_config()
            self._finish = finish_of(config, head(hidden), self.model(input_ids=ids).logits)
        except Exception:  # a body that cannot be called alone is not used alone
            self._finish = None
        if self._finish is not None:
            self._body, self._from_hidden = body, True
            self._takes_positions = "position_ids" in inspect.signature(body.forward).parameters

    @torch.inference_mode()
    def _probe_cache(self) -> CacheShape | str:
        cache = assemble((), 1, self.device)
        ids = torch.tensor([self._probe_rows_ids()[0]])
        self._forward(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None], cache)
        shape = shape_of(cache)
        self._layer_devices = shape.devices if isinstance(shape, CacheShape) else ()
        return shape

    @torch.inference_mode()
    def _probe_rows(self, shape: CacheShape) -> str | None:
        """Decode rows of different lengths in one buffer and compare with each row alone."""
        rows = self._probe_rows_ids()
        buffer = SlotBuffer(shape, len(rows))
        for result in self.prefill(rows):
            buffer.join([result.segment])
        for step in range(2):
            tokens = [3 + (5 * step + row) % (self.vocab_size - 3) for row in range(len(rows))]
            buffer.reserve_step()
            together = self.logits(self.step(buffer, tokens))
            buffer.commit_step()
            for row, token in enumerate(tokens):
                rows[row].append(token)
                alone = self.model(input_ids=torch.tensor([rows[row]], device=self.device)).logits[0, -1].float()
                if not self._close(together[row], alone, shape):
                    return "rows of different lengths in one batch change its logits"
        return None

    def _probe_static(self, static: StaticStep, shape: CacheShape) -> bool:
        """Take steps both ways over the same rows, often enough for a graph to be captured and replayed."""
        buffer = SlotBuffer(shape, len(PROBE_LENGTHS))
        for result in self.prefill(self._probe_rows_ids()):
            buffer.join([result.segment])
        for step in range(EAGER_USES + 2):
            tokens = [3 + (5 * step + row) % (self.vocab_size - 3) for row in range(buffer.rows)]
            buffer.reserve_step()
            usual = self.logits(self.step(buffer, tokens))
            if not self._close(self.logits(static(buffer, tokens)), usual, shape):
                return False
            buffer.commit_step()
        return True

    @torch.inference_mode()
    def _probe_positions(self, shape: CacheShape) -> int | None:
        """The longest row that leaves the others in its batch alone; None where every length does.

        Rotary embeddings that are rescaled by the length of a text (longrope, dynamic) take the longest row's for all.
        Positions are an argument, so no long text is needed to see it.
        """
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if not self._takes_positions or not isinstance(limit, int) or limit <= 2 * PROBE_LENGTHS[1]:
            return None
        row = self._probe_rows_ids()[1]
        usual = self._beside(row, len(row))
        if self._close(self._beside(row, limit), usual, shape):
            return None
        harmless, harmful = len(row), limit
        while harmful - harmless > 1:
            middle = (harmless + harmful) // 2
            if self._close(self._beside(row, middle), usual, shape):
                harmless = middle
            else:
                harmful = middle
        return harmless

    def _beside(self, row: Sequence[int], length: int) -> torch.Tensor:
        """A row's logits ``[vocab]`` beside one that ends at position ``length`` - 1."""
        ids = torch.tensor([row, row])
        positions = torch.arange(len(row))
        both = torch.stack((positions, positions + (length - len(row))))
        states = self._forward(ids, torch.ones_like(ids), both, assemble((), len(ids), self.device))
        return self.logits(states[:1, -1])[0]

    def _other_layers(self) -> str | None:
        """What the model's own cache holds beside keys and values; None if nothing does."""
        try:
            layers = DynamicCache(config=self.model.config.get_text_config()).layers
        except Exception:  # a cache of another make
            return None
        others = sorted({type(layer).__name__ for layer in layers if not isinstance(layer, DynamicLayer)})
        return f"its cache keeps a {others[0]}, whose state cannot be cut by position" if others else None

    @staticmethod
    def _close(together: torch.Tensor, alone: torch.Tensor, shape: CacheShape) -> bool:
        """Equal up to what batch shapes change in the last bits of float32, or in half precision."""
        together = together.to(alone.device)
        tolerance = 1e-3 if shape.dtype == torch.float32 else 0.25
        largest = float(alone.abs().nan_to_num(0.0, posinf=0.0).max())
        return torch.allclose(together, alone, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def failure(error: Exception) -> str:
    """The reason that an error gives for the plain path."""
    return f"trying its cache failed ({type(error).__name__}: {error})"

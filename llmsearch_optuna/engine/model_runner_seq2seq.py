"""Forward passes of encoder-decoder models: the encoder once a prompt, then the decoder row by row.

A prompt's encoder output is kept as the keys and values that the decoder attends to. Models whose decoder
takes absolute positions from the length of the cache (BART) fail the trial run and decode through
``model.generate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from llmsearch_optuna.engine.cache.cache_shape import CacheShape, Segment
from llmsearch_optuna.engine.cache.slots import CrossRows, SlotBuffer, assemble, extract, shape_of
from llmsearch_optuna.engine.model_runner import Capabilities, ModelRunner, Prefilled, failure
from llmsearch_optuna.engine.sampling.params import GenerationParams


def model_runner_for(model: PreTrainedModel, *, top: int) -> ModelRunner:
    """The runner that fits the model's architecture."""
    return Seq2SeqModelRunner(model, top=top) if model.config.is_encoder_decoder else ModelRunner(model, top=top)


class Seq2SeqModelRunner(ModelRunner):
    """Runs an encoder-decoder model; states are full logits."""

    starts_with_encoder = True

    def __init__(self, model: PreTrainedModel, *, top: int) -> None:
        self._cross_shape: CacheShape | None = None
        start = model.generation_config.decoder_start_token_id
        if start is None:
            start = model.config.decoder_start_token_id
        self.start = (int(start),) if isinstance(start, int) else None
        super().__init__(model, top=top)

    def other_start(self, params: GenerationParams) -> str | None:
        """Why these parameters do not begin as the rows here do; None where they do."""
        start = tuple(params.get("decoder_start_token_id") or self.start or ())
        return None if start == self.start else f"decoder_start_token_id={list(start)} is not the model's own"

    @torch.inference_mode()
    def prefill(self, suffixes: Sequence[Sequence[int]], prefix: Sequence[Segment] = ()) -> list[Prefilled]:
        """Encode prompts in one pass and run the decoder's start token; ``prefix`` does not exist here."""
        assert self.start is not None
        lengths = [len(suffix) for suffix in suffixes]
        ids = torch.zeros((len(suffixes), max(lengths)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, suffix in enumerate(suffixes):
            ids[row, : len(suffix)] = torch.tensor(suffix)
            mask[row, : len(suffix)] = 1
        cache = EncoderDecoderCache(assemble((), 1, self.device), assemble((), 1, self.device))
        started = torch.tensor([list(self.start)] * len(suffixes))
        states = self._run(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            decoder_input_ids=started.to(self.device),
            past_key_values=cache,
        )
        own, cross = cache.self_attention_cache, cache.cross_attention_cache
        return [
            Prefilled(extract(own, row, 0, len(self.start)), states[row, -1].clone(), extract(cross, row, 0, length))
            for row, length in enumerate(lengths)
        ]

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int], before: Sequence[Segment], cross: Segment | None) -> Segment:
        """Keys and values of decoder tokens behind stored ones: what was evicted is computed again."""
        assert cross is not None
        past = sum(segment.shape[3] for segment in before)
        own = assemble(before, 1, self.device)
        rows = CrossRows(self._shape_of_cross())
        rows.join(cross)
        self._decode(torch.tensor([list(tokens)]), torch.ones((1, past + len(tokens)), dtype=torch.long), own, rows)
        return extract(own, 0, past, past + len(tokens))

    @torch.inference_mode()
    def step(self, buffer: SlotBuffer, tokens: Sequence[int]) -> torch.Tensor:
        """Run one token for each row of the buffer; the caller commits the step. Logits, ``[rows, vocab]``."""
        assert buffer.cross is not None
        ids = torch.tensor(tokens, dtype=torch.long)[:, None]
        with self._timed_step(len(tokens)):
            return self._decode(ids, buffer.attention_mask(), buffer.cache, buffer.cross)[:, -1]

    def buffer(self, slots: int) -> SlotBuffer:
        """An empty slot buffer, with rows for what the decoder attends to."""
        assert self.capabilities.shape is not None
        return SlotBuffer(self.capabilities.shape, slots, CrossRows(self._shape_of_cross()))

    def _decode(self, ids: torch.Tensor, mask: torch.Tensor, own: Any, cross: CrossRows) -> torch.Tensor:
        """Logits of the decoder's tokens, ``[rows, width, vocab]``."""
        cache = EncoderDecoderCache(own, cross.cache)
        cache.is_updated = dict.fromkeys(range(cross.shape.layers), True)
        # the decoder takes only rows and width from it: the keys and values are in the cache
        encoded = torch.zeros((1, 1, 1), device=self.device, dtype=cross.shape.dtype)
        size = int(self.model.config.get_text_config().hidden_size)
        return self._run(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.expand(len(ids), cross.width, size)),
            attention_mask=cross.mask(),
            decoder_input_ids=ids.to(self.device),
            decoder_attention_mask=mask.to(self.device),
            past_key_values=cache,
        )

    def _run(self, **inputs: Any) -> torch.Tensor:
        self.passes += 1
        with self.timer.measuring():
            logits: torch.Tensor = self.model(**inputs, use_cache=True).logits
        return logits

    def _probe(self) -> Capabilities:
        if self.start is None:
            return Capabilities(None, "its decoder has no single start token", False)
        try:
            shape = self._probe_cache()
            reason = shape if isinstance(shape, str) else self._probe_rows(shape)
        except Exception as error:  # whatever a foreign cache does, it only means: take the plain path
            return Capabilities(None, self._other_layers() or failure(error), False)
        finally:
            self.timer.reset()
            self.passes = 0
        if isinstance(shape, str) or reason is not None:
            return Capabilities(None, reason, False)
        return Capabilities(shape, None, False)

    @torch.inference_mode()
    def _probe_cache(self) -> CacheShape | str:
        own, cross = assemble((), 1, self.device), assemble((), 1, self.device)
        ids = torch.tensor([self._probe_rows_ids()[0]], device=self.device)
        begun = torch.tensor([list(self.start or ())], device=self.device)
        self._run(input_ids=ids, decoder_input_ids=begun, past_key_values=EncoderDecoderCache(own, cross))
        shape = shape_of(cross)
        if isinstance(shape, CacheShape) and shape.devices:
            return "its layers are on different devices, and so is what they attend to"
        if isinstance(shape, CacheShape):
            self._cross_shape = shape
            return shape_of(own)
        return shape

    @torch.inference_mode()
    def _probe_rows(self, shape: CacheShape) -> str | None:
        """Decode rows of different lengths, over prompts of different lengths, and compare with each row alone."""
        prompts = self._probe_rows_ids()
        buffer = SlotBuffer(shape, len(prompts), CrossRows(self._shape_of_cross()))
        rows: list[list[int]] = []
        for place, result in enumerate(self.prefill(prompts)):
            extra = [5, 7, 11][:place]
            segments = [result.segment]
            if extra:
                segments.append(self.extend(extra, segments, result.cross))
            buffer.join(segments, result.cross)
            rows.append([*(self.start or ()), *extra])
        for step in range(2):
            tokens = [3 + (5 * step + row) % (self.vocab_size - 3) for row in range(len(rows))]
            buffer.reserve_step()
            together = self.step(buffer, tokens).float()
            buffer.commit_step()
            for row, token in enumerate(tokens):
                rows[row].append(token)
                ids = torch.tensor([prompts[row]], device=self.device)
                alone = self._run(input_ids=ids, decoder_input_ids=torch.tensor([rows[row]], device=self.device))
                if not self._close(together[row], alone[0, -1].float(), shape):
                    return "rows of different lengths in one batch change its logits"
        return None

    def _shape_of_cross(self) -> CacheShape:
        assert self._cross_shape is not None
        return self._cross_shape

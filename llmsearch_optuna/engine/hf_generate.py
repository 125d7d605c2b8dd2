"""The plain path: what the engine does not decode itself goes through ``model.generate``, unchanged and exact.

Rows that could disturb each other never share a batch: batches hold prompts of one length (for encoder-decoder
models also padded ones, once padding is seen to change nothing), and what draws random numbers runs one row at a time
on its own seed. Running out of memory is not handled here.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutput

from llmsearch_optuna.engine.cache.encoder_cache import EncoderCache
from llmsearch_optuna.engine.sampling.after_thinking import is_after_thinking
from llmsearch_optuna.engine.sampling.dry import breakers_of
from llmsearch_optuna.engine.sampling.hf_processors import own_processors
from llmsearch_optuna.engine.sampling.numbers_only import NumbersOnly, not_numbers
from llmsearch_optuna.engine.sampling.stop import StopOnSequences, Stopper
from llmsearch_optuna.errors import DecodingError
from llmsearch_optuna.models.awq_fused import REASON, is_fused, start_afresh

if TYPE_CHECKING:
    from llmsearch_optuna.engine.sampling.params import GenerationParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmsearch_optuna.engine.request import FinishReason
    from llmsearch_optuna.engine.sampling.params import GenerationParams
    from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan

logger = logging.getLogger("llmsearch_optuna.engine")

PlainResult = tuple[tuple[int, ...], "FinishReason", str]

LEFT_CORE = {
    "penalty_alpha": "contrastive search",
    "num_beam_groups": "group beam search",
    "diversity_penalty": "group beam search",
    "constraints": "constrained beam search",
    "force_words_ids": "constrained beam search",
    "dola_layers": "DoLa decoding",
}
SPECIAL_TOKENS = ("bos_token_id", "pad_token_id", "decoder_start_token_id")
ENCODER_BOUND = ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size")
PADDING_TOLERANCE = 1e-3
"""Largest difference, relative to the largest logit, that float32 arithmetic on padded rows explains."""

_ignores_padding: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def generate_plain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_token_ids: Sequence[Sequence[int]],
    params: GenerationParams,
    row_keys: Sequence[int],
    decode_args: Mapping[str, Any] | None = None,
    encoder_cache: EncoderCache | None = None,
    reasoning: ReasoningSpan | None = None,
) -> list[PlainResult | DecodingError]:
    """Decode prompts through ``model.generate``, as if each were alone.

    Args:
        model: Decoder-only or encoder-decoder, in evaluation mode. Its own generation configuration has no say
            beyond its special tokens; ``params`` hold what of it is wanted.
        tokenizer: For texts and stop strings.
        prompts_token_ids: The prompts, unpadded.
        params: One configuration for all of them.
        row_keys: One for each prompt; seeds what draws random numbers.
        decode_args: What the tokenizer's ``decode`` is called with.
        encoder_cache: What an encoder made of prompts earlier, and takes what it makes now; None keeps nothing.
        reasoning: Between which markers the model thinks; None where it does not.

    Returns:
        For each prompt its new tokens (the ending one included), why it ended, and the text; the error of a row whose
        logits were no numbers.

    Raises:
        DecodingError: Hugging Face refuses these parameters or this model cannot apply them.
    """
    reason = refuse_reason(params, model)
    if reason is not None:
        raise DecodingError(reason)
    config = _generation_config(params)
    stopper = Stopper(params, tokenizer, decode_args)
    call = _Call(model, tokenizer, params, config, decode_args or {}, encoder_cache or EncoderCache(0), reasoning)
    results: list[PlainResult | DecodingError | None] = [None] * len(prompts_token_ids)
    with _without_own_defaults(call.holder):
        for rows in call.batches(prompts_token_ids):
            decoded = call.run([prompts_token_ids[row] for row in rows], row_keys[rows[0]])
            for row, (new_tokens, met) in zip(rows, decoded, strict=True):
                results[row] = _finish(stopper, new_tokens, met, call.holder.dtype)
    return [result for result in results if result is not None]


def goes_alone(params: GenerationParams) -> bool:
    """Whether rows are decoded one at a time: what draws random numbers, makes drafts or heals tokens."""
    return params.kind in ("sampling", "beam_sampling", "assisted") or "token_healing" in params


def refuse_reason(params: GenerationParams, model: PreTrainedModel) -> str | None:
    """Say why ``model.generate`` of this transformers cannot apply these parameters; None when it can try."""
    for name, strategy in LEFT_CORE.items():
        if params.get(name) not in (None, 0, 0.0, False, 1):
            return (
                f"{name}={params[name]!r} asks for {strategy}, which left transformers' core in version 5 "
                "(it is code on the hub now); leave it out."
            )
    if params.kind == "assisted" and getattr(_holder(model), "_is_stateful", False):
        return (
            f"{type(model).__name__} keeps a state that cannot be rolled back: assisted decoding is impossible; "
            "leave prompt_lookup_num_tokens, assistant_early_exit and use_mtp out."
        )
    if after := [name for name in params if is_after_thinking(name)]:
        return (
            f"{', '.join(after)} is impossible: model.generate, through which these rows have to go, has one way to "
            "pick tokens for a whole text; leave it out."
        )
    if (asked := cannot_follow(params)) is not None and is_fused(model):
        return f"{asked} is impossible: {REASON}; load the model with fuse_layers=False."
    return None


class _Call:
    """One configuration on one model: which rows may share a batch, and how a batch is run."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        params: GenerationParams,
        config: GenerationConfig,
        decode_args: Mapping[str, Any],
        encoder_cache: EncoderCache,
        reasoning: ReasoningSpan | None,
    ) -> None:
        self.model: Any = model
        self.holder = _holder(model)
        self._tokenizer = tokenizer
        self._params = params
        self._config = config
        self._decode_args = decode_args
        self._encoder_cache = encoder_cache
        self._reasoning = reasoning
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self._breakers = breakers_of(params, tokenizer)
        self._takes_mask = "attention_mask" in inspect.signature(self.holder.forward).parameters
        self._draws = params.kind in ("sampling", "beam_sampling") or (
            params.kind == "assisted" and bool(params.get("do_sample"))
        )

    def batches(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Groups of rows that can be decoded together without changing each other, at most as many as given."""
        if goes_alone(self._params):
            yield from ([row] for row in range(len(prompts)))
            return
        most = max(1, len(prompts) // int(self._params.get("num_beams") or 1))
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        may_pad = self._may_pad(prompts)
        batch: list[int] = []
        for row in order:
            alike = not batch or may_pad or len(prompts[batch[0]]) == len(prompts[row])
            if len(batch) == most or not alike:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def run(self, prompts: Sequence[Sequence[int]], row_key: int) -> list[tuple[list[int], int | None]]:
        """The new tokens of each prompt, and after how many of them the logits were no numbers (None: never).

        Rows that ended early are followed by filling.
        """
        inputs = self._inputs(prompts)
        extra = self._encoder_outputs(prompts)
        start = self._prompt_length(prompts)
        if self._params.stop or self._params.stop_token_sequences:
            stop = StopOnSequences(
                prompt_length=start,
                sequences=self._params.stop_token_sequences,
                stop=self._params.stop,
                tokenizer=self._tokenizer,
                decode_args=self._decode_args,
            )
            extra["stopping_criteria"] = StoppingCriteriaList([stop])
        keys = [row_key] if self._draws else None
        own = own_processors(self._params, self._breakers, keys, prompt_length=start, reasoning=self._reasoning)
        numbers = NumbersOnly(len(prompts))
        extra["logits_processor"] = LogitsProcessorList([numbers, *own])
        if "token_healing" in self._params:
            extra["tokenizer"] = self._tokenizer
        seed = _seed(self._params.generation_seed, row_key)
        with _own_randomness(self.holder.device, seed) if self._draws else contextlib.nullcontext():
            try:
                start_afresh(self.holder)
                output = self.model.generate(**inputs, generation_config=copy.deepcopy(self._config), **extra)
            except (ValueError, NotImplementedError) as refusal:
                raise DecodingError(f"Hugging Face refuses {dict(self._params)!r}: {refusal}") from refusal
        met = [None if length is None else length - start for length in numbers.lengths()]
        return list(zip(output[:, start:].tolist(), met, strict=True))

    def _encoder_outputs(self, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What `generate` need not ask the encoder for; empty for a decoder."""
        states = self._encoder_cache.of(prompts, self._encode) if self._is_encoder_decoder else None
        return {} if states is None else {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}

    @torch.no_grad()
    def _encode(self, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor] | None:
        """The encoder's states of each prompt; None where it makes more than states."""
        made = self.holder.get_encoder()(**self._inputs(prompts), return_dict=True)
        if set(made) != {"last_hidden_state"}:
            return None
        # Copies: a slice would keep the whole batch with its filling alive.
        return [states[: len(prompt)].clone() for states, prompt in zip(made.last_hidden_state, prompts, strict=True)]

    def _prompt_length(self, prompts: Sequence[Sequence[int]]) -> int:
        """What stands before the new tokens in the output: the prompt, or the decoder's one start token."""
        return 1 if self._is_encoder_decoder else len(prompts[0])

    def _inputs(self, prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` [rows, longest], filled on the right."""
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.zeros((len(prompts), longest), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
            mask[row, : len(prompt)] = 1
        device = self.holder.device
        inputs = {"input_ids": ids.to(device)}
        if self._takes_mask:
            inputs["attention_mask"] = mask.to(device)
        return inputs

    def _may_pad(self, prompts: Sequence[Sequence[int]]) -> bool:
        """Whether prompts of different lengths can share a batch; looked at once for each model.

        An encoder is filled on the right, where it numbers nothing and its mask hides it. A decoder would have to be
        filled on the left, in front of what processors look at.
        """
        lengths = {len(prompt) for prompt in prompts}
        if not self._is_encoder_decoder or len(lengths) == 1 or any(name in self._params for name in ENCODER_BOUND):
            return False
        if self.holder not in _ignores_padding:
            _ignores_padding[self.holder] = self._padding_changes_nothing(prompts)
        return _ignores_padding[self.holder]

    def _padding_changes_nothing(self, prompts: Sequence[Sequence[int]]) -> bool:
        """Compare the first logits of the shortest prompt alone and beside the longest."""
        pair = [min(prompts, key=len), max(prompts, key=len)]
        logits = []
        with torch.no_grad():
            for rows in (pair[:1], pair):
                start = torch.zeros((len(rows), 1), dtype=torch.int64, device=self.holder.device)
                logits.append(self.holder(**self._inputs(rows), decoder_input_ids=start).logits[0, -1].cpu().double())
        difference = float((logits[0] - logits[1]).abs().max())
        unchanged = difference <= PADDING_TOLERANCE * float(logits[0].abs().max())
        if not unchanged:
            logger.info("padding changes the logits of %s by %.3g: one length a batch", type(self.model), difference)
        return unchanged


def _finish(
    stopper: Stopper, tokens: Sequence[int], met: int | None, dtype: torch.dtype
) -> PlainResult | DecodingError:
    """Cut a row where it ended; what `generate` wrote behind it is filling, whatever its logits were."""
    state = stopper.replay(tokens)
    if met is not None and met < max(1, len(state.token_ids)):
        return not_numbers(met, dtype)
    return tuple(state.token_ids), state.reason or "length", state.text()


def _generation_config(params: GenerationParams) -> GenerationConfig:
    """Everything that `generate` applies itself; stop strings are ours."""
    values = params.to_hugging_face()
    values.pop("stop_strings", None)
    start = values.get("decoder_start_token_id")
    if isinstance(start, (list, tuple)) and len(start) == 1:
        values["decoder_start_token_id"] = start[0]  # a list would mean one start token a row
    values["max_new_tokens"] = params.max_new_tokens
    return GenerationConfig(**values)


@contextlib.contextmanager
def _without_own_defaults(holder: Any) -> Iterator[None]:
    """Hide the model's generation config: `generate` fills every None from it, even one that was meant."""
    own = holder.generation_config
    bare = copy.deepcopy(own)
    for name, value in vars(GenerationConfig()).items():
        if name not in SPECIAL_TOKENS:
            setattr(bare, name, value)
    holder.generation_config = bare
    try:
        yield
    finally:
        holder.generation_config = own


@contextlib.contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Draw from the default generators of the CPU and of this device, seeded, and put them back as they were."""
    if device.type == "mps":
        kept = torch.mps.get_rng_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            if device.type == "mps":
                torch.mps.set_rng_state(kept)


def _seed(generation_seed: int, row_key: int) -> int:
    digest = hashlib.blake2b(f"{generation_seed}/{row_key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _holder(model: Any) -> Any:
    """The model whose `generate` runs: wrappers such as AutoAWQ's keep it in `.model`."""
    return model if hasattr(model, "generation_config") else model.model


def cannot_follow(params: GenerationParams) -> str | None:
    """What asks for more than one text in the order of its tokens, which a fused model cannot follow; None if nothing.

    Beams change places, drafts are taken back, and guidance reads a second prompt: the layers notice none of it.
    """
    if params.kind in ("beam", "beam_sampling"):
        return f"num_beams={params['num_beams']!r}"
    if params.kind == "assisted":
        return "assisted decoding"
    return f"guidance_scale={params['guidance_scale']!r}" if "guidance_scale" in params else None

"""Every parameter that changes scores, one by one: Hugging Face's own processors on the same logits decide."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    SynthIDTextWatermarkingConfig,
)
from transformers.generation import logits_process

from llmsearch_optuna import search
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.engine.sampling.gumbel import gumbel, row_key
from llmsearch_optuna.engine.sampling.hf_processors import own_processors
from llmsearch_optuna.engine.sampling.params import GenerationParams, model_defaults
from tests.engine.architectures import make
from tests.oracle import hf_generate

SAMPLED = {"do_sample": True, "top_k": 0}
TEXTS = ["How many apples", "Anna asks Ben whether", "T"]
BIAS = [[[40, 41], 6.0], [[50], 4.0], [[60], -9.0]]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "temperature": ("TemperatureLogitsWarper", {**SAMPLED, "temperature": 2.3}),
    "top_k": ("TopKLogitsWarper", {"do_sample": True, "top_k": 3}),
    "top_p": ("TopPLogitsWarper", {**SAMPLED, "temperature": 2.0, "top_p": 0.5}),
    "min_p": ("MinPLogitsWarper", {**SAMPLED, "temperature": 2.0, "min_p": 0.2}),
    "top_h": ("TopHLogitsWarper", {**SAMPLED, "temperature": 2.0, "top_h": 0.3}),
    "typical_p": ("TypicalLogitsWarper", {**SAMPLED, "temperature": 2.0, "typical_p": 0.3}),
    "epsilon_cutoff": ("EpsilonLogitsWarper", {**SAMPLED, "temperature": 2.0, "epsilon_cutoff": 0.05}),
    "eta_cutoff": ("EtaLogitsWarper", {**SAMPLED, "temperature": 2.0, "eta_cutoff": 0.2}),
    "top_n_sigma": ("TopNSigmaLogitsWarper", {**SAMPLED, "temperature": 2.0, "top_n_sigma": 0.8}),
    "tfs": ("TailFreeLogitsWarper", {**SAMPLED, "temperature": 2.0, "tfs": 0.6}),
    "top_a": ("TopALogitsWarper", {**SAMPLED, "temperature": 2.0, "top_a": 0.5}),
    "mirostat_mode": ("MirostatLogitsWarper", {**SAMPLED, "mirostat_mode": 2, "mirostat_tau": 0.7}),
    "repetition_penalty": ("RepetitionPenaltyLogitsProcessor", {"repetition_penalty": 1.8}),
    "encoder_repetition_penalty": ("EncoderRepetitionPenaltyLogitsProcessor", {"encoder_repetition_penalty": 5.0}),
    "no_repeat_ngram_size": ("NoRepeatNGramLogitsProcessor", {"no_repeat_ngram_size": 1}),
    "encoder_no_repeat_ngram_size": (
        "EncoderNoRepeatNGramLogitsProcessor",
        {"encoder_no_repeat_ngram_size": 1, "sequence_bias": [[[59], 30.0], [[136], 29.0]]},
    ),  # the bias pulls to tokens of the prompts
    "bad_words_ids": ("NoBadWordsLogitsProcessor", {"bad_words_ids": [[n] for n in range(4, 199, 3)]}),
    "sequence_bias": ("SequenceBiasLogitsProcessor", {"sequence_bias": BIAS}),
    "min_length": ("MinLengthLogitsProcessor", {"min_length": 10}),
    "min_new_tokens": ("MinNewTokensLengthLogitsProcessor", {"min_new_tokens": 9}),
    "forced_bos_token_id": ("ForcedBOSTokenLogitsProcessor", {"forced_bos_token_id": 77}),
    "forced_eos_token_id": ("ForcedEOSTokenLogitsProcessor", {"forced_eos_token_id": 5}),
    "remove_invalid_values": ("InfNanRemoveLogitsProcessor", {"remove_invalid_values": True}),
    "exponential_decay_length_penalty": (
        "ExponentialDecayLengthPenalty",
        {"exponential_decay_length_penalty": (2, 2.5)},
    ),
    "suppress_tokens": ("SuppressTokensLogitsProcessor", {"suppress_tokens": list(range(4, 199, 3))}),
    "begin_suppress_tokens": (
        "SuppressTokensAtBeginLogitsProcessor",
        {"begin_suppress_tokens": list(range(4, 199, 2))},
    ),
    "guidance_scale": ("UnbatchedClassifierFreeGuidanceLogitsProcessor", {"guidance_scale": 4.0}),
    "watermarking_config": ("WatermarkLogitsProcessor", {"watermarking_config": {"bias": 9.0, "greenlist_ratio": 0.3}}),
    "renormalize_logits": (
        "LogitNormalization",
        {"num_beams": 2, "renormalize_logits": True, "repetition_penalty": 2.0},
    ),
}
"""By parameter: the processor that applies it, and values under which it matters to the tiny model."""

LISTS_END = list(range(4, 199, 7))  # ends come soon where these end a text
ENDING = ("min_length", "min_new_tokens", "exponential_decay_length_penalty")
NO_EFFECT_ON_FINITE_SCORES = ("remove_invalid_values",)

NOT_HERE = {
    "PrefixConstrainedLogitsProcessor": "prefix_allowed_tokens_fn is a function and no generation parameter",
    "SynthIDTextWatermarkLogitsProcessor": "another form of watermarking_config; takes the same path",
    "ClassifierFreeGuidanceLogitsProcessor": "MusicGen's guidance on doubled batches",
    "WhisperTimeStampLogitsProcessor": "speech",
    "WhisperNoSpeechDetection": "speech",
    "AlternatingCodebooksLogitsProcessor": "speech",
    "BarkEosPrioritizerLogitsProcessor": "speech",
    "DiaClassifierFreeGuidanceLogitsProcessor": "speech",
    "DiaEOSChannelFilterLogitsProcessor": "speech",
    "DiaEOSDelayPatternLogitsProcessor": "speech",
}


def asked(name: str) -> dict[str, Any]:
    ends = {"eos_token_id": LISTS_END} if name in ENDING else {}
    return {"max_new_tokens": 10, **ends, **CASES[name][1]}


def processors_of(model: Any, ids: list[int], params: GenerationParams) -> LogitsProcessorList:
    """What `model.generate` would apply; for an encoder-decoder model `ids` are the encoder's."""
    captured: list[LogitsProcessorList] = []

    def capture(model: Any, input_ids: torch.Tensor, logits_processor: LogitsProcessorList, **_: Any) -> Any:
        captured.append(logits_processor)
        return input_ids

    values = {**params.to_hugging_face(model_defaults(model)), "num_beams": 1}
    values = {name: value for name, value in values.items() if name not in ("length_penalty", "early_stopping")}
    prompt = torch.tensor([ids])
    own = own_processors(params)
    model.generate(
        prompt, attention_mask=torch.ones_like(prompt), custom_generate=capture, logits_processor=own, **values
    )
    return captured[0]


def expected(model: LlamaForCausalLM, prompt: list[int], params: GenerationParams) -> list[int]:
    """One forward a token, Hugging Face's processors on its logits, our noise where something is sampled."""
    processors, ids = processors_of(model, prompt, params), list(prompt)
    for step in range(params.max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[:, -1].float()
            scores = processors(torch.tensor([ids]), logits)[0].double().log_softmax(-1).numpy()
        if params.get("do_sample"):
            noise = gumbel(0, [row_key(prompt)], [step], np.arange(len(scores))[None])[0]
            scores = np.where(np.isfinite(scores), scores + noise, -np.inf)
        ids.append(int(np.argmax(scores)))
        if ids[-1] in params.eos_token_ids:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", CASES)
def test_the_engine_decodes_as_hugging_faces_processors_say(
    name: str, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    values = asked(name)
    prompts = [tiny_tokenizer(text)["input_ids"] for text in TEXTS]
    params = GenerationParams.of(values, model_defaults(tiny_llama))
    assert params.inert == ()
    applied = {type(processor).__name__ for processor in processors_of(tiny_llama, prompts[0], params)}
    assert CASES[name][0] in applied
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=2)
    for _ in range(2):  # once more from what is known
        found = [list(c.token_ids) for c in engine.generate(TEXTS, values)]
        if values.get("num_beams", 1) == 1:
            assert found == [expected(tiny_llama, prompt, params) for prompt in prompts]
        if not values.get("do_sample"):
            assert found == [hf_generate(tiny_llama, prompt, **_for_generate(values)) for prompt in prompts]
    without = {k: v for k, v in values.items() if k != name} | ({"mirostat_mode": 0} if "mirostat" in name else {})
    others = [list(c.token_ids) for c in engine.generate(TEXTS, without)]
    assert (others == found) == (name in NO_EFFECT_ON_FINITE_SCORES)


seq2seq = cache(make)
SEQ2SEQ = [name for name in CASES if name not in ("watermarking_config", "guidance_scale")]


@pytest.mark.parametrize("architecture", ["t5", "bart"])
@pytest.mark.parametrize("name", [name for name in SEQ2SEQ if not CASES[name][1].get("do_sample")])
def test_encoder_decoder_models_too(architecture: str, name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = seq2seq(architecture)
    values = asked(name)
    found = Engine(model, tiny_tokenizer, batch_size=2).generate(TEXTS, values)
    for text, completion in zip(TEXTS, found, strict=True):
        ids = tiny_tokenizer(text)["input_ids"]
        assert list(completion.token_ids) == hf_generate(model, ids, **_for_generate(values))


def test_texts_are_marked_by_synthid_too(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    values = {"max_new_tokens": 12, "do_sample": True, "top_k": 0, "eos_token_id": None}
    mark = SynthIDTextWatermarkingConfig(ngram_len=3, keys=[654, 400, 836, 123], sampling_table_size=2**10)
    engine = Engine(tiny_llama, tiny_tokenizer)
    marked, again = (engine.generate(TEXTS, {**values, "watermarking_config": given}) for given in (mark, vars(mark)))
    assert marked == again
    detector = mark.construct_processor(tiny_llama.config.vocab_size, "cpu")

    def strength(texts: Sequence[Completion]) -> float:
        ids = torch.tensor([completion.token_ids for completion in texts])
        return float(detector.compute_g_values(ids).float().mean())

    assert strength(marked) > 0.6
    assert strength(engine.generate(TEXTS, values)) < 0.6


def test_each_can_be_searched(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [{"prompt": text, "reference": "a"} for text in TEXTS]
    space = [{**asked(name), "max_new_tokens": 5} for name in CASES]
    result = search(
        Engine(tiny_llama, tiny_tokenizer), rows, space, holdout=0.3, metric="contains", sampler="grid", pruner="none",
        n_trials=len(space) + 2, progress=False, storage=f"sqlite:///{tmp_path}/s.db", study_name="s",
    )  # fmt: skip
    assert [t.user_attrs.get("fail_reason") for t in result.trials] == [None] * len(result.trials)
    tried = [set(result.trial_params(t.number)) for t in result.trials]
    assert all(any(name in names for names in tried) for name in CASES)


def test_every_processor_of_this_transformers_is_here_or_has_a_reason() -> None:
    there = {
        name
        for name, found in vars(logits_process).items()
        if inspect.isclass(found) and issubclass(found, LogitsProcessor) and found is not LogitsProcessor
    }
    ours = {"TopNSigmaLogitsWarper", "TailFreeLogitsWarper", "TopALogitsWarper", "MirostatLogitsWarper"}
    assert there == ({processor for processor, _ in CASES.values()} - ours) | set(NOT_HERE)


def _for_generate(values: dict[str, Any]) -> dict[str, Any]:
    """As a generation config holds them."""
    if "watermarking_config" in values:
        from transformers import WatermarkingConfig

        return {**values, "watermarking_config": WatermarkingConfig(**values["watermarking_config"])}
    return values

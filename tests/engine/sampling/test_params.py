"""One configuration, one canonical form: checked as Hugging Face checks, without what has no effect."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaForCausalLM
from transformers.generation import GenerationMode, SynthIDTextWatermarkingConfig, WatermarkingConfig

from llmsearch_optuna.engine.sampling.param_specs import NAMES_BESIDE_HUGGING_FACE, OWN_NAMES, PARAM_SPECS, known_names
from llmsearch_optuna.engine.sampling.params import GenerationParams, check_name, check_value, model_defaults
from llmsearch_optuna.errors import InputError


def of(**values: Any) -> GenerationParams:
    return GenerationParams.of({"max_new_tokens": 16, **values})


def canonical(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in of(**values).canonical.items() if name != "max_new_tokens"}


# ---- names and values -----------------------------------------------------------------------------------------------


def test_every_name_of_this_transformers_has_a_rule() -> None:
    theirs = {name for name in GenerationConfig().to_dict() if not name.startswith("_")} - {"transformers_version"}
    assert known_names() == theirs | set(NAMES_BESIDE_HUGGING_FACE)
    assert known_names() == set(PARAM_SPECS)


@pytest.mark.parametrize(
    ("name", "nearest"), [("temprature", "temperature"), ("max_tokens", "max_new_tokens"), ("topp", "top_p")]
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"{name!r} is not a generation parameter. Did you mean {nearest!r}"):
        check_name(name)
    with pytest.raises(InputError, match=nearest):
        of(**{name: 1})


BAD_VALUES: list[tuple[str, Any]] = [
    ("max_new_tokens", 0),
    ("max_new_tokens", 1.5),
    ("max_new_tokens", True),
    ("min_new_tokens", -1),
    ("max_length", 50),
    ("max_time", 2.0),
    ("temperature", 0),
    ("temperature", -0.5),
    ("temperature", "0.7"),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("top_k", -1),
    ("top_k", 5.0),
    ("top_k", True),
    ("top_p", 1.01),
    ("top_p", -0.1),
    ("min_p", 1.1),
    ("min_p", -0.1),
    ("top_h", 0.0),
    ("top_h", 1.5),
    ("typical_p", 0.0),
    ("typical_p", 1.2),
    ("epsilon_cutoff", 1.0),
    ("eta_cutoff", -0.1),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", -1.2),
    ("encoder_repetition_penalty", 0),
    ("no_repeat_ngram_size", -1),
    ("no_repeat_ngram_size", 1.5),
    ("num_beams", 0),
    ("early_stopping", "always"),
    ("do_sample", 1),
    ("length_penalty", "long"),
    ("bad_words_ids", [1, 2]),
    ("bad_words_ids", [[]]),
    ("bad_words_ids", [[-1]]),
    ("sequence_bias", {(1,): "x"}),
    ("sequence_bias", {(): 1.0}),
    ("sequence_bias", {(1,): float("-inf")}),
    ("sequence_bias", [[[1, 2]]]),
    ("suppress_tokens", [1.5]),
    ("suppress_tokens", "12"),
    ("eos_token_id", -1),
    ("forced_bos_token_id", [1]),
    ("exponential_decay_length_penalty", 5),
    ("exponential_decay_length_penalty", (5, -1.0)),
    ("stop", ""),
    ("stop", ["a", 3]),
    ("stop_strings", [""]),
    ("stop_token_sequences", [13, 13]),
    ("stop_token_sequences", [[]]),
    ("generation_seed", -1),
    ("tfs", 0.0),
    ("tfs", 1.1),
    ("top_a", -0.1),
    ("top_n_sigma", 0),
    ("num_return_sequences", 2),
    ("output_scores", True),
    ("return_dict_in_generate", True),
    ("cache_implementation", "paged"),
    ("cache_implementation", "huge"),
    ("prompt_lookup_num_tokens", 0),
    ("num_assistant_tokens_schedule", "often"),
    pytest.param("watermarking_config", object(), id="watermarking_config-object"),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=lambda item: str(item))
def test_an_impossible_value_is_refused_with_name_value_and_what_is_allowed(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=r"is not possible: it must be .+\.") as raised:
        GenerationParams.of({name: value})
    assert str(raised.value).startswith(f"{name}={value!r}")


@pytest.mark.parametrize(
    "values",
    [
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beams": 4, "diversity_penalty": 0.5},
        {"num_beams": 4, "constraints": ["x"]},
        {"num_beams": 4, "force_words_ids": [[3]]},
        {"dola_layers": "high"},
    ],
    ids=str,
)
def test_strategies_that_left_the_core_are_refused_with_the_reason(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="left transformers' core in version 5"):
        of(**values)


def test_their_neutral_values_are_nothing() -> None:
    neutral = {"num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": 0.0, "constraints": None}
    assert of(**neutral, num_return_sequences=1, output_scores=False) == of()


def test_what_hugging_face_refuses_is_refused() -> None:
    with pytest.raises(InputError, match="transformers refuses"):
        of(forced_eos_token_id=2, suppress_tokens=[2, 3])
    with pytest.raises(InputError, match="end-of-sequence"):
        of(bad_words_ids=[[2]], eos_token_id=2)
    with pytest.raises(InputError, match="eos_token_id"):
        of(exponential_decay_length_penalty=(3, 1.1))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("assistant_model", "prompt_lookup_num_tokens"),
        ("stopping_criteria", "stop_token_sequences"),
        ("streamer", "debug"),
    ],
)
def test_arguments_of_generate_are_told_apart_from_parameters(name: str, advice: str) -> None:
    with pytest.raises(
        InputError, match=f"{name!r} is an argument of generate and no generation parameter: .*{advice}"
    ):
        of(**{name: object()})


def test_max_new_tokens_is_asked_for_where_it_is_needed() -> None:
    without = GenerationParams.of({"do_sample": True})
    with pytest.raises(InputError, match="max_new_tokens is missing"):
        _ = without.max_new_tokens
    assert of().max_new_tokens == 16


def test_numbers_of_other_libraries_are_numbers() -> None:
    assert of(do_sample=True, top_k=np.int64(5), temperature=np.float32(0.5)) == of(
        do_sample=True, top_k=5, temperature=0.5
    )
    assert of(eos_token_id=torch.tensor([7, 1])) == of(eos_token_id=[1, 7])
    assert of(stop_token_sequences=np.array([[1, 2]])) == of(stop_token_sequences=[(1, 2)])
    assert of(repetition_penalty=2) == of(repetition_penalty=2.0)


def test_check_value_gives_the_canonical_value() -> None:
    assert check_value("top_p", 0.3 - 1e-15) == 0.3
    assert check_value("stop", "x") == ("x",)
    assert check_value("temperature", None) is None


# ---- strategy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind", "mode"),
    [
        ({}, "greedy", GenerationMode.GREEDY_SEARCH),
        ({"do_sample": True}, "sampling", GenerationMode.SAMPLE),
        ({"num_beams": 3}, "beam", GenerationMode.BEAM_SEARCH),
        ({"num_beams": 3, "do_sample": True}, "beam_sampling", GenerationMode.BEAM_SAMPLE),
        ({"prompt_lookup_num_tokens": 3}, "assisted", GenerationMode.ASSISTED_GENERATION),
        ({"assistant_early_exit": 3, "do_sample": True}, "assisted", GenerationMode.ASSISTED_GENERATION),
        ({"num_beams": 1, "use_mtp": True}, "assisted", GenerationMode.ASSISTED_GENERATION),
        ({"num_beams": 2, "prompt_lookup_num_tokens": 3}, "beam", GenerationMode.BEAM_SEARCH),
    ],
    ids=str,
)
def test_kind_is_hugging_faces_mode(values: dict[str, Any], kind: str, mode: GenerationMode) -> None:
    assert of(**values).kind == kind
    assert GenerationConfig(**values).get_generation_mode() == mode


# ---- canonical form -------------------------------------------------------------------------------------------------

SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # nothing is sampled
    ({"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.5, "top_h": 0.3}, {}),
    ({"epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "tfs": 0.9, "top_a": 0.1, "top_n_sigma": 1.0}, {}),
    ({"generation_seed": 3}, {}),
    ({"num_beams": 3, "temperature": 0.7, "generation_seed": 3}, {"num_beams": 3}),
    # neutral values
    ({"do_sample": False, "num_beams": 1}, {}),
    ({"do_sample": True, "temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1}, {"do_sample": True}),
    ({"do_sample": True, "epsilon_cutoff": 0.0, "eta_cutoff": 0, "tfs": 1.0, "top_a": 0}, {"do_sample": True}),
    ({"do_sample": True, "generation_seed": 0}, {"do_sample": True}),
    ({"repetition_penalty": 1.0, "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0}, {}),
    ({"encoder_no_repeat_ngram_size": 0, "guidance_scale": 1.0, "remove_invalid_values": False}, {}),
    ({"suppress_tokens": [], "begin_suppress_tokens": [], "bad_words_ids": [], "stop": []}, {}),
    ({"sequence_bias": {(3,): 0.0}, "stop_token_sequences": [], "token_healing": False}, {}),
    ({"min_new_tokens": 0, "min_length": 0, "eos_token_id": 2}, {"eos_token_id": 2}),
    # top-k is 50 where it is not given
    ({"do_sample": True, "top_k": 50}, {"do_sample": True}),
    ({"do_sample": True, "top_k": None}, {"do_sample": True, "top_k": 0}),
    # beams
    ({"length_penalty": 2.0, "early_stopping": True, "renormalize_logits": True}, {}),
    ({"num_beams": 2, "length_penalty": 1.0, "early_stopping": False}, {"num_beams": 2}),
    ({"num_beams": 2, "prompt_lookup_num_tokens": 3, "use_mtp": True}, {"num_beams": 2}),
    # assisted
    ({"num_assistant_tokens": 5, "assistant_confidence_threshold": 0.3, "max_matching_ngram_size": 2}, {}),
    ({"num_assistant_tokens_schedule": "constant", "assistant_ensemble_weight": 0.5}, {}),
    # what others make void
    ({"min_length": 3}, {}),
    ({"min_new_tokens": 3, "min_length": 3}, {"min_new_tokens": 3}),
    ({"min_new_tokens": 3, "min_length": 9, "eos_token_id": 2}, {"min_new_tokens": 3, "eos_token_id": 2}),
    ({"min_new_tokens": 99, "eos_token_id": 2}, {"min_new_tokens": 16, "eos_token_id": 2}),
    ({"exponential_decay_length_penalty": (15, 1.2), "eos_token_id": 2}, {"eos_token_id": 2}),
    ({"exponential_decay_length_penalty": (5, 1.0), "eos_token_id": 2}, {"eos_token_id": 2}),
    ({"bad_words_ids": [[2], [3]], "eos_token_id": 2}, {"bad_words_ids": [[3]], "eos_token_id": 2}),
    # speed and memory
    ({"use_cache": False, "cache_implementation": "static", "cache_config": {"a": 1}, "max_cache_len": 99}, {}),
    ({"disable_compile": True, "prefill_chunk_size": 9, "low_memory": True, "pad_token_id": 7}, {}),
    # other spellings
    ({"eos_token_id": 2}, {"eos_token_id": [2]}),
    ({"eos_token_id": [5, 2, 5]}, {"eos_token_id": (2, 5)}),
    ({"stop_strings": "a"}, {"stop": ["a"]}),
    ({"stop": ["b", "a", "b"]}, {"stop": ["a", "b"]}),
    ({"stop": ["a"], "stop_strings": "a"}, {"stop": "a"}),
    ({"bad_words_ids": [[3, 4], [1]]}, {"bad_words_ids": ((1,), (3, 4), (1,))}),
    ({"sequence_bias": {(3,): 1, (1, 2): 0.5}}, {"sequence_bias": [[[1, 2], 0.5], [(3,), 1.0]]}),
    ({"repetition_penalty": 1.1 + 1e-14}, {"repetition_penalty": 1.1}),
    (
        {"watermarking_config": WatermarkingConfig(bias=3.0)},
        {"watermarking_config": WatermarkingConfig(bias=3.0).to_dict()},
    ),
    (
        {"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[7, 9])},
        {"watermarking_config": {"ngram_len": 3, "keys": [7, 9], "context_history_size": 1024}},
    ),
]


@pytest.mark.parametrize(("values", "other"), SAME, ids=str)
def test_settings_that_decode_the_same_are_one(values: dict[str, Any], other: dict[str, Any]) -> None:
    assert of(**values).canonical == of(**other).canonical
    assert of(**values).fingerprint == of(**other).fingerprint
    assert of(**values) == of(**other)
    assert len({of(**values), of(**other)}) == 1


DIFFERENT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"do_sample": True}, {}),
    ({"do_sample": True}, {"do_sample": True, "top_k": 0}),
    ({"do_sample": True, "temperature": 0.7}, {"do_sample": True, "temperature": 0.70001}),
    ({"do_sample": True, "generation_seed": 1}, {"do_sample": True}),
    ({"do_sample": True, "num_beams": 2, "generation_seed": 1}, {"do_sample": True, "num_beams": 2}),
    ({"num_beams": 2, "length_penalty": 2.0}, {"num_beams": 2}),
    ({"num_beams": 2, "early_stopping": "never"}, {"num_beams": 2}),
    ({"stop": "a"}, {}),
    ({"eos_token_id": 2}, {}),
    ({"max_new_tokens": 17}, {}),
    ({"cache_implementation": "quantized"}, {}),
    ({"cache_implementation": "quantized", "cache_config": {"nbits": 2}}, {"cache_implementation": "quantized"}),
    ({"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2}, {"prompt_lookup_num_tokens": 3}),
    ({"exponential_decay_length_penalty": (14, 1.2), "eos_token_id": 2}, {"eos_token_id": 2}),
]


@pytest.mark.parametrize(("values", "other"), DIFFERENT, ids=str)
def test_settings_that_decode_differently_are_two(values: dict[str, Any], other: dict[str, Any]) -> None:
    assert of(**values) != of(**other)
    assert of(**values).fingerprint != of(**other).fingerprint


def test_fingerprints_never_change() -> None:
    """Studies are resumed by them."""
    params = of(do_sample=True, temperature=0.7, stop=["\n\n"], eos_token_id=[2, 5], sequence_bias={(1,): 0.5})
    assert params.to_json() == (
        '{"do_sample":true,"eos_token_id":[2,5],"max_new_tokens":16,"sequence_bias":[[[1],0.5]],'
        '"stop":["\\n\\n"],"temperature":0.7,"top_k":50}'
    )
    assert params.fingerprint == "a26359c4a5f2a5c102f1a20ab37f473edeff6ee73c55ef19d50cde5741862414"


@pytest.mark.parametrize(
    ("values", "inert"),
    [
        ({"temperature": 0.7, "top_k": 50, "generation_seed": 1}, ("generation_seed", "temperature", "top_k")),
        ({"do_sample": True, "temperature": 0.7, "length_penalty": 2.0}, ("length_penalty",)),
        ({"do_sample": True, "temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}, ()),
        ({"do_sample": True, "top_k": 0}, ()),
        ({"do_sample": False, "num_beams": 1, "temperature": 1.0, "pad_token_id": 3}, ()),
        ({"num_beams": 2, "length_penalty": 0.5, "num_assistant_tokens": 3}, ("num_assistant_tokens",)),
        ({"min_length": 4}, ("min_length",)),
        ({"use_cache": True, "disable_compile": True}, ("disable_compile", "use_cache")),
        ({"temperature": None}, ()),
    ],
    ids=str,
)
def test_what_has_no_effect_is_named(values: dict[str, Any], inert: tuple[str, ...]) -> None:
    assert of(**values).inert == inert


def test_inherited_values_are_not_complained_about() -> None:
    params = GenerationParams.of({"do_sample": False, "max_new_tokens": 4}, {"temperature": 0.6, "top_p": 0.9})
    assert params.inert == ()
    assert params.kind == "greedy"


# ---- defaults -------------------------------------------------------------------------------------------------------


def test_values_lie_over_defaults() -> None:
    defaults = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 3], "max_length": 4096}
    params = GenerationParams.of({"max_new_tokens": 4, "temperature": 0.8}, defaults)
    assert params.canonical == {
        "do_sample": True,
        "eos_token_id": [2, 3],
        "max_new_tokens": 4,
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.9,
    }
    assert params.given == {"max_new_tokens": 4, "temperature": 0.8}


def test_none_switches_a_default_off() -> None:
    defaults = {"do_sample": True, "temperature": 0.6, "eos_token_id": 2, "top_k": 20}
    params = GenerationParams.of(
        {"max_new_tokens": 4, "temperature": None, "eos_token_id": None, "top_k": None}, defaults
    )
    assert params.canonical == {"do_sample": True, "max_new_tokens": 4, "top_k": 0}
    assert params.eos_token_ids == ()


def test_defaults_that_hugging_face_would_ignore_are_ignored() -> None:
    odd = {"temperature": 0.0, "transformers_version": "4.1", "output_scores": True, "num_return_sequences": 3, "x": 1}
    assert GenerationParams.of({"max_new_tokens": 4}, odd) == GenerationParams.of({"max_new_tokens": 4})
    with pytest.raises(InputError, match=r"model's generation configuration: temperature=0.0"):
        GenerationParams.of({"max_new_tokens": 4, "do_sample": True}, odd)


def test_model_defaults(tiny_llama: LlamaForCausalLM) -> None:
    assert model_defaults(tiny_llama) == {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = GenerationConfig(
        do_sample=True, temperature=0.6, max_length=99, stop_strings=["x"], return_dict_in_generate=True
    )
    model = SimpleNamespace(generation_config=config)
    assert model_defaults(model) == {"do_sample": True, "temperature": 0.6, "stop_strings": ["x"]}
    assert model_defaults(SimpleNamespace(model=model)) == model_defaults(model)
    assert model_defaults(SimpleNamespace()) == {}
    assert GenerationParams.of({"max_new_tokens": 3}, model_defaults(model)).stop == ("x",)


def test_parameters_that_were_made_before_are_complete() -> None:
    params = of(do_sample=True)
    assert GenerationParams.of(params, {"temperature": 0.5}) is params


# ---- round trips ----------------------------------------------------------------------------------------------------

some_values = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 50)},
    optional={
        "do_sample": st.booleans(),
        "num_beams": st.integers(1, 3),
        "temperature": st.sampled_from([None, 0.5, 1.0, 1.5]),
        "top_k": st.sampled_from([None, 0, 5, 50]),
        "top_p": st.sampled_from([None, 0.5, 1.0]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "tfs": st.sampled_from([0.5, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.2]),
        "length_penalty": st.sampled_from([0.5, 1.0]),
        "early_stopping": st.sampled_from([True, False, "never"]),
        "eos_token_id": st.sampled_from([None, 2, [2, 3]]),
        "min_new_tokens": st.integers(0, 60),
        "min_length": st.integers(0, 60),
        "bad_words_ids": st.just([[2], [5, 6]]),
        "sequence_bias": st.just({(4,): 0.5, (5, 6): -1.0}),
        "stop": st.sampled_from(["x", ["x", "y"]]),
        "stop_token_sequences": st.just([[1, 2], [3]]),
        "generation_seed": st.integers(0, 2),
        "prompt_lookup_num_tokens": st.integers(1, 3),
        "num_assistant_tokens": st.integers(1, 3),
        "pad_token_id": st.just(0),
        "use_cache": st.booleans(),
        "watermarking_config": st.just({"greenlist_ratio": 0.25}),
    },
)


@given(values=some_values, defaults=some_values)
def test_round_trips(values: dict[str, Any], defaults: dict[str, Any]) -> None:
    params = GenerationParams.of(values, defaults)
    assert GenerationParams.of(params.canonical) == params
    assert GenerationParams.from_json(params.to_json()) == params
    assert GenerationParams.of(params.explicit(defaults), defaults) == params
    assert dict(params) == params.canonical == json.loads(json.dumps(params.canonical))
    assert all(params[name] == value for name, value in params.items())


@given(values=some_values, defaults=some_values)
def test_generate_is_told_to_decode_like_that(values: dict[str, Any], defaults: dict[str, Any]) -> None:
    """As ``generate`` merges: its arguments, None included, over the model's configuration."""
    params = GenerationParams.of(values, defaults)
    told = params.to_hugging_face(defaults)
    assert not set(told) & set(OWN_NAMES)
    theirs = {name: value for name, value in defaults.items() if name not in OWN_NAMES and value is not None}
    if "stop" in defaults:
        theirs["stop_strings"] = defaults["stop"]
    merged = GenerationParams.of(told, theirs)
    ours = {name: value for name, value in params.canonical.items() if name not in OWN_NAMES or name == "stop"}
    assert merged == GenerationParams.of(ours)


@given(values=some_values)
def test_a_generation_config_can_be_saved(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hugging Face refuses to save a configuration with parameters that contradict each other."""
    params = GenerationParams.of(values)
    folder = tmp_path_factory.mktemp("config")
    GenerationConfig(**params.to_hugging_face()).save_pretrained(folder)
    loaded = GenerationConfig.from_pretrained(folder)
    again = GenerationParams.of(model_defaults(SimpleNamespace(generation_config=loaded)))
    ours = {name: value for name, value in params.canonical.items() if name not in OWN_NAMES or name == "stop"}
    assert again == GenerationParams.of(ours)


def test_copies_do_not_share() -> None:
    params = of(eos_token_id=[2, 3])
    params.canonical["eos_token_id"].append(9)
    params["eos_token_id"].append(9)
    assert params.eos_token_ids == (2, 3)
    with pytest.raises(TypeError):
        params["top_k"] = 3  # type: ignore[index]


def test_hugging_faces_hints_stay_quiet(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    with caplog.at_level(logging.INFO, logger="transformers"):
        of(temperature=0.7, length_penalty=2.0, pad_token_id=-1, cache_implementation="static")
    assert not caplog.records
    assert not list(recwarn)


def test_equal_in_every_process() -> None:
    """Neither order nor Python's hash seed has a part in it."""
    code = (
        "from llmsearch_optuna.engine.sampling.params import GenerationParams as P;"
        "print(P.of({'stop': ['b', 'a'], 'top_p': .9, 'do_sample': True, 'max_new_tokens': 4}).fingerprint)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    expected = GenerationParams.of({"max_new_tokens": 4, "do_sample": True, "top_p": 0.9, "stop": ["a", "b"]})
    assert found.stdout.strip() == expected.fingerprint

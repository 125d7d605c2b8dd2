"""One configuration: its fingerprint, what it makes of defaults, and what Hugging Face is told of it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaForCausalLM

from llmsearch_optuna.engine.sampling.param_specs import OWN_NAMES
from llmsearch_optuna.engine.sampling.params import GenerationParams, model_defaults
from llmsearch_optuna.errors import InputError


def of(**values: Any) -> GenerationParams:
    return GenerationParams.of({"max_new_tokens": 16, **values})


def test_max_new_tokens_is_asked_for_where_it_is_needed() -> None:
    without = GenerationParams.of({"do_sample": True})
    with pytest.raises(InputError, match="max_new_tokens is missing"):
        _ = without.max_new_tokens
    assert of().max_new_tokens == 16


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

"""Names and values of parameters, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from llmsearch_optuna.engine.sampling.param_specs import NAMES_BESIDE_HUGGING_FACE, PARAM_SPECS, known_names
from llmsearch_optuna.engine.sampling.params import GenerationParams, check_name, check_value
from llmsearch_optuna.errors import InputError


def of(**values: Any) -> GenerationParams:
    return GenerationParams.of({"max_new_tokens": 16, **values})


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

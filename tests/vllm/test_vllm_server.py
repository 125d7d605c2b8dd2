"""A vLLM server with our logits processor: our server backend finds it, and gets our own engine's texts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.backends.server.dialect import VLLM_BY_ROW
from llmsearch_optuna.backends.vllm.sampling_arguments import PROCESSOR
from llmsearch_optuna.demo.model import demo_model_folder
from llmsearch_optuna.errors import DecodingError
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


def test_what_the_server_cannot_do_is_refused(url: str) -> None:
    backend = ServerBackend(url)
    beams, odd = requests("beams", {}, num_beams=2)[0], requests("odd", {}, dry_multiplier=1.0)[0]
    assert backend.refusal(beams.params) is None
    assert "dry_multiplier" in str(backend.refusal(odd.params))
    with pytest.raises(DecodingError, match="dry_multiplier"):
        backend.generate(["x"], odd.params)

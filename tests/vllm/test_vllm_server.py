"""A vLLM server with our logits processor: our server backend finds it, and gets our own engine's texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmsearch_optuna import check, confirm
from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.backends.server.dialect import VLLM, VLLM_BY_ROW
from llmsearch_optuna.backends.server.probe import effects, repetition
from llmsearch_optuna.backends.vllm.sampling_arguments import PROCESSOR
from llmsearch_optuna.demo.model import demo_model_folder
from llmsearch_optuna.errors import DecodingError
from tests.backends.decoding import decoded
from tests.servers.command_line import checked, command, confirmed, write_study_file
from tests.servers.parameters import ENDS, ends_of, questions
from tests.servers.programs import vllm
from tests.servers.served_study import TASK, dialogues, interrupted, study, told
from tests.servers.server_process import ServerProcess
from tests.vllm.setups import NEEDS_VLLM, SETTINGS, own_engine, requests

pytestmark = NEEDS_VLLM


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with vllm("--logits-processors", PROCESSOR) as running:
        yield running


@pytest.fixture
def url(server: ServerProcess) -> str:
    return server.url


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


NOT_TRIED = {"reasoning_effort", "thinking_budget", "thinking_token_budget"}  # the model does not think


def test_every_parameter_of_vllms_own_dialect_does_something(url: str) -> None:
    backend = ServerBackend(url)
    backend.identity = replace(backend.identity, dialect=VLLM)
    tried = set(VLLM.fields) - NOT_TRIED
    assert tried <= set(ENDS)
    rows = questions({})
    found = effects(backend, rows, [ends_of(name, {}) for name in sorted(tried)])
    print(*(f"{name}: {effect}" for name, effect in found.items()), sep="\n")
    print(repetition(backend, rows, rows[0].params))
    assert {name: effect for name, effect in found.items() if effect != "has an effect"} == {}


def test_what_the_server_cannot_do_is_refused(url: str) -> None:
    backend = ServerBackend(url)
    beams, odd = requests("beams", {}, num_beams=2)[0], requests("odd", {}, dry_multiplier=1.0)[0]
    assert backend.refusal(beams.params) is None
    assert "dry_multiplier" in str(backend.refusal(odd.params))
    with pytest.raises(DecodingError, match="dry_multiplier"):
        backend.generate(["x"], odd.params)


def test_a_study_goes_on_after_kills_as_if_there_had_been_none(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = study(server.url, str(tmp_path / "whole"))
    assert told(interrupted(server, tmp_path / "parts")) == told(whole)
    assert check(whole, server.url, dialogues(), **TASK).found.changed == 0
    assert confirm(whole, server.url, dialogues(), **TASK).here.difference == whole.verdict.difference


def test_the_command_line_confirms_and_checks(server: ServerProcess, tmp_path: Path) -> None:
    write_study_file(tmp_path, server.url, dialogues())
    ran = command(tmp_path, "run", "study.toml", "--quiet")
    assert ran.returncode == 0, ran.stderr
    found = confirmed(tmp_path, "--server", server.url)
    assert found["here"]["difference"] == found["study"]["difference"]
    code, later = checked(tmp_path)
    assert (code, later["changed"], later["is_worse"]) == (0, 0, False)

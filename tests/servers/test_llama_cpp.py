"""The bundled chat model on llama.cpp's own server; `make test-servers` installs it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmsearch_optuna import check, confirm, score
from llmsearch_optuna.analysis.export_formats import files_for
from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.backends.server.dialect import LLAMA_CPP
from llmsearch_optuna.backends.server.probe import effects, repetition
from llmsearch_optuna.demo.model import demo_model_folder
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.search_result import SearchResult
from tests.servers.command_line import checked, command, confirmed, write_study_file
from tests.servers.parameters import ENDS, GREEDY, WARM, ends_of, questions
from tests.servers.programs import NEEDS_LLAMA_CPP, THINKS, llama_cpp
from tests.servers.served_study import ROWS, TASK, dialogues, interrupted, study, told
from tests.servers.server_process import ServerProcess

pytestmark = NEEDS_LLAMA_CPP

NOT_TRIED = {
    *("dry_base", "dry_penalty_last_n", "dry_sequence_breakers"),  # which show in long repetitions only
    "thinking_budget",  # the model does not think, but with another template: below
}


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


def test_a_thought_ends_where_its_budget_does() -> None:
    with llama_cpp(1, THINKS) as server:
        backend = ServerBackend(server.url)
        (question,) = questions({}, 1)
        budgets: list[dict[str, int]] = [{}, {"thinking_budget": 4}, {"thinking_budget": 10}]
        params = [GenerationParams.of({**GREEDY, **budget}, backend.default_params) for budget in budgets]
        asked = [replace(question, row=row, params=given) for row, given in enumerate(params)]
        whole, short, longer = (found for found in backend.ask(asked) if found is not None)
    assert whole.text == ""  # no token is left for the answer
    thoughts = [found.reasoning or "" for found in (short, longer, whole)]
    assert 0 < len(thoughts[0]) < len(thoughts[1]) < len(thoughts[2])
    assert all(thoughts[2].startswith(thought) for thought in thoughts)
    assert short.text
    assert longer.text


def test_the_same_seed_gives_the_same_text_alone(two_slots: ServerProcess) -> None:
    backend = ServerBackend(two_slots.url)
    defaults = backend.default_params
    repeated = repetition(backend, questions(defaults), GenerationParams.of(WARM, defaults))
    print(repeated)
    assert repeated.alone == repeated.rows


EXPORTED = {
    **{"temperature": 0.7, "top_k": 12, "top_p": 0.8, "min_p": 0.02, "typical_p": 0.9, "top_n_sigma": 2.5},
    **{"repetition_penalty": 1.2, "repeat_last_n": 33, "presence_penalty": 0.25, "frequency_penalty": -0.5},
    **{"dry_multiplier": 0.5, "dry_base": 1.5, "dry_allowed_length": 3, "dry_penalty_last_n": 99},
    **{"xtc_probability": 0.25, "xtc_threshold": 0.2, "mirostat_mode": 0, "stop": ["\n\n"]},
}


def test_the_server_applies_what_export_writes(two_slots: ServerProcess) -> None:
    params = GenerationParams.of({"max_new_tokens": 3, "do_sample": True, **EXPORTED})
    asked = json.loads(files_for("llama.cpp", params)["request.json"])
    request = urllib.request.Request(
        two_slots.url.replace("/v1", "/completion"),
        json.dumps({"prompt": "Hello", **asked}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        applied = json.load(answer)["generation_settings"]
    names = {LLAMA_CPP.fields[name]: value for name, value in EXPORTED.items()}
    assert {name: applied[name] for name in names} == {name: pytest.approx(value) for name, value in names.items()}
    assert applied["max_tokens"] == 3


def test_tools_and_variables_of_the_template_reach_the_server(two_slots: ServerProcess) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    found = score(
        two_slots.url,
        dialogues(2),
        {"max_new_tokens": 4},
        **TASK,
        chat_template_kwargs={"tools": [tool], "enable_thinking": False},
    )
    assert len(found.completions) == 2


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


def test_the_command_line_confirms_and_checks(
    one_slot: ServerProcess, two_slots: ServerProcess, tmp_path: Path
) -> None:
    write_study_file(tmp_path, one_slot.url, dialogues())
    ran = command(tmp_path, "run", "study.toml", "--quiet")
    assert ran.returncode == 0, ran.stderr
    same = confirmed(tmp_path, "--server", one_slot.url)
    assert same["here"]["difference"] == same["study"]["difference"]
    assert confirmed(tmp_path, "--server", two_slots.url)["here"]["rows"] == same["here"]["rows"]
    code, found = checked(tmp_path)
    assert (code, found["changed"], found["is_worse"]) == (0, 0, False)

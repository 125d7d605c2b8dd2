"""The bundled chat model on `transformers serve`; `make test-servers` installs what it needs besides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna import check, confirm
from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.backends.server.dialect import TRANSFORMERS
from llmsearch_optuna.demo.model import demo_model_folder
from llmsearch_optuna.search_result import SearchResult
from tests.servers.programs import NEEDS_TRANSFORMERS_SERVE, transformers_serve
from tests.servers.served_study import TASK, dialogues, interrupted, study, told
from tests.servers.server_process import ServerProcess

pytestmark = NEEDS_TRANSFORMERS_SERVE


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with transformers_serve() as running:
        yield running


def model() -> dict[str, Any]:
    """What the server calls its model."""
    return {"served_model": str(demo_model_folder())}


@pytest.fixture(scope="module")
def whole(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """The study, undisturbed."""
    return study(server.url, str(tmp_path_factory.mktemp("whole")), **model())


def test_a_study_goes_on_after_kills_as_if_there_had_been_none(
    server: ServerProcess, whole: SearchResult, tmp_path: Path
) -> None:
    assert told(interrupted(server, tmp_path, **model())) == told(whole)


def test_the_verdict_later(server: ServerProcess, whole: SearchResult) -> None:
    again = confirm(whole, server.url, dialogues(), **TASK, **model())
    assert again.here.difference == whole.verdict.difference
    later = check(whole, server.url, dialogues(), **TASK, **model())
    assert (later.found.changed, later.is_worse) == (0, False)


def test_the_dialect_is_found(server: ServerProcess) -> None:
    backend = ServerBackend(server.url, model=str(demo_model_folder()))
    assert backend.identity.dialect is TRANSFORMERS
    assert backend.capacity == 2

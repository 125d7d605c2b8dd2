"""A whole study that several tests read."""

from __future__ import annotations

import pytest

from llmsearch_optuna.search_result import SearchResult
from tests.optimize.studies import run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return run(tmp_path_factory.mktemp("whole"))

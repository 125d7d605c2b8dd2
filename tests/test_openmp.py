from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llmsearch_optuna.openmp import SPIN_COUNT, SPIN_VARIABLE, limit_spinning


def test_a_short_spin_count_is_set_before_torch_is_loaded() -> None:
    environment: dict[str, str] = {}
    limit_spinning(environment, loaded=())
    assert environment == {SPIN_VARIABLE: SPIN_COUNT}


@pytest.mark.parametrize("name", [SPIN_VARIABLE, "OMP_WAIT_POLICY", "KMP_BLOCKTIME"])
def test_what_the_user_has_set_stays(name: str) -> None:
    environment = {name: "7"}
    limit_spinning(environment, loaded=())
    assert environment == {name: "7"}


def test_nothing_is_set_once_torch_is_loaded() -> None:
    environment: dict[str, str] = {}
    limit_spinning(environment, loaded=("torch",))
    assert environment == {}


@pytest.mark.parametrize("module", ["llmsearch_optuna", "llmsearch_optuna.cli"])
def test_the_package_and_the_program_set_it(module: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in (SPIN_VARIABLE, "OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    code = f"import os, {module}; print(os.environ.get({SPIN_VARIABLE!r}))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == SPIN_COUNT

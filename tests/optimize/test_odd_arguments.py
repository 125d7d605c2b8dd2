"""Arguments of another kind than they must be are refused in words, before anything is loaded or decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmsearch_optuna.errors import LlmsearchError
from llmsearch_optuna.search_result import load_result
from tests.optimize.studies import run
from tests.synthetic import dataset

OF_NO_KIND = (0.5, True, [1], b"x", object(), 1j, type)


@pytest.mark.parametrize("value", OF_NO_KIND)
@pytest.mark.parametrize(
    "option", ["storage", "study_name", "objectives", "tokenizer_encode_args", "baselines", "sampler"]
)
def test_an_argument_of_another_kind(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(LlmsearchError, match=option.split("_")[0]):
        run(tmp_path, n_trials=1, dataset=dataset(4), **{option: value})


@pytest.mark.parametrize("option", ["replicates", "search_rows", "holdout_rows", "finalists", "seed", "n_trials"])
@pytest.mark.parametrize("value", ["", "3", "auto", 10**400, float("nan"), -1, True, None])
def test_a_number_that_is_none(tmp_path: Path, option: str, value: Any) -> None:
    if (option, value) == ("n_trials", None) or (value == 10**400 and option not in ("replicates",)):
        return  # the default; or a number that only says "all"
    with pytest.raises(LlmsearchError, match=option):
        run(tmp_path, dataset=dataset(4), **({"n_trials": 1} | {option: value}))


def test_a_baseline_whose_name_has_half_a_character(tmp_path: Path) -> None:
    with pytest.raises(LlmsearchError, match="no name"):
        run(tmp_path, n_trials=1, dataset=dataset(4), baselines={"\ud800": {"do_sample": False}})


def test_a_path_is_an_address(tmp_path: Path) -> None:
    result = run(tmp_path, n_trials=1, dataset=dataset(4), storage=tmp_path / "by-path.db")
    assert len(load_result(str(tmp_path / "by-path.db")).trials) == len(result.trials)

"""The share of rows that were cut by the limit of tokens: in every trial, on the page, in the terminal."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from llmsearch_optuna.cli.output import print_outcome
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.report.collect import collect
from llmsearch_optuna.report.page import render
from tests.optimize.studies import run
from tests.synthetic import TextEngine, unit


class CutsSome(TextEngine):
    """About a third of the rows reaches the limit."""

    def complete(self, prompt: str, params: Mapping[str, Any]) -> Completion:
        whole = super().complete(prompt, params)
        return Completion(whole.text, whole.token_ids, "length" if unit(prompt, "cut") < 0.3 else "eos", 3)


def test_the_share_of_cut_rows_stands_in_every_trial_and_report(tmp_path: Path) -> None:
    result = run(tmp_path, CutsSome(), n_trials=3)
    data = collect(result)
    for trial, point in zip(result.trials, data.trials, strict=True):
        records = result.records(trial.number)
        share = sum(r.finish_reason == "length" for r in records) / len(records)
        assert 0.1 < share < 0.6
        assert trial.user_attrs["cut_by_length"] == f"{share:.0%}"
        assert point.cut == share
    page = render(data)
    assert "cut by length" in page
    assert all(f'<td class="number">{point.cut:.0%}</td>' in page for point in data.trials)
    console = Console(width=200, record=True, file=io.StringIO())
    print_outcome(result, report=tmp_path / "r.html", console=console)
    assert f"{data.trials[0].cut:.0%} of the rows cut by length" in console.export_text()


def test_nothing_is_said_where_no_row_was_cut(tmp_path: Path) -> None:
    result = run(tmp_path, n_trials=2)
    assert [t.user_attrs["cut_by_length"] for t in result.trials] == ["0%", "0%"]
    console = Console(width=200, record=True, file=io.StringIO())
    print_outcome(result, report=tmp_path / "r.html", console=console)
    assert "cut by length" not in console.export_text()

"""Studies that version 0.1.0 left behind go on as if they had never been put down (see `earlier_study`).

Read here with sqlite3 and Optuna alone: what is compared is what stands in the database.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.storage.earlier_study import Writer, run

DATA = Path(__file__).parent / "data"
RESULTS = ("params", "kind", "fingerprint", "role", "rows", "tokens", "prune_reason")
"""Attributes of a trial that are results; the others are times, sizes and counters."""

MEASURED = (
    "answer", "direction", "baseline_mean", "winner_mean", "difference", "wins", "ties", "losses", "rows", "prompts",
    "replicates", "margin", "look", "unscored", "differences",
)  # fmt: skip
"""What a verdict says about the rows, whichever test decides."""


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    return Path(shutil.copy(DATA / "unfinished.db", tmp_path / "study.db"))


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return Path(shutil.copy(DATA / "finished.db", tmp_path / "finished.db"))


def test_the_study_was_left_in_the_middle(unfinished: Path) -> None:
    states = [t["state"] for t in trials_in(unfinished)]
    assert [number for number, state in enumerate(states) if state == "RUNNING"] == [8, 9]
    begun = "SELECT number, count(*) FROM llmsearch_rows WHERE number >= 8 GROUP BY number"
    assert selected(unfinished, begun) == [(8, 8)]
    assert selected(unfinished, "SELECT * FROM llmsearch_looks") == []


def test_an_unfinished_study_ends_like_the_one_that_was_left_alone(unfinished: Path, finished: Path) -> None:
    run(unfinished, Writer())
    assert trials_in(unfinished) == trials_in(finished)
    assert rows_in(unfinished) == rows_in(finished)
    assert looks_in(unfinished) == looks_in(finished)


def test_the_fingerprint_stays_as_it_was(unfinished: Path, tmp_path: Path) -> None:
    run(tmp_path / "new.db", Writer(), n_trials=1, holdout=0.3)
    query = "SELECT fingerprint, schema_version FROM llmsearch_meta"
    (new, new_schema), (old, old_schema) = (selected(path, query)[0] for path in (tmp_path / "new.db", unfinished))
    assert new_schema == old_schema
    # The rules have changed since; a study from before goes on by those that it was started with.
    assert json.loads(new) == {**json.loads(old), "algorithm": 4}


def test_rows_that_the_earlier_version_decoded_are_not_decoded_again(unfinished: Path) -> None:
    known = set(
        selected(
            unfinished,
            "SELECT number, prompt FROM llmsearch_rows JOIN llmsearch_items"
            " ON llmsearch_items.study = llmsearch_rows.study AND llmsearch_items.row = llmsearch_rows.row",
        )
    )
    params = {t["number"]: t["attributes"]["params"] for t in trials_in(unfinished)}
    writer = Writer()
    run(unfinished, writer)
    again = {(number, prompt) for prompt, asked in writer.asked for number in params if asked == params[number]} & known
    assert writer.asked
    assert not again


def test_a_finished_study_decodes_nothing_and_keeps_its_verdict(finished: Path) -> None:
    before = looks_in(finished)
    writer = Writer()
    result = run(finished, writer)
    assert not writer.asked
    assert looks_in(finished) == before
    assert result.verdict is not None
    assert [result.best_trial.number, result.verdict.answer] == [before[0]["winner"], before[0]["answer"]]
    assert f"{result.verdict.difference:+.4g}" in result.verdict.headline
    assert f"{result.verdict.difference:+.4g}" in sentence_in(finished)


def test_more_trials_go_on_from_a_finished_study(finished: Path) -> None:
    before = trials_in(finished)
    run(finished, Writer(), n_trials=12)
    after = trials_in(finished)
    assert after[:10] == before
    assert len(after) == 12


def trials_in(database: Path) -> list[dict[str, Any]]:
    study = optuna.load_study(study_name="earlier", storage=f"sqlite:///{database}")
    return [
        {
            "number": t.number,
            "state": t.state.name,
            "params": t.params,
            "distributions": t.distributions,
            "values": t.values,
            "intermediate_values": t.intermediate_values,
            "attributes": {name: t.user_attrs[name] for name in RESULTS if name in t.user_attrs},
        }
        for t in study.trials
    ]


def rows_in(database: Path) -> list[tuple[Any, ...]]:
    """Every row that counts: those beyond a trial's last look were decoded or not, as it happened."""
    counted = {t["number"]: int(t["attributes"]["rows"].split()[0]) for t in trials_in(database)}
    found = selected(
        database,
        "SELECT phase, number, position, replicate, text, token_ids, finish_reason, score, error FROM llmsearch_rows"
        " JOIN llmsearch_items ON llmsearch_items.study = llmsearch_rows.study"
        " AND llmsearch_items.row = llmsearch_rows.row ORDER BY phase, number, position, replicate",
    )
    return [row for row in found if row[0] != "search" or row[2] < counted[row[1]]]


def looks_in(database: Path) -> list[dict[str, Any]]:
    found = []
    for winner, trials, selection, stored in selected(
        database, "SELECT winner, trials, selection, verdict FROM llmsearch_looks ORDER BY look"
    ):
        verdict = json.loads(stored)
        measured = {name: verdict[name] for name in MEASURED}
        found.append({"winner": winner, "trials": trials, "selection": json.loads(selection), **measured})
    return found


def sentence_in(database: Path) -> str:
    ((verdict,),) = selected(database, "SELECT verdict FROM llmsearch_looks")
    return str(json.loads(verdict)["sentence"])


def selected(database: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()

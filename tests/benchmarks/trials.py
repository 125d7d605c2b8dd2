"""What a study of many trials costs when it goes on, and when it is read.

    python -m tests.benchmarks.trials [--trials 2000]

A function that answers at once, 40 rows, and a study whose trials were written without decoding anything. Prints the
processor time of ten more trials, of the report, of the status, and of what the dashboard shows, each in a process of
its own; imports are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna_dashboard
from optuna.trial import TrialState, create_trial

from llmsearch_optuna import Engine, presets, search
from llmsearch_optuna.analysis.status import read_status
from llmsearch_optuna.dashboard import describe_all
from llmsearch_optuna.dashboard.notes import NotedRow, trial_note
from llmsearch_optuna.dashboard.study_attributes import NOTED, StudyAttributes
from llmsearch_optuna.optimize.samplers import Candidate, CandidateMaker, RandomSuggester
from llmsearch_optuna.search_result import SearchResult, load_result
from llmsearch_optuna.space.space import Space
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.storage.study import OpenedStudy, read_study

ROWS, HOLDOUT, STEP, STARTED, MORE = 40, 16, 8, 4, 10
SPACE = presets.sampling(max_new_tokens=32)
STAGES = ("resumed, ten more trials", "report", "status", "dashboard")


def answer(prompts: Sequence[str], params: dict[str, Any]) -> list[str]:
    """Right more often the closer the temperature is to 0.7."""
    chance = max(0.1, 0.9 - abs(float(params.get("temperature", 1.0)) - 0.7))
    drawn = (
        hashlib.sha256(f"{prompt} {json.dumps(params, sort_keys=True)}".encode()).digest()[0] for prompt in prompts
    )
    return ["yes" if number < 256 * chance else "no" for number in drawn]


def run(database: str, trials: int) -> None:
    """Search until the study has so many trials."""
    search(
        Engine.from_function(answer),
        [{"question": f"Is {number} a number?", "answer": "yes"} for number in range(ROWS)],
        SPACE,
        prompt="{question}",
        reference="answer",
        metric="exact_match",
        holdout=HOLDOUT / ROWS,
        n_trials=trials,
        finalists=1,
        holdout_replicates=1,
        storage=f"sqlite:///{database}",
        study_name="trials",
        progress=False,
    )


def fill(database: str, trials: int) -> None:
    """Write trials as a search would have, a third of them complete and the others pruned at their first step."""
    opened = read_study(f"sqlite:///{database}")
    with contextlib.closing(opened):
        begun = opened.study.get_trials(deepcopy=False)
        order = [item.row for item in opened.records.items("search")]
        rng = np.random.default_rng(0)
        for number, candidate in enumerate(_candidates(len(begun), trials), start=len(begun)):
            _write(opened, number, candidate, order if number % 3 == 0 else order[:STEP], rng)
        _note(opened, len(begun))
    with contextlib.closing(read_study(f"sqlite:///{database}")) as opened:
        describe_all(SearchResult.of(opened))


def _candidates(first: int, end: int) -> Iterator[Candidate]:
    suggester = RandomSuggester(Space.of(SPACE), CandidateMaker({}), seed=1)
    known: set[str] = set()
    for number in range(first, end):
        candidate = suggester.suggest(number, [], known)
        assert candidate is not None
        known.add(candidate.fingerprint)
        yield candidate


def _write(
    opened: OpenedStudy, number: int, candidate: Candidate, rows: Sequence[int], rng: np.random.Generator
) -> None:
    assert candidate.generation is not None
    scores = (rng.random(len(rows)) < 0.6).astype(float).tolist()
    records = [
        RowRecord(row, 0, "yes" if score else "no", (), "eos", 0, score)
        for row, score in zip(rows, scores, strict=True)
    ]
    opened.records.record("search", number, records)
    means = {seen: sum(scores[:seen]) / seen for seen in range(STEP, len(rows) + 1, STEP)}
    is_complete = len(rows) > STEP
    opened.study.add_trial(
        create_trial(
            state=TrialState.COMPLETE if is_complete else TrialState.PRUNED,
            value=means[len(rows)],
            params=dict(candidate.params),
            distributions=dict(candidate.distributions),
            intermediate_values=means,
            system_attrs={NOTED: True},
            user_attrs={
                "params": json.loads(json.dumps(candidate.generation.canonical, default=str)),
                "kind": candidate.generation.kind,
                "fingerprint": candidate.fingerprint,
                "role": "searched",
                "rows": f"{len(rows)} of {ROWS - HOLDOUT}",
                "tokens": 0,
                "seconds": 0.1,
                "memory": "0.50 GB",
                **({} if is_complete else {"prune_reason": "no better than trial 0"}),
            },
        )
    )


def _note(opened: OpenedStudy, first: int) -> None:
    """Give each trial a note, as the search would have."""
    attributes = StudyAttributes(opened)
    prompts = {item.row: item.prompt for item in opened.records.items("search")}
    records = opened.records.all_rows("search")
    for trial in opened.study.get_trials(deepcopy=False)[first:]:
        rows = [NotedRow(r.row, prompts[r.row], r.text or "", "yes", r.score) for r in records[trial.number]]
        optuna_dashboard.save_note(attributes.trial_of(trial), trial_note(trial.state.name.lower(), rows))


def read(stage: str, database: str) -> None:
    """Do what one command does after it has imported what it needs."""
    result = load_result(f"sqlite:///{database}")
    if stage == "report":
        result.save_report(Path(database).with_suffix(".html"))
    elif stage == "status":
        read_status(result.opened, result.settings["n_trials"])
        assert result.summary
    else:
        describe_all(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--database", help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        began = time.process_time()
        if arguments.stage == STAGES[0]:
            run(arguments.database, arguments.trials + MORE)
        else:
            read(arguments.stage, arguments.database)
        print(f"{time.process_time() - began:6.2f} s of processor time", flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        database = str(Path(folder) / "trials.db")
        run(database, STARTED)
        fill(database, arguments.trials)
        for stage in STAGES:
            print(f"{arguments.trials:,} trials, {stage}:", end=" ", flush=True)
            command = [sys.executable, "-m", "tests.benchmarks.trials", "--database", database, "--stage", stage]
            subprocess.run([*command, "--trials", str(arguments.trials)], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()

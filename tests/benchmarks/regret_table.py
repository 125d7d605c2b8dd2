"""Tables of what many configurations score and cost on the same rows, on which ways to search are compared.

    python -m tests.benchmarks.regret_table records_base-smollm2 [--folder studies]

decodes one (200 configurations x 100 rows; it goes on where it was stopped) and keeps it as a compressed file in
tests/benchmarks/regret/.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from llmsearch_optuna import SearchResult, search
from llmsearch_optuna.demo.model import demo_model_folder
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.changes import Changes
from llmsearch_optuna.study_file.parse import read_study_file
from tests.benchmarks.gains import FOLDER, gemma_folder

TABLES = Path(__file__).parent / "regret"

CONFIGURATIONS, ROWS = 200, 100

SEARCHED: Mapping[str, BaseDistribution] = {
    "temperature": FloatDistribution(0.05, 1.5),
    "top_p": FloatDistribution(0.5, 1.0),
    "top_k": IntDistribution(1, 200, log=True),
    "repetition_penalty": FloatDistribution(0.85, 1.25),
}
"""One branch, so that samplers which know no branches meet the others on equal terms."""

MODELS: Mapping[str, Callable[[], Path]] = {"smollm2": demo_model_folder, "gemma": gemma_folder}
TASKS = ("records_base", "tool_calls")


@dataclass(frozen=True)
class Table:
    """What configurations score and cost.

    Attributes:
        points: The values of `SEARCHED`, in its order, [configurations, parameters].
        scores: Of each row, [configurations, rows].
        tokens: Generated for each row, [configurations, rows].
    """

    points: NDArray[np.float64]
    scores: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read what `save` wrote."""
        with np.load(path) as found:
            return cls(
                found["points"].astype(np.float64),
                found["scores"].astype(np.float64),
                found["tokens"].astype(np.int64),
            )

    def save(self, path: Path) -> None:
        """Write it, compressed."""
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(
            path,
            points=self.points,
            scores=self.scores.astype(np.float32),
            tokens=self.tokens.astype(np.uint16),
        )

    @classmethod
    def of(cls, result: SearchResult) -> Table:
        """Read the trials of a study that are points of `SEARCHED`; those of baseline and greedy are none."""
        numbers = [trial.number for trial in result.trials if set(SEARCHED) <= set(trial.params)]
        records = {number: sorted(result.records(number), key=lambda r: r.row) for number in numbers}
        return cls(
            np.array([[result.trials[n].params[name] for name in SEARCHED] for n in numbers], dtype=np.float64),
            np.array([[r.score for r in records[n]] for n in numbers], dtype=np.float64),
            np.array([[len(r.token_ids) for r in records[n]] for n in numbers], dtype=np.int64),
        )


def decode(task: str, model: str, folder: Path) -> Table:
    """Decode configurations that are drawn at random, all rows of each."""
    file = read_study_file(FOLDER / f"{task}.toml")
    storage = str(folder / f"regret-{task}-{model}.db")
    given = search_arguments(Changes(model=str(MODELS[model]()), rows=ROWS, storage=storage).apply(file))
    fixed: dict[str, Any] = {"max_new_tokens": 64, "stop": ["\n"], "do_sample": True}
    task_of = given["dataset"]
    result = search(
        given["model"],
        task_of,
        {**fixed, **SEARCHED},
        study_name=f"regret_{task}_{model}",
        storage=storage,
        sampler="random",
        pruner="none",
        holdout=0,
        search_rows=ROWS,
        n_trials=CONFIGURATIONS + 2,
        finalists=1,
        holdout_replicates=1,
    )
    return Table.of(result)


def main() -> None:
    """Decode one table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[f"{task}-{model}" for task in TASKS for model in MODELS])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the databases")
    given = parser.parse_args()
    os.chdir(FOLDER.parent)
    task, model = given.table.split("-")
    decode(task, model, given.folder).save(TABLES / f"{given.table}.npz")


if __name__ == "__main__":
    main()

"""How often the verdict claims what is not so, what it finds, and what the pruner costs and saves.

Run by ``make bench-honesty``; prints markdown tables. ``--write`` puts them into README.md beside this file, ``--share
0.1`` runs a tenth of the studies. Everything follows from fixed seeds.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution
from scipy import stats

from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.stats.comparison import compare
from tests.benchmarks.array_study import ArrayStudy, run_study, run_trials
from tests.benchmarks.crossed_worlds import CROSSED_SECTIONS
from tests.benchmarks.selection_worlds import SELECTION_SECTIONS
from tests.benchmarks.stage_worlds import STAGE_SECTIONS
from tests.benchmarks.verdict_worlds import SECTIONS
from tests.benchmarks.worlds import Shape, World, WorldServer, setting_of

SHAPES: tuple[Shape, ...] = ("continuous", "0/1", "skewed")
README = Path(__file__).with_name("README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the studies to run")
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--worlds", action="store_true", help="only the worlds, without whole searches and pruners")
    arguments = parser.parse_args()
    began = time.monotonic()
    sections = []
    with ProcessPoolExecutor(arguments.processes) as pool:
        worlds = (*SECTIONS, *SELECTION_SECTIONS, *CROSSED_SECTIONS, *STAGE_SECTIONS)
        searches = (real_searches, equal_settings, true_gains, pruners, intervals)
        for make in worlds if arguments.worlds else (*searches, *worlds):
            text = make(pool, arguments.share)
            print(text, flush=True)
            sections.append(text)
    minutes = (time.monotonic() - began) / 60
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    head = (
        f"## Honesty\n\n`make bench-honesty` ({minutes:.0f} minutes, {(workers.ru_utime + workers.ru_stime) / 60:.0f} "
        f"minutes of processor time with {arguments.processes} processes on "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, optuna {optuna.__version__}"
        f"{'' if arguments.share == 1 else f', share {arguments.share}'}).\n\n{_ABOUT}\n"
    )
    print(head)
    if arguments.write:
        _write(head + "\n" + "\n\n".join(sections) + "\n")


_ABOUT = """\
Synthetic models (`worlds.py`): a score is a row's difficulty (standard deviation 1.5 on the inner scale), what the
setting is worth, how row and setting suit each other (0.7) and chance in decoding (0.7). Continuous scores have mean
0.30 and standard deviation 0.14, 0/1 scores are right in 40 %, skewed scores are log-normal. 30 % of the rows are held
out, 1 replicate in the search, 3 for finalists and holdout, 4 trials in flight, 20 trials a study, of which two are
the baseline and greedy. A point is 0.01 of the score."""


# -- real searches against the same studies on arrays -----------------------------------------------------------------


def real_searches(pool: ProcessPoolExecutor, share: float) -> str:
    """The whole `search` with its database and TPE, and the same studies on arrays: are they the same?"""
    worlds = [
        World(shape, (20, 60, 200)[seed % 3], gain, seed)
        for seed in range(max(1, round(21 * share)))
        for shape in SHAPES
        for gain in (0.0, 5.0)
    ]
    same = _map(pool, _real_search, [(world,) for world in worlds])
    lines = [
        f"| {what} | {sum(found[place] for found in same)} of {len(same)} |"
        for place, what in enumerate(("rows of every trial", "winner", "verdict, all its numbers"))
    ]
    return "\n".join(
        [
            "### The tables rest on arrays; real searches come out the same\n",
            "Through `search` (TPE, SQLite, paired pruner, a synthetic engine) and through `array_study.py` with the "
            "same settings; 20, 60 and 200 rows, with nothing and with 5 points to find:\n",
            "| equal | studies |\n|---|---|",
            *lines,
        ]
    )


_UNKNOWN = {"optimism": None, "optimism_low": None, "optimism_high": None, "sentence": ""}


def _real_search(world: World) -> tuple[bool, bool, bool]:
    from llmsearch_optuna import search

    metric = _number_metric(world.bounds)
    with tempfile.TemporaryDirectory() as folder:
        result = search(
            WorldServer(world, 4),
            [{"row": str(row)} for row in range(world.rows)],
            {"max_new_tokens": 8, "do_sample": True, "temperature": FloatDistribution(1.001, 2.0)},
            holdout=0.3,
            prompt="{row}",
            metric=metric,
            n_trials=20,
            storage=f"sqlite:///{folder}/study.db",
            study_name="honesty",
            seed=world.seed,
            search_rows=10_000,  # the studies on arrays have no reserve
            progress=False,
        )
        rows = tuple(max(t.intermediate_values) for t in result.trials)
        settings = [setting_of(t.user_attrs["params"]) for t in result.trials][2:]
        winner, verdict = result.best_trial.number, result.verdict
    ours = run_study(world, [s for s in settings if s is not None], pruner=PairedPruner(), seed=world.seed)
    assert verdict is not None
    # Arrays know no score of the search, so no optimism; the sentence only says the numbers.
    found, expected = ({**v.to_json(), **_UNKNOWN} for v in (verdict, ours.verdict))
    return rows == ours.rows_done, winner == ours.winner, found == expected


def _number_metric(bounds: tuple[float, float] | None) -> Callable[[Sequence[str], Sequence[Any]], list[float]]:
    def number(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
        return [float(p) if re.fullmatch(r"-?\d.*", p) else 0.0 for p in predictions]

    if bounds is not None:
        number.bounds = bounds  # type: ignore[attr-defined]
    return number


# -- nothing to find ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Count:
    """What matters of one study."""

    answer: str
    looked: bool
    covered: bool
    regret: float
    winner_regret: float
    saved: float


def _count(world: World, pruned: bool) -> _Count:
    settings = np.random.default_rng(world.seed).random(18)
    study = run_study(world, list(settings), pruner=PairedPruner() if pruned else None, seed=world.seed)
    worth = [world.worth(setting) / 100 for setting in study.settings]
    used = worth[study.winner] if study.verdict.recommends_winner else 0.0
    return _Count(
        answer=study.verdict.answer,
        looked=study.verdict.interval is not None,
        covered=_covers(study, worth[study.winner]),
        regret=100 * (max(worth) - used),
        winner_regret=100 * (max(worth) - worth[study.winner]),
        saved=study.saved,
    )


def _covers(study: ArrayStudy, truth: float) -> bool:
    interval = study.verdict.interval
    return interval is not None and interval[0] - 1e-12 <= truth <= interval[1] + 1e-12


def equal_settings(pool: ProcessPoolExecutor, share: float) -> str:
    """All settings are worth the same: how often is something claimed?"""
    studies = max(20, round(300 * share))
    lines = []
    for shape in SHAPES:
        for rows in (20, 50, 100, 200):
            found = _map(pool, _count, [(World(shape, rows, 0.0, seed), True) for seed in range(studies)])
            looked = [f for f in found if f.looked]
            lines.append(
                f"| {shape} | {rows} | {round(0.3 * rows)} | {_share(f.answer == 'better' for f in found)} | "
                f"{_share(f.answer == 'worse' for f in found)} | {_share(f.covered for f in looked)} | "
                f"{_share(not f.looked for f in found)} |"
            )
    return "\n".join(
        [
            f"### Nothing to find: all settings are equal ({studies} studies a line)\n",
            "| scores | rows | held out | `better` | `worse` | interval covers | baseline won, no look |",
            "|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


# -- something to find -------------------------------------------------------------------------------------------------


def true_gains(pool: ProcessPoolExecutor, share: float) -> str:
    """The best settings are worth 1, 2 or 5 points: how often is that found, and what is lost by pruning?"""
    lines = []
    for shape in ("continuous", "0/1"):
        for rows in (60, 200, 600):
            studies = max(10, round((120 if rows < 600 else 60) * share))
            for gain in (1.0, 2.0, 5.0):
                cells = []
                for pruned in (False, True):
                    tasks = [(World(shape, rows, gain, 10_000 + seed), pruned) for seed in range(studies)]
                    cells.append(_map(pool, _count, tasks))
                plain, paired = cells
                looked = [f for f in paired if f.looked]
                lines.append(
                    f"| {shape} | {rows} | {gain:.0f} | {_share(f.answer == 'better' for f in plain)} | "
                    f"{_share(f.answer == 'better' for f in paired)} | {_mean(f.winner_regret for f in plain)} | "
                    f"{_mean(f.winner_regret for f in paired)} | {_mean(f.regret for f in paired)} | "
                    f"{_share(f.covered for f in looked)} | {_mean((f.saved for f in paired), '.0%')} |"
                )
    return "\n".join(
        [
            "### Something to find: the best setting is worth 1, 2 or 5 points\n",
            "Settings are drawn at random; regret is in points against the truly best setting tried: of the winner, "
            "and of what is recommended (the baseline unless `better`). 120 studies a line, 60 with 600 rows.\n",
            "| scores | rows | gain | found, no pruning | found, paired | regret of the winner, no pruning | paired | "
            "regret of the recommendation, paired | interval covers | rows saved |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


# -- pruners on the same runs ------------------------------------------------------------------------------------------


def pruners(pool: ProcessPoolExecutor, share: float) -> str:
    """Evaluations saved and winners lost, ours beside Optuna's."""
    lines = []
    names = ("paired", "Wilcoxon", "Median", "SuccessiveHalving", "Hyperband")
    for shape in SHAPES:
        for rows in (32, 60, 200):
            for spread in (0.5, 1.0, 2.0):
                ours = max(20, round((600 if rows < 200 else 300) * share))
                others = max(5, round((80 if rows < 200 else 30) * share))
                cells = [_pruner_cell(pool, "paired", shape, rows, spread, ours)]
                for name in names:
                    # scipy enumerates all signs where few scores differ: seconds a run, for this pruner alone
                    slow = name == "Wilcoxon" and shape == "0/1"
                    runs = max(5, others // 8 if rows < 200 else others // 3) if slow else others
                    cells.append(_pruner_cell(pool, name, shape, rows, spread, runs))
                lines.append(f"| {shape} | {rows} | {spread} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            "### The pruner, beside Optuna's on the same runs\n",
            "40 trials one after the other, looks every 8 rows, settings drawn at random with a true spread of 0.5, 1 "
            "or 2 (in units of a setting's own noise on one row). Each cell: row evaluations saved / runs in which the "
            "trial that is best on all rows was lost. The first column counts 600 runs (300 with 200 rows), the "
            "others the first 80 (30) of these; Wilcoxon takes seconds a run on 0/1 scores and counts only 10 there, "
            "too few to tell how often it loses the best.\n\n"
            "What was aimed at: at least 60 % saved and less than 1 % lost on continuous scores, 40 % and 1 % on 0/1 "
            "scores. On continuous scores that depends on the number of looks and on how far settings lie apart. A "
            "trial stopped at its first look still costs 8 rows, and baseline and greedy run in full: at 32 rows no "
            "pruner with these looks can save more than 71 %, at 60 rows 82 %, at 200 rows 91 %. And where settings "
            "differ by half of one row's noise, most trials end so near the best that 8 or 16 rows cannot tell them "
            "from it.\n",
            "| scores | rows | spread | paired, all runs | " + " | ".join(names) + " |",
            "|---|---|---|---|" + "---|" * len(names),
            *lines,
        ]
    )


def _pruner_cell(pool: ProcessPoolExecutor, name: str, shape: Shape, rows: int, spread: float, runs: int) -> str:
    found = _map(pool, _pruner_run, [(name, shape, rows, spread, seed) for seed in range(runs)])
    saved, lost = np.array(found, dtype=float).T
    return f"{100 * saved.mean():.0f} % / {100 * lost.mean():.1f} %"


def _pruner_run(name: str, shape: Shape, rows: int, spread: float, seed: int) -> tuple[float, bool]:
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.normal(size=rows) + spread * rng.normal(size=(40, 1)) + rng.normal(size=(40, rows))
    if shape == "0/1":
        scores = (z > 0.5 * rng.normal()).astype(np.float64)
    else:
        scores = 0.3 + 0.08 * z if shape == "continuous" else np.exp(0.7 * z) / 10
    if name == "paired":
        bounds = (0.0, 1.0) if shape == "0/1" else None
        done = run_trials(scores, PairedPruner(), bounds=bounds, in_flight=1)
    else:
        done = _optuna_trials(scores, name)
    means = scores.mean(axis=1)
    kept = max(means[n] for n, k in enumerate(done) if k == rows)
    return 1 - sum(done) / scores.size, bool(kept < means.max() - 1e-12)


def _optuna_trials(scores: NDArray[np.float64], name: str) -> list[int]:
    """Rows done by each trial under one of Optuna's pruners, which report and are asked at the same looks."""
    total = scores.shape[1]
    pruner: optuna.pruners.BasePruner = {
        "Wilcoxon": lambda: optuna.pruners.WilcoxonPruner(p_threshold=0.1, n_startup_steps=8),
        "Median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=7),
        "SuccessiveHalving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=8, reduction_factor=2),
        "Hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=8, max_resource=total, reduction_factor=2),
    }[name]()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", pruner=pruner, study_name="honesty")
    looks, done = range(8, total, 8), []
    for number, row_scores in enumerate(scores):
        trial, rows, seen = study.ask(), total, 0
        for look in looks:
            if name == "Wilcoxon":  # wants the row as step and the row's score as value
                for row in range(seen, look):
                    trial.report(float(row_scores[row]), row)
            else:
                trial.report(float(row_scores[:look].mean()), look)
            seen = look
            if number > 1 and trial.should_prune():
                rows = look
                break
        if rows == total and name == "Wilcoxon":
            for row in range(seen, total):
                trial.report(float(row_scores[row]), row)
        if rows == total:
            study.tell(trial, float(row_scores.mean()))
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        done.append(rows)
    return done


# -- intervals ---------------------------------------------------------------------------------------------------------


def intervals(pool: ProcessPoolExecutor, share: float) -> str:
    """Coverage of ours and of what else could have been taken."""
    runs = max(20, round(400 * share))
    lines = []
    for shape in SHAPES:
        for gain in (0.0, 5.0):
            for rows in (6, 15, 30, 60):
                found = np.array(_map(pool, _interval_run, [(shape, gain, rows, seed) for seed in range(runs)]))
                cells = " | ".join(f"{100 * share:.0f} %" for share in found.mean(axis=0))
                lines.append(f"| {shape} | {gain:.0f} | {rows} | {cells} |")
    return "\n".join(
        [
            f"### Why this interval: coverage of the true difference ({runs} comparisons a line, one replicate)\n",
            "Ours: inverted sign flips, and Bonett and Price's for 0/1 scores.\n",
            "| scores | gain | rows | ours | BCa | studentised bootstrap | t |",
            "|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


def _interval_run(shape: Shape, gain: float, rows: int, seed: int) -> tuple[bool, ...]:
    world = World(shape, rows, gain, 50_000 + seed)
    baseline, best = world.scores(None, 1)[:, 0], world.scores(0.7, 1)[:, 0]
    truth, d = world.worth(0.7) / 100, best - baseline
    ours = compare(baseline, best, bounds=world.bounds, seed=seed).interval
    assert ours is not None
    if np.ptp(d) == 0:
        same = bool(d[0] == truth)
        return bool(ours[0] <= truth <= ours[1]), same, same, same
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bca = stats.bootstrap((d,), np.mean, n_resamples=1999, method="BCa", rng=np.random.default_rng(seed))
    low, high = bca.confidence_interval
    half = stats.t.ppf(0.975, rows - 1) * d.std(ddof=1) / np.sqrt(rows)
    candidates = (ours, (low, high), _studentised(d, seed), (d.mean() - half, d.mean() + half))
    return tuple(bool(a - 1e-12 <= truth <= b + 1e-12) for a, b in candidates)


def _studentised(d: NDArray[np.float64], seed: int) -> tuple[float, float]:
    n = len(d)
    resampled = d[np.random.default_rng(seed).integers(0, n, (1999, n))]
    errors = resampled.std(axis=1, ddof=1)
    t = (resampled.mean(axis=1) - d.mean())[errors > 0] / errors[errors > 0]
    low, high = np.quantile(t, [0.025, 0.975])
    return float(d.mean() - high * d.std(ddof=1)), float(d.mean() - low * d.std(ddof=1))


# -- helpers -----------------------------------------------------------------------------------------------------------


def _map(pool: ProcessPoolExecutor, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    return list(pool.map(function, *zip(*tasks, strict=True), chunksize=max(1, len(tasks) // 16)))


def _share(flags: Iterable[bool]) -> str:
    found = list(flags)
    if not found:
        return "-"
    share = sum(found) / len(found)
    return f"{100 * share:.1f} ± {100 * np.sqrt(share * (1 - share) / len(found)):.1f} %"


def _mean(values: Iterable[float], form: str = ".2f") -> str:
    found = list(values)
    return format(sum(found) / len(found), form)


def _write(section: str) -> None:
    """Replace our section of README.md and keep the others."""
    old = README.read_text(encoding="utf-8") if README.exists() else "# Benchmarks\n\n"
    kept = re.sub(r"## Honesty\n.*?(?=\n## |\Z)", "", old, flags=re.DOTALL).rstrip("\n")
    README.write_text(f"{kept}\n\n{section}", encoding="utf-8")


if __name__ == "__main__":
    main()

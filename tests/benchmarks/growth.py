"""Whether trials get cheaper as a study goes on, and memory stays within the budget.

    python -m tests.benchmarks.growth [--trials 200] [--budget-mb 64]

A tiny random Llama, random search over sampling parameters, one trial at a time. Prints the mean seconds a trial and
the resident memory around trials 1, 10, 50, 100 and 200.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import psutil
import torch

from llmsearch_optuna import Engine, presets, search
from llmsearch_optuna.progress import TrialEnded
from tests.tiny import make_llama, make_tokenizer

MARKS = (1, 10, 50, 100, 200)


class Clock:
    """Notes when each trial ended, and the memory then."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]
        self.memory: list[int] = []

    def on(self, event: object) -> None:
        """Take an event of the search."""
        if isinstance(event, TrialEnded):
            self.times.append(time.perf_counter())
            self.memory.append(psutil.Process().memory_info().rss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--budget-mb", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine(make_llama(), make_tokenizer(), cache_budget=arguments.budget_mb * 2**20, batch_size=32)
    rows = [{"text": f"Anna asks Ben whether train {i} leaves at seven", "answer": f"at {i}"} for i in range(40)]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        search(
            engine,
            rows,
            presets.sampling(max_new_tokens=24),
            holdout=0.3,
            prompt="{text}",
            reference="answer",
            metric="chrf",
            sampler="random",
            pruner="none",
            trials_in_flight=1,
            n_trials=arguments.trials,
            storage=f"sqlite:///{Path(folder) / 'growth.db'}",
            study_name="growth",
            observer=clock,
        )
    seconds = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    for mark in (mark for mark in MARKS if mark <= arguments.trials):
        around = seconds[max(0, mark - 5) : mark] if mark > 1 else seconds[:1]
        mean = sum(around) / len(around)
        print(f"trial {mark:4}: {mean * 1000:7.1f} ms a trial, {clock.memory[mark - 1] / 2**20:6.0f} MiB resident")
    stats = engine.stats
    print(f"cache {stats.cache_bytes / 2**20:.1f} of {arguments.budget_mb} MiB, {stats.evictions} evictions")


if __name__ == "__main__":
    main()

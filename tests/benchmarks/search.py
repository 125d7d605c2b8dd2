"""What a whole search costs, everything on, against the same search without reuse, trials in flight or pruning.

    python -m tests.benchmarks.search [--rows 60] [--trials 40] [--tokens 48] [--sample 4] [--seeds 5]
        [--parts price,winners]

SmolLM2-135M-Instruct in float32 on the bundled dialogues, rouge1, the demo's space (greedy, sampling and beams).

**price**: one search with everything on and one with our engine but no reuse, no trials in flight and no pruning, each
on a fresh engine and with its verdict. In between, the configurations of the first are timed (every ``--sample``-th,
scaled) in a good engineer's loop over the search rows: ``model.generate`` in left-padded, length-sorted batches of 16,
without a verdict. One evaluation is one trial of the slow side.

**winners**: for each seed, does the fast search choose a worse winner? Both are searched with one engine that keeps
everything, which changes no token, and their winners are compared by row on the search rows, which both have done.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmsearch_optuna import Engine, SearchResult, presets, search
from llmsearch_optuna.demo.dialogues import demo_dialogues
from llmsearch_optuna.demo.model import demo_model_folder
from tests.benchmarks.study import chat, loop
from tests.engine_work import outside_share, rows_per_step

PROMPT = "Summarize the dialogue in one sentence.\n\n{dialogue}"
EVERYTHING: dict[str, Any] = {}
ONE_BY_ONE: dict[str, Any] = {"trials_in_flight": 1, "pruner": "none"}


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and of the processors: the second hardly depends on what else the machine does."""

    wall: float
    processor: float

    def __str__(self) -> str:
        return f"{self.wall:.0f} s ({self.processor:.0f} s of processors)"

    def scaled(self, factor: float) -> Spent:
        """For work of which only a part was timed."""
        return Spent(self.wall * factor, self.processor * factor)

    def ratio(self, other: Spent) -> str:
        """How many times the other's, in both senses."""
        return f"{self.wall / other.wall:.1f} ({self.processor / other.processor:.1f} in processor time)"


class Stopwatch:
    """Reads both clocks on the way in and out of a block."""

    spent: Spent

    def __enter__(self) -> Stopwatch:
        self._wall, self._processor = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.spent = Spent(time.perf_counter() - self._wall, time.process_time() - self._processor)


def load() -> tuple[Any, Any]:
    folder = demo_model_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def one_search(engine: Engine, options: dict[str, Any], arguments: argparse.Namespace, seed: int) -> SearchResult:
    """Search in a database of its own."""
    return search(
        engine,
        demo_dialogues()[: arguments.rows],
        presets.demo(max_new_tokens=arguments.tokens),
        prompt=PROMPT,
        reference="summary",
        metric="rouge1",
        n_trials=arguments.trials,
        storage=f"sqlite:///{Path(tempfile.mkdtemp(dir=arguments.folder)) / 'study.db'}",
        study_name="study",
        seed=seed,
        progress=False,
        **{"holdout": 0.3} | options,
    )


def price(arguments: argparse.Namespace) -> None:
    """How many evaluations the whole search costs, with our engine and in a loop around ``model.generate``."""
    model, tokenizer = load()
    engine = Engine(model, tokenizer)
    with Stopwatch() as fast:
        result = one_search(engine, EVERYTHING, arguments, 0)
    print(f"  everything on  {fast.spent}; {described(result, engine)}", flush=True)
    del engine  # what it keeps takes room, and half of what is left is what the next one would take
    compared("generate loop", by_hand(model, tokenizer, result, arguments), fast.spent, arguments)
    engine = Engine(model, tokenizer, cache_budget=0)
    with Stopwatch() as slow:
        result = one_search(engine, ONE_BY_ONE, arguments, 0)
    print(f"  one by one     {slow.spent}; {described(result, engine)}", flush=True)
    compared("one by one", slow.spent, fast.spent, arguments)


def by_hand(model: Any, tokenizer: Any, result: SearchResult, arguments: argparse.Namespace) -> Spent:
    """What the search's configurations cost in a good engineer's loop, from every ``--sample``-th of them."""
    prompts = [
        chat(tokenizer, PROMPT.format(**demo_dialogues()[row])) for row in sorted(set(result.completions(0).row))
    ]
    configurations = [dict(trial.user_attrs["params"]) for trial in result.trials]
    sampled = configurations[arguments.sample // 2 :: arguments.sample]
    with Stopwatch() as timed:
        for configuration in sampled:
            loop(model, tokenizer, prompts, configuration)
    slow = timed.spent.scaled(len(configurations) / len(sampled))
    beams = [sum(int(c.get("num_beams") or 1) > 1 for c in some) for some in (sampled, configurations)]
    timed_share = f"{len(sampled)} of {len(configurations)} timed ({beams[0]} of {beams[1]} with beams)"
    print(f"  generate loop  {slow}; {timed_share}, scaled", flush=True)
    return slow


def compared(name: str, slow: Spent, fast: Spent, arguments: argparse.Namespace) -> None:
    print(f"  {name} / everything on = {slow.ratio(fast)}")
    evaluations = fast.wall / (slow.wall / arguments.trials)
    print(f"    {arguments.trials} trials for the price of {evaluations:.1f} evaluations")


def described(result: SearchResult, engine: Engine) -> str:
    states = [trial.state.name for trial in result.trials]
    work = engine.stats
    return (
        f"{states.count('COMPLETE')} complete, {states.count('PRUNED')} pruned, best {result.best_score:.4f}; "
        f"{work.forward_tokens} forwards, {work.replayed_tokens} of {work.tokens} tokens replayed, "
        f"{rows_per_step(work):.1f} rows a step, {outside_share(work):.0%} outside forward"
    )


def winners(arguments: argparse.Namespace) -> None:
    """Whether the winners of the fast search are any worse."""
    engine = Engine(*load(), cache_budget=3 * 2**30)
    differences = []
    for seed in range(arguments.seeds):
        fast, slow = (one_search(engine, options, arguments, seed) for options in (EVERYTHING, ONE_BY_ONE))
        difference = row_scores(fast) - row_scores(slow)
        differences.append(difference.mean())
        scores = f"{row_scores(fast).mean():.4f} against {row_scores(slow).mean():.4f}"
        print(f"  seed {seed}: {scores}, {interval(difference)}", flush=True)
    print(f"  mean over {arguments.seeds} seeds: {interval(np.array(differences))}")


def row_scores(result: SearchResult) -> NDArray[np.float64]:
    """The winner's scores of the search rows, in the order of the rows."""
    frame = result.completions(result.best_trial.number)
    return np.asarray(frame.groupby("row")["score"].mean().sort_index(), dtype=np.float64)


def interval(differences: NDArray[np.float64]) -> str:
    if not differences.any():
        return "no difference on any row"
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    return f"difference {differences.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--sample", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parts", default="price,winners")
    arguments = parser.parse_args()
    work = f"{arguments.rows} rows, {arguments.trials} trials, {arguments.tokens} new tokens"
    print(f"{torch.get_num_threads()} threads, {work}")
    with tempfile.TemporaryDirectory() as arguments.folder:
        for part in arguments.parts.split(","):
            print(part, flush=True)
            {"price": price, "winners": winners}[part](arguments)


if __name__ == "__main__":
    main()

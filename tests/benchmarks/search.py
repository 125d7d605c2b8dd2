"""What a whole search costs, everything on, against the same search without reuse, trials in flight or pruning.

    python -m tests.benchmarks.search [--rows 60] [--trials 40] [--tokens 48] [--seeds 1]

SmolLM2-135M-Instruct in float32 on the bundled dialogues, rouge1, the demo's space. For each seed both searches run one
after the other; their winners are then scored on all search rows (which both have done) and compared by row. The price
of the fast search is also given in evaluations: seconds of the slow search divided by its trials are one evaluation.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmsearch_optuna import Engine, presets, search
from llmsearch_optuna.demo.dialogues import demo_dialogues
from llmsearch_optuna.demo.model import demo_model_folder

EVERYTHING: dict[str, Any] = {}
NOTHING: dict[str, Any] = {"trials_in_flight": 1, "pruner": "none"}


def one_search(name: str, folder: str, options: dict[str, Any], arguments: argparse.Namespace, seed: int) -> Any:
    """Run one search on a fresh engine and a fresh database; returns its result and its seconds."""
    model = AutoModelForCausalLM.from_pretrained(demo_model_folder(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder())
    engine = Engine(model, tokenizer, **({"cache_budget": 0} if options is NOTHING else {}))
    started = time.perf_counter()
    result = search(
        engine,
        demo_dialogues()[: arguments.rows],
        presets.demo(max_new_tokens=arguments.tokens),
        prompt="Summarize the dialogue in one sentence.\n\n{dialogue}",
        reference="summary",
        metric="rouge1",
        n_trials=arguments.trials,
        storage=f"sqlite:///{Path(folder) / name}-{seed}.db",
        study_name=f"{name}-{seed}",
        seed=seed,
        progress=False,
        **options,
    )
    seconds = time.perf_counter() - started
    states = [trial.state.name for trial in result.study.trials]
    work = engine.stats
    print(
        f"  {name:8} {seconds:7.1f} s; {states.count('COMPLETE')} complete, {states.count('PRUNED')} pruned; "
        f"best {result.best_score:.4f}; {work.forward_tokens} forwards, {work.replayed_tokens} of {work.tokens} tokens "
        f"replayed, {work.outside_share:.0%} of the engine's time outside forward",
        flush=True,
    )
    return result, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    work = f"{arguments.rows} rows, {arguments.trials} trials, {arguments.tokens} new tokens"
    print(f"{torch.get_num_threads()} threads, {work}")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            fast, fast_seconds = one_search("fast", folder, EVERYTHING, arguments, seed)
            slow, slow_seconds = one_search("slow", folder, NOTHING, arguments, seed)
            evaluation = slow_seconds / arguments.trials
            print(f"  slow/fast = {slow_seconds / fast_seconds:.1f} (target 10)")
            print(f"  {arguments.trials} trials for the price of {fast_seconds / evaluation:.1f} evaluations")
            difference = row_scores(fast) - row_scores(slow)
            if difference.any():
                low, high = stats.ttest_1samp(difference, 0.0).confidence_interval(0.95)
                print(
                    f"  winners, fast - slow on the search rows: {difference.mean():+.4f} ({low:+.4f} to {high:+.4f})"
                )
            else:
                print("  both winners score the same on every search row")


def row_scores(result: Any) -> np.ndarray:
    """The best trial's scores of the search rows, in the order of the rows."""
    frame = result.completions(result.best_trial.number)
    return frame.groupby("row")["score"].mean().sort_index().to_numpy()


if __name__ == "__main__":
    main()

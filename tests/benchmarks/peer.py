"""The same grid search twice: llmsearch 0.1.0, the scikit-learn predecessor, and ours.

    make bench-peer                    (24 configurations, 32 rows; makes .venv-peer first)
    make bench-peer ARGS="--tiny"      (does it run?)

One after the other in one run: `GridSearchCV(cv=2)` of llmsearch in an environment of its own, where an older
transformers lives (`peer_llmsearch.py`), and `search(sampler="grid")` here, once without pruning (the same work: every
configuration on every row) and once as it is by default. Same grid, same weights in float32, same prompts to the
letter, same metric (rouge1), same threads; batches as each takes them by default: theirs of 16, which is a fold of 32
rows, ours as they fit. Printed are seconds on the clock, seconds of processor time (which say more than the clock where
something else runs beside), and both best scores. Loading is not timed; hashing the weights, the database and the
verdict, which only ours has, are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from optuna.trial import TrialState

from llmsearch_optuna import Engine, SearchResult, Task, search
from llmsearch_optuna.demo.dialogues import demo_dialogues
from llmsearch_optuna.demo.model import demo_model_folder
from llmsearch_optuna.models.loader import load
from llmsearch_optuna.space.space import Space

PROMPT = "Summarize the dialogue in one sentence.\n\n{dialogue}"
GREEDY = {"do_sample": [False], "max_new_tokens": [48]}
"""Decodes the same on both sides: its score shows that both do the same work."""
TARGET = 6.0

Grid = list[dict[str, list[Any]]]


def grid(tiny: bool = False) -> Grid:
    """Greedy, and 23 ways of sampling of the kind that llmsearch's own examples search."""
    if tiny:
        return [
            {"do_sample": [False], "max_new_tokens": [8]},
            {"do_sample": [True], "temperature": [0.5, 1.0], "max_new_tokens": [8], "generation_seed": [42]},
        ]
    sampling = {"do_sample": [True], "max_new_tokens": [48], "generation_seed": [42]}
    return [
        GREEDY,
        {**sampling, "temperature": [0.3, 0.6, 0.8, 1.0], "top_p": [0.7, 0.9], "top_k": [10, 50]},
        {**sampling, "temperature": [0.7], "top_p": [0.8, 0.95, 1.0], "top_k": [50], "no_repeat_ngram_size": [0, 3]},
        {**sampling, "temperature": [0.7], "top_k": [50], "max_new_tokens": [32]},
    ]


@dataclass(frozen=True)
class Outcome:
    """One way of searching: how long it took, and what it found."""

    seconds: float
    processor_seconds: float
    best_score: float
    best_params: Mapping[str, Any]
    greedy_score: float

    @classmethod
    def of(cls, seconds: float, processor_seconds: float, scores: Sequence[tuple[Mapping[str, Any], float]]) -> Outcome:
        """From the score of every configuration that was decoded on all rows."""
        best_params, best_score = max(scores, key=lambda pair: pair[1])
        greedy = next((score for params, score in scores if not params.get("do_sample")), float("nan"))
        return cls(seconds, processor_seconds, best_score, best_params, greedy)


def theirs(python: Path, folder: Path, task: Task, tokenizer: Any, configurations: Grid, batch_size: int) -> Outcome:
    """Run llmsearch's search in its own environment."""
    prepared = task.prepare(tokenizer)
    with tempfile.TemporaryDirectory() as place:
        job, answer = Path(place) / "job.json", Path(place) / "answer.json"
        rows = [{"prompt": p, "summary": r} for p, r in zip(prepared.prompts, prepared.references, strict=True)]
        job.write_text(
            json.dumps(
                {
                    "model": str(_readable_by_old_transformers(folder, Path(place) / "model")),
                    "rows": rows,
                    "grid": configurations,
                    "batch_size": batch_size,
                    "threads": torch.get_num_threads(),
                }
            )
        )
        script = Path(__file__).with_name("peer_llmsearch.py")
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"TQDM_DISABLE": "1"}
        subprocess.run([python, script, job, answer], check=True, env=alone)
        told = json.loads(answer.read_text())
    return Outcome.of(told["seconds"], told["processor_seconds"], [(s["params"], s["score"]) for s in told["scores"]])


def ours(model: Any, tokenizer: Any, task: Task, configurations: Grid, **settings: Any) -> Outcome:
    """Run our search on the same grid, with nothing kept from before."""
    space = Space.from_param_grid(configurations)
    count = sum(1 for _ in space.combinations())
    engine = Engine(model, tokenizer)
    with tempfile.TemporaryDirectory() as place:
        started, started_processor = time.perf_counter(), time.process_time()
        result = search(
            engine,
            task,
            space,
            n_trials=count + 2,  # trials 0 and 1 are the baseline and greedy, where the grid does not have them
            sampler="grid",
            storage=f"sqlite:///{place}/peer.db",
            progress=False,
            **{"holdout": 0.3} | settings,
        )
        seconds, processor = time.perf_counter() - started, time.process_time() - started_processor
        return Outcome.of(seconds, processor, _scores(result))


def _scores(result: SearchResult) -> list[tuple[Mapping[str, Any], float]]:
    return [
        (trial.user_attrs["params"], trial.value)
        for trial in result.trials
        if trial.state is TrialState.COMPLETE and trial.value is not None
    ]


def _readable_by_old_transformers(folder: Path, copy: Path) -> Path:
    """A copy whose tokenizer has its merges as texts and whose configuration has a plain rope_theta."""
    copy.mkdir()
    (copy / "model.safetensors").symlink_to(folder / "model.safetensors")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in settings.items() if name.endswith("_token")}
    (copy / "tokenizer_config.json").write_text(json.dumps(kept | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope["rope_theta"], "torch_dtype": config.pop("dtype")}
    (copy / "config.json").write_text(json.dumps(config))
    shutil.copy(folder / "generation_config.json", copy)
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=Path(".venv-peer/bin/python"), help="llmsearch's Python")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16, help="llmsearch's; ours finds its own")
    parser.add_argument("--tiny", action="store_true", help="three configurations, 8 tokens, 4 rows")
    arguments = parser.parse_args()
    if not arguments.python.exists():
        sys.exit(f"{arguments.python} is missing: make bench-peer makes it")
    configurations = grid(arguments.tiny)
    folder = demo_model_folder()
    loaded = load(folder, device="cpu", dtype="float32")
    rows = demo_dialogues()[: 4 if arguments.tiny else arguments.rows]
    task = Task(rows, prompt=PROMPT, reference="summary", metric="rouge1", name="peer")
    print(
        f"{sum(1 for _ in Space.from_param_grid(configurations).combinations())} configurations x {len(rows)} rows, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        flush=True,
    )
    peer = theirs(arguments.python, folder, task, loaded.tokenizer, configurations, arguments.batch_size)
    _tell("llmsearch 0.1.0, GridSearchCV(cv=2)", peer)
    same = ours(loaded.model, loaded.tokenizer, task, configurations, holdout=0, pruner="none")
    _tell("ours, the same work", same)
    default = ours(loaded.model, loaded.tokenizer, task, configurations)
    _tell("ours, pruning and verdict as by default", default)
    for name, one in (("the same work", same), ("as by default", default)):
        print(
            f"{name}: {peer.seconds / one.seconds:.1f} times as fast on the clock (target {TARGET:.0f}), "
            f"{peer.processor_seconds / one.processor_seconds:.1f} times in processor time"
        )


def _tell(name: str, outcome: Outcome) -> None:
    print(
        f"{name}: {outcome.seconds:.1f} s, {outcome.processor_seconds:.1f} s of processor time; "
        f"best {outcome.best_score:.4f}, greedy {outcome.greedy_score:.4f}; {dict(outcome.best_params)}",
        flush=True,
    )


if __name__ == "__main__":
    main()

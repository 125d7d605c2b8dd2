"""What decoding costs beside other work: the demo's model next to 0, 1 and 3 processes that keep a core busy each.

    python -m tests.benchmarks.contended [--busy 0,1,3] [--rows 16] [--configurations 4]

The same requests are decoded in a fresh process for every line, with torch's own number of threads to begin with. The
fair share of a machine with C cores among P processes is C / P cores; the line says how many times as long decoding
took as the quiet run would have taken with that share.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from llmsearch_optuna.openmp import SPIN_VARIABLE

CONFIGURATIONS: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0},
    {"do_sample": True, "temperature": 1.0, "top_k": 50},
    {"do_sample": False, "repetition_penalty": 1.2},
]
NEW_TOKENS = 32


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep so many cores busy."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def decode(rows: int, configurations: int) -> dict[str, float]:
    """Decode in this process; seconds of the clock and of the processor, without loading."""
    import torch

    from llmsearch_optuna.demo.dialogues import demo_dialogues
    from llmsearch_optuna.demo.model import demo_model_folder
    from llmsearch_optuna.engine.engine import Engine
    from llmsearch_optuna.models.loader import load

    loaded = load(str(demo_model_folder()), dtype="float32", device="cpu")
    engine = Engine(loaded.model, loaded.tokenizer)
    prompts = [f"Summarize: {row['dialogue']}\nSummary:" for row in demo_dialogues()[:rows]]
    started, processor = time.perf_counter(), time.process_time()
    for params in CONFIGURATIONS[:configurations]:
        engine.generate(prompts, {**params, "max_new_tokens": NEW_TOKENS})
    return {
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - processor,
        "threads": torch.get_num_threads(),
    }


def measured(arguments: argparse.Namespace, processes: int) -> dict[str, float]:
    """Decode in a process of its own beside busy ones."""

    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", SPIN_VARIABLE)}
    command = [sys.executable, "-m", "tests.benchmarks.contended", "--decode", "--rows", str(arguments.rows)]
    command += ["--configurations", str(arguments.configurations)]
    with busy(processes):
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print one line for each number of busy processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", default="0,1,3")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--configurations", type=int, default=len(CONFIGURATIONS))
    parser.add_argument("--decode", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.decode:
        print(json.dumps(decode(arguments.rows, arguments.configurations)))
        return
    quiet: float | None = None
    for processes in map(int, arguments.busy.split(",")):
        found = measured(arguments, processes)
        quiet = quiet or found["seconds"]
        fair = quiet * (1 + processes)
        print(
            f"{processes} busy: {found['seconds']:.1f} s ({found['processor_seconds']:.1f} s of processor time), "
            f"{found['seconds'] / fair:.2f} times a fair share",
            flush=True,
        )


if __name__ == "__main__":
    main()

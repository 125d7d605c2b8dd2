"""What many rows cost before the first one is decoded, and when the study is resumed.

    python -m tests.benchmarks.size [--rows 100000]

SmolLM2's tokenizer with its chat template, and a random Llama of one layer. Prints processor time and memory from the
call of `search` to the start of the first trial; the resumed study is the same call in a fresh process.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from transformers import AutoTokenizer

from llmsearch_optuna import Engine, search
from llmsearch_optuna.demo.model import demo_model_folder
from llmsearch_optuna.errors import LlmsearchError
from llmsearch_optuna.progress import TrialStarted
from tests.tiny import llama_config, random_llama

WORDS = ("the", "train", "to", "Oslo", "leaves", "at", "seven", "or", "half", "past", "eight", "and", "Anna", "asks")


class FirstTrial:
    """Prints what it took until the first trial started, and ends the study there."""

    def __init__(self) -> None:
        self._seconds = time.process_time()
        self._bytes = psutil.Process().memory_info().rss

    def on(self, event: object) -> None:
        """Take an event of the search."""
        if isinstance(event, TrialStarted):
            grown = psutil.Process().memory_info().rss - self._bytes
            print(
                f"{time.process_time() - self._seconds:6.1f} s of processor time, {grown / 2**20:5.0f} MiB", flush=True
            )
            raise KeyboardInterrupt


def run(rows: int, database: str) -> None:
    """Search on so many rows until the first trial starts."""
    torch.set_num_threads(1)
    rng = random.Random(0)
    dataset = [
        {"question": f"{number}: {' '.join(rng.choices(WORDS, k=40))}", "answer": " ".join(rng.choices(WORDS, k=8))}
        for number in range(rows)
    ]
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder())
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 2048}
    engine = Engine(random_llama(llama_config(vocab_size=len(tokenizer), **shape)), tokenizer, batch_size=32)
    search(
        engine,
        dataset,
        {"max_new_tokens": 4, "do_sample": True},
        holdout=0.3,
        prompt="{question}",
        reference="answer",
        metric="rouge1",
        n_trials=2,
        storage=f"sqlite:///{database}",
        study_name="size",
        callbacks=[FirstTrial()],
        progress=False,
    )


def main() -> None:
    """Measure a new study and the same one resumed, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--database", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.database:
        try:
            run(arguments.rows, arguments.database)
        except LlmsearchError as interrupted:
            sys.exit(0 if "interrupted" in str(interrupted) else str(interrupted))
        return
    with tempfile.TemporaryDirectory() as folder:
        for what in ("new", "resumed"):
            command = [sys.executable, "-m", "tests.benchmarks.size", "--rows", str(arguments.rows)]
            print(f"{arguments.rows:,} rows, {what}:", end=" ", flush=True)
            subprocess.run(
                [*command, "--database", str(Path(folder) / "size.db")], check=True, stderr=subprocess.DEVNULL
            )


if __name__ == "__main__":
    main()

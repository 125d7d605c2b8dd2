"""Is the engine right on this device, and how far is it from what the device can do?

    python -m tests.gpu [--small] [--only name,name] [--budget SECONDS] [--out FILE]

Prints one JSON line a check (`check`, `ok`, `seconds`, and what was found), a summary line last. `ok: null` is a
measurement without a verdict; timings are in milliseconds unless their name says otherwise. Checks run in child
processes: one that crashes, hangs or spoils the CUDA context is reported, and the rest goes on in a fresh child.
`--small` is for a machine without a GPU. Needs torch, transformers, tokenizers, numpy and psutil, and neither a
network nor weights.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

from tests.gpu.checks import CHECKS, RESULT, START

Record = dict[str, Any]
Say = Callable[[Record], None]

START_SECONDS = 90
"""What a child may take to import everything and to start CUDA."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--only", default="", help=f"some of {','.join(CHECKS)}")
    parser.add_argument("--budget", type=float, help="seconds for everything; default 450 (small: 1200)")
    parser.add_argument("--out", default="", help="a file that gets the lines as well")
    arguments = parser.parse_args()
    names = [name for name in CHECKS if not arguments.only or name in arguments.only.split(",")]
    budget = arguments.budget or (1200.0 if arguments.small else 450.0)
    if not arguments.out:
        return run(names, arguments.small, budget, None)
    with open(arguments.out, "a", encoding="utf-8") as out:
        return run(names, arguments.small, budget, out)


def run(names: list[str], small: bool, budget: float, out: IO[str] | None) -> int:
    """Run checks within so many seconds; returns the exit status, 1 where one has failed."""
    started, deadline = time.monotonic(), time.monotonic() + budget
    results: Record = {}

    def say(record: Record) -> None:
        line = json.dumps(record)
        for place in (sys.stdout, out):
            if place is not None:
                print(line, file=place, flush=True)
        results[record["check"]] = record.get("ok")

    left = names
    while left:
        if deadline - time.monotonic() < 8:
            for name in left:
                say({"check": name, "ok": None, "skipped": "no time left"})
            break
        left = Child(left, small).work(deadline, say)
    failed = [name for name, ok in results.items() if ok is False]
    say({"check": "summary", "ok": not failed, "failed": failed, "seconds": round(time.monotonic() - started, 1)})
    return 1 if failed else 0


class Child:
    """A process that works on checks for as long as it lives."""

    def __init__(self, names: list[str], small: bool) -> None:
        self._left = list(names)
        self._patience = 4 if small else 1
        command = [sys.executable, "-u", "-m", "tests.gpu.child", ",".join(names), *(["--small"] if small else [])]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [threading.Thread(target=target, daemon=True) for target in (self._read, self._drain)]
        for reader in self._readers:
            reader.start()

    def work(self, deadline: float, say: Say) -> list[str]:
        """Report what it finds until it ends, hangs or spoils its device; returns what is left to do."""
        current, since, reason = "", time.monotonic(), "the process ended"
        while self._left:
            limit = self._patience * (CHECKS[current].seconds if current else START_SECONDS)
            wait = min(since + limit, deadline) - time.monotonic()
            if wait <= 0:
                reason = "the whole budget is spent" if deadline <= time.monotonic() else "timed out"
                break
            try:
                line = self._lines.get(timeout=wait)
            except queue.Empty:
                continue
            if line is None:
                break
            if line.startswith(START):
                current, since = line[len(START) :].strip(), time.monotonic()
            elif line.startswith(RESULT):
                record = json.loads(line[len(RESULT) :])
                say(record)
                self._left.remove(record["check"])
                current, since = "", time.monotonic()
                if record.get("poisoned"):  # a CUDA error that no later call survives
                    reason = ""
                    break
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=2)
        if self._left and reason:
            name, seconds = current or self._left[0], round(time.monotonic() - since, 1)
            error = f"{reason} (exit {self._process.returncode})"
            say(
                {
                    "check": name,
                    "ok": False,
                    "error": error,
                    "seconds": seconds,
                    "stderr": "".join(self._errors)[-1500:],
                }
            )
            self._left.remove(name)
        return self._left

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _drain(self) -> None:
        assert self._process.stderr is not None
        self._errors.extend(self._process.stderr)


if __name__ == "__main__":
    sys.exit(main())

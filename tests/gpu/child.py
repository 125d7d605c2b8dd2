"""A child of `python -m tests.gpu`: runs checks one after the other and prints what they find."""

from __future__ import annotations

import faulthandler
import importlib
import json
import sys
import time
import traceback

from tests.gpu.checks import CHECKS, RESULT, START
from tests.gpu.context import Context, Result

POISONING = ("device-side assert", "illegal memory", "unspecified launch")
"""After these no later CUDA call succeeds in the process."""


def main(names: list[str], small: bool) -> None:
    """Run these checks; the device is started before the first one begins, and not counted in it."""
    context = Context(small)
    for name in names:
        print(START + name, flush=True)
        print(RESULT + json.dumps(run(name, context), default=str), flush=True)
        context.clean()


def run(name: str, context: Context) -> Result:
    """What a check found, or how it failed."""
    begun = time.perf_counter()
    record: Result = {"check": name, "ok": None}
    try:
        record |= getattr(importlib.import_module(f"tests.gpu.{CHECKS[name].module}"), name)(context)
    except Exception as error:
        text = str(error).lower()
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        record |= {
            "ok": False,
            "error": f"{type(error).__name__}: {error}"[:600],
            "at": [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in frames],
            "poisoned": any(part in text for part in POISONING),
        }
    record["seconds"] = round(time.perf_counter() - begun, 2)
    return record


if __name__ == "__main__":
    faulthandler.enable()
    main(sys.argv[1].split(","), "--small" in sys.argv[2:])

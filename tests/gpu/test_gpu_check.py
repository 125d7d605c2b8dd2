"""The checks that a machine with a GPU runs, on small models and the CPU, so that they are there when one is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.checks import CHECKS

SLOW = {"host_memory_lagging_stream", "batch_independence_fp32", "host_memory"}


@pytest.mark.parametrize("names", [sorted(set(CHECKS) - SLOW), pytest.param(sorted(SLOW), marks=pytest.mark.slow)])
def test_every_check_runs_small_on_a_cpu(names: list[str], tmp_path: Path) -> None:
    out = tmp_path / "lines.jsonl"
    command = [sys.executable, "-m", "tests.gpu", "--small", "--only", ",".join(names), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert done.returncode == 0, [line for line in lines if line["ok"] is False]
    assert {line["check"] for line in lines} == {*names, "summary"}
    assert not any("skipped" in line for line in lines)


def test_a_check_that_hangs_or_dies_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import sys, os\nif 'tests.gpu.child' in sys.orig_argv and 'environment' in sys.orig_argv[-2]: os._exit(3)\n"
    )
    command = [sys.executable, "-m", "tests.gpu", "--small", "--only", "environment,nvml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_with_path(tmp_path))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["check"], line["ok"]) for line in lines] == [
        ("environment", False),
        ("nvml", True),
        ("summary", False),
    ]
    assert "exit 3" in lines[0]["error"]
    assert done.returncode == 1


def _with_path(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

"""Memory that runs out, really, and memory that a long study must not take."""

from __future__ import annotations

import json
import multiprocessing
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.api import search
from llmsearch_optuna.cli.output import print_outcome
from llmsearch_optuna.engine.engine import Engine
from tests.faults.memory_child import run_many_trials, run_with_so_much_memory
from tests.tiny import SENTENCES

pytestmark = pytest.mark.faults

MEGABYTES = 60
"""What is left beside the model: less than a pass over all rows takes, more than one over a quarter of them."""


def in_processes(target: Any, *calls: tuple[Any, ...]) -> None:
    """Call it with each of these arguments in a process of its own, all at the same time."""
    children = [multiprocessing.get_context("spawn").Process(target=target, args=arguments) for arguments in calls]
    for child in children:
        child.start()
    for child in children:
        child.join(280)
    assert [child.exitcode for child in children] == [0] * len(calls)


def test_when_memory_is_really_short_batches_shrink_and_the_tokens_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every thread would reserve an arena of address space, which is what is limited here.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    left = {"plenty": None, "short": MEGABYTES}
    for name in left:
        (tmp_path / name).mkdir()
    in_processes(run_with_so_much_memory, *((str(tmp_path / name), megabytes) for name, megabytes in left.items()))
    found = {name: json.loads((tmp_path / name / "found.json").read_text()) for name in left}
    assert found["plenty"]["ran_out"] == 0
    assert found["short"]["ran_out"] > 0
    said = found["short"]["said"]
    assert any("can't allocate memory" in text for text in said), said
    assert any(re.search(r"out of memory with \d+ rows", text) for text in said), said
    assert found["short"]["completions"] == found["plenty"]["completions"]
    assert found["short"]["failures"] == {}


def test_a_study_of_200_trials_takes_no_more_memory_than_one_of_20(tmp_path: Path) -> None:
    in_processes(run_many_trials, (str(tmp_path), 200))
    early, late = json.loads((tmp_path / "bytes.json").read_text())
    assert late <= 1.1 * early


class ShortRowsOnly:
    """A device on which one row does not fit once it is longer than so many tokens, however small the batch."""

    def __init__(self, model: LlamaForCausalLM, tokens: int) -> None:
        self._tokens = tokens
        self._handle = model.model.register_forward_pre_hook(self._hook, with_kwargs=True)

    def _hook(self, module: Any, arguments: Any, named: dict[str, Any]) -> None:
        mask = named.get("attention_mask")
        if mask is not None and mask.shape[1] > self._tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def __enter__(self) -> ShortRowsOnly:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def test_a_row_that_fits_nowhere_fails_its_trial_and_the_report_names_it(
    tmp_path: Path,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    longest = max(len(tiny_tokenizer(f"{s} {n}").input_ids) for n in range(3) for s in SENTENCES)
    with ShortRowsOnly(tiny_llama, longest + 20):
        result = search(
            Engine(tiny_llama, tiny_tokenizer, batch_size=8),
            [{"prompt": f"{sentence} {n}", "answer": sentence} for n in range(3) for sentence in SENTENCES],
            {
                "max_new_tokens": CategoricalDistribution([6, 60]),
                "repetition_penalty": CategoricalDistribution([1.0, 1.2]),
                "eos_token_id": 198,
            },
            holdout=0.3,
            baseline={"max_new_tokens": 6},
            reference="answer",
            metric="f1",
            n_trials=4,
            sampler="grid",
            storage=f"sqlite:///{tmp_path}/study.db",
            study_name="study",
            progress=False,
        )
    failed = [t for t in result.trials if t.state is TrialState.FAIL]
    assert failed
    assert all(t.user_attrs["params"]["max_new_tokens"] == 60 for t in failed)
    assert all("one row alone does not fit into memory" in t.user_attrs["fail_reason"] for t in failed)
    assert [t for t in result.trials if t.state is TrialState.COMPLETE], "the study went on"
    assert sorted(n for numbers in result.failures.values() for n in numbers) == [t.number for t in failed]
    page = result.save_report(tmp_path / "report.html").read_text(encoding="utf-8")
    print_outcome(result, report=tmp_path / "report.html")
    said = " ".join(capsys.readouterr().out.split())
    for reason, numbers in result.failures.items():
        assert f"{', '.join(map(str, numbers))} failed: row" in page
        assert f"failed: trial {', '.join(map(str, numbers))}: {reason[:60]}" in said

from __future__ import annotations

import pytest
import torch

from llmsearch_optuna.workers.devices import environment, usable_cores, visible_gpus


def test_each_worker_gets_a_gpu_and_its_share_of_the_threads() -> None:
    given = [environment(number, 3, ["0", "2"], cores=8) for number in range(3)]
    assert [variables["CUDA_VISIBLE_DEVICES"] for variables in given] == ["0", "2", "0"]
    assert {variables["OMP_NUM_THREADS"] for variables in given} == {"2"}


def test_without_gpus_only_the_threads_are_shared_and_nobody_is_left_without_one() -> None:
    assert environment(5, 6, [], cores=2) == {"OMP_NUM_THREADS": "1"}


def test_the_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(None) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert visible_gpus("cuda") == ["3", "5"]
    assert visible_gpus("cuda:1") == [], "whoever names one gets that one"
    assert visible_gpus("cpu") == []


def test_fewer_cores_are_used_where_the_user_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert usable_cores() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert usable_cores() >= 1

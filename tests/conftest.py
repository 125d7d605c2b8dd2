"""Fixtures that several rooms share: a tiny real model and a tiny real tokenizer, both made here, offline."""

from __future__ import annotations

import gc
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny import make_llama, make_tokenizer

settings.register_profile(
    "project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=40
)
settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors lose time on several threads, and two cores are shared by the workers of a parallel run."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _imports_are_no_garbage() -> None:
    """A collection looks at everything that was imported: a second each, and running out of memory collects often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """A shell without a terminal lets what it starts in the background ignore Ctrl-C, and processes inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_llama() -> LlamaForCausalLM:
    """A random float32 Llama with 199 tokens. Shared: do not change its weights or its generation config."""
    return make_llama()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with at most 199 tokens. Shared: copy it with `copy.deepcopy` where a test needs another one."""
    return make_tokenizer()

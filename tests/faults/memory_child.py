"""Studies of a real model in processes of their own, whose memory is limited or watched."""

from __future__ import annotations

import gc
import json
import logging
import resource
from pathlib import Path
from typing import Any

import psutil
import torch
from optuna.distributions import FloatDistribution
from transformers import LlamaForCausalLM

from llmsearch_optuna import progress
from llmsearch_optuna.api import search
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.search_result import SearchResult
from tests.tiny import SENTENCES, VOCABULARY, llama_config, make_llama, make_tokenizer

SPACE = {"max_new_tokens": 6, "do_sample": True, "temperature": FloatDistribution(0.5, 1.5)}
BATCH = 64
WIDE_VOCABULARY = 300_000


def make_wide_llama() -> LlamaForCausalLM:
    """Small, but for its vocabulary: the scores of 64 rows take 77 MB, and as much again to be added up.

    What the tokenizer does not know is never among the likely tokens.
    """
    config = llama_config(
        vocab_size=WIDE_VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
    )
    torch.manual_seed(5)
    model = LlamaForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[:VOCABULARY].normal_(0.0, 1.0)
    return model.eval()


def run_with_so_much_memory(folder: str, megabytes: int | None) -> None:
    """Run a study; what is left to it beside the loaded model is limited, if a limit is given."""
    torch.set_num_threads(1)
    # What other libraries load and reserve at their first use is there before the limit is set: some of them end the
    # process when they get none.
    small_study(Engine(make_llama(), make_tokenizer()), folder, "before", rows=2)
    engine = Engine(make_wide_llama(), make_tokenizer(), batch_size=BATCH, cache_budget=2_000_000)
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("llmsearch_optuna.engine").addHandler(listener)
    if megabytes is not None:
        limit = psutil.Process().memory_info().vms + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    result = small_study(engine, folder, "study", rows=14)
    texts = [[[r.row, list(r.token_ids)] for r in result.records(number)] for number in range(4)]
    found = {"completions": texts, "ran_out": engine.stats.out_of_memory, "said": said, "failures": result.failures}
    Path(folder, "found.json").write_text(json.dumps(found))


def small_study(engine: Engine, folder: str, name: str, *, rows: int) -> SearchResult:
    """Search four trials on so many rows a sentence."""
    return search(
        engine,
        [{"prompt": f"{sentence} {n}", "answer": sentence} for n in range(rows) for sentence in SENTENCES],
        SPACE,
        holdout=0.3,
        reference="answer",
        metric="f1",
        n_trials=4,
        storage=f"sqlite:///{folder}/{name}.db",
        study_name=name,
        progress=False,
    )


class WatchingMemory:
    """Notes the resident size after the trials with these places in the order of ending."""

    def __init__(self, places: tuple[int, ...]) -> None:
        self.bytes: list[int] = []
        self._places, self._ended = places, 0

    def on(self, event: Any) -> None:
        if isinstance(event, progress.TrialEnded):
            self._ended += 1
            if self._ended in self._places:
                gc.collect()
                self.bytes.append(psutil.Process().memory_info().rss)


def run_many_trials(folder: str, n_trials: int) -> None:
    """Leave the resident sizes after 20 trials and at the end in a file."""
    torch.set_num_threads(1)
    watching = WatchingMemory((20, n_trials))
    search(
        Engine(make_llama(), make_tokenizer(), cache_budget=2_000_000),
        [{"prompt": f"{sentence} {n}", "answer": sentence} for n in range(4) for sentence in SENTENCES],
        SPACE,
        holdout=0.3,
        reference="answer",
        metric="f1",
        n_trials=n_trials,
        storage=f"sqlite:///{folder}/study.db",
        study_name="study",
        observer=watching,
    )
    Path(folder, "bytes.json").write_text(json.dumps(watching.bytes))

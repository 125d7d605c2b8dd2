"""Picking on the device against the host's, which decides by all logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.sampling.device_sampler import DeviceRows, can_pick, draw_whole, pick_listed
from llmsearch_optuna.engine.sampling.gumbel import gumbel
from llmsearch_optuna.engine.sampling.sampler import pick_from_logits
from llmsearch_optuna.engine.sampling.settings import settings_of
from tests.engine.sampling.test_sampler import Row, make_logits, make_params

CPU = torch.device("cpu")
CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"do_sample": True, "temperature": 0.7},
    {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0},
    {"do_sample": True, "temperature": 1.6, "top_p": 0.9, "top_k": 20, "generation_seed": 2**63 - 5},
    {"do_sample": True, "top_k": 0, "min_p": 0.05},
    {"do_sample": True, "top_k": 7, "top_p": 0.4, "min_p": 0.02},
    {"repetition_penalty": 1.2, "min_new_tokens": 9},
    {"do_sample": True, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"presence_penalty": 0.7, "frequency_penalty": 0.4, "suppress_tokens": [3, 4, 11]},
    {"do_sample": True, "top_k": 30, "frequency_penalty": 0.6, "repetition_penalty": 1.1},
    {"do_sample": True, "top_k": 0, "presence_penalty": 1.5, "repetition_penalty": 1.1, "temperature": 0.8},
    {"do_sample": True, "top_k": 0},
)
OTHERS = (
    {"do_sample": True, "typical_p": 0.9},
    {"do_sample": True, "top_n_sigma": 1.0},
    {"do_sample": True, "epsilon_cutoff": 0.01},
    {"do_sample": True, "top_h": 0.4},
    {"do_sample": True, "mirostat_mode": 2, "mirostat_tau": 5.0, "mirostat_eta": 0.1},
    {"repetition_penalty": 0.9},
    {"presence_penalty": -0.5},
    {"frequency_penalty": -0.1},
    {"dry_multiplier": 1.0},
    {"sequence_bias": [[[5], 1.0]]},
    {"exponential_decay_length_penalty": (2, 1.3)},
)


def make_rows(count: int, configuration: int | None = None) -> list[Row]:
    chosen = [n % len(CONFIGURATIONS) if configuration is None else configuration for n in range(count)]
    generator = np.random.default_rng(1)
    keys = generator.integers(0, 2**64, count, dtype=np.uint64)
    contexts = [generator.integers(0, 60, 5 + n % 40).tolist() for n in range(count)]
    return [
        Row(make_params(**CONFIGURATIONS[which]), context, prompt_length=5, row_key=int(key), step=len(context) - 5)
        for which, key, context in zip(chosen, keys, contexts, strict=True)
    ]


def pick_listed_of(logits: np.ndarray, width: int, rows: list[Row], device: torch.device = CPU) -> np.ndarray:
    everything = torch.from_numpy(logits).to(device)
    top = torch.topk(everything, width, dim=-1)
    total = torch.logsumexp(everything, dim=-1)
    found = pick_listed(top.values, top.indices.int(), total, logits.shape[1], DeviceRows.of(rows, device))
    return found.cpu().numpy()


@settings(max_examples=150)
@given(st.sampled_from(["flat", "peaked", "tied", "half", "model"]), st.integers(0, 10**6), st.integers(1, 300))
def test_what_is_decided_is_what_all_logits_decide(kind: str, seed: int, width: int) -> None:
    rows = make_rows(21)
    logits = make_logits(kind, seed, len(rows))
    found, wanted = pick_listed_of(logits, width, rows), pick_from_logits(logits, rows)
    decided = found >= 0
    assert found[decided].tolist() == wanted[decided].tolist()
    if width == logits.shape[1]:
        assert decided.all()


@pytest.mark.parametrize("configuration", range(len(CONFIGURATIONS) - 2))
def test_most_rows_of_a_language_model_are_decided_by_their_largest_logits(configuration: int) -> None:
    rows = make_rows(64, configuration)
    logits = make_logits("model", 3, len(rows), 20_000)
    assert (pick_listed_of(logits, 1024, rows) >= 0).mean() > (0.95 if configuration != 4 else 0.8)


@pytest.mark.parametrize("kind", ["flat", "peaked", "tied", "half", "model", "infinite", "impossible"])
@pytest.mark.parametrize("configuration", [len(CONFIGURATIONS) - 1, len(CONFIGURATIONS) - 2])
def test_rows_without_truncation_are_drawn_from_everything(kind: str, configuration: int) -> None:
    rows = make_rows(16, configuration)
    logits = make_logits(kind, 5, len(rows), 3000)
    if kind == "infinite":
        logits[:, [7, 900]] = np.inf
    if kind == "impossible":
        logits[:] = -np.inf
    found = draw_whole(torch.from_numpy(logits), DeviceRows.of(rows, CPU))
    assert found.tolist() == pick_from_logits(logits, rows).tolist()


def test_the_noise_is_the_same_to_the_last_bits() -> None:
    from llmsearch_optuna.engine.sampling import device_sampler

    rows = make_rows(30, 3)
    ids = torch.arange(5000)[None]
    found = device_sampler._gumbel(device_sampler._bits(DeviceRows.of(rows, CPU).streams, ids))
    seeds, keys, steps = ([getattr(row, name) for row in rows] for name in ("params", "row_key", "step"))
    wanted = gumbel([seed.generation_seed for seed in seeds], np.array(keys, dtype=np.uint64), steps, ids.numpy())
    assert np.allclose(found.numpy(), wanted, rtol=1e-14, atol=1e-14)


def test_what_else_may_be_asked_for_is_left_to_the_host() -> None:
    assert all(can_pick(settings_of(make_params(**params))) for params in CONFIGURATIONS)
    assert not any(can_pick(settings_of(make_params(**params))) for params in OTHERS)


@pytest.mark.parametrize("configuration", range(len(CONFIGURATIONS)))
def test_an_engine_that_picks_on_the_device_gives_the_same_tokens(
    configuration: int, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = ("The quick brown fox", "Anna asks Ben", "How many apples", "T", "T")
    params = {"max_new_tokens": 12, **CONFIGURATIONS[configuration]}
    for top in (5, 1024):
        host, device = (Engine(tiny_llama, tiny_tokenizer, batch_size=3, top=top) for _ in range(2))
        device._runner.samples_on_device = True
        assert device.generate(prompts, params) == host.generate(prompts, params)
        assert device.stats.lookups >= host.stats.lookups


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a CUDA device with the host")
@pytest.mark.parametrize("kind", ["tied", "half", "model"])
def test_a_cuda_device_picks_what_the_host_picks(kind: str) -> None:
    device = torch.device("cuda")
    rows = make_rows(210)
    logits = make_logits(kind, 7, len(rows), 20_000)
    found, wanted = pick_listed_of(logits, 1024, rows, device), pick_from_logits(logits, rows)
    decided = found >= 0
    assert decided.mean() > 0.5
    assert found[decided].tolist() == wanted[decided].tolist()
    plain = [place for place, row in enumerate(rows) if row.params == rows[len(CONFIGURATIONS) - 1].params]
    drawn = draw_whole(torch.from_numpy(logits[plain]).to(device), DeviceRows.of([rows[i] for i in plain], device))
    assert drawn.tolist() == wanted[plain].tolist()

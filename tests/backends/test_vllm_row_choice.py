"""The choice of one row: the sampler's, whatever stands beside it, and refused where it cannot be made."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.backends.vllm.row_choice import MARK, ChoosingRow, RowSettings, choose
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.sampler import pick_from_logits
from tests.engine.sampling.rows import KINDS, make_logits

PARAMS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "top_k": 0},
    {"do_sample": True, "top_k": 9, "top_p": 0.8},
    {"do_sample": True, "mirostat_mode": 2, "mirostat_tau": 2.0},
    {"do_sample": True, "top_k": 0, "repetition_penalty": 1.4, "typical_p": 0.6},
    {"do_sample": True, "top_k": 0, "presence_penalty": -1.0, "frequency_penalty": 0.7},
]


def settings(given: dict[str, Any], replicate: int = 0) -> RowSettings:
    return RowSettings(GenerationParams.of({"max_new_tokens": 12, "eos_token_id": [1], **given}), 0, replicate)


@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    chosen=st.lists(st.tuples(st.sampled_from(PARAMS), st.integers(0, 3)), min_size=1, max_size=6),
    steps=st.integers(1, 4),
)
def test_rows_are_picked_by_the_sampler_and_do_not_see_each_other(
    kind: str, seed: int, chosen: list[tuple[dict[str, Any], int]], steps: int
) -> None:
    outputs: list[list[int]] = [[] for _ in chosen]
    lonely: list[list[int]] = [[] for _ in chosen]
    rows = [ChoosingRow(settings(*one), [3, 4, place], outputs[place]) for place, one in enumerate(chosen)]
    alone = [ChoosingRow(settings(*one), [3, 4, place], lonely[place]) for place, one in enumerate(chosen)]
    for step in range(steps):
        logits = torch.from_numpy(make_logits(kind, seed + step, rows=len(rows)))
        for output, token in zip(outputs, choose(logits, rows).tolist(), strict=True):
            output.append(token)
        for place, (row, output) in enumerate(zip(alone, lonely, strict=True)):
            row.catch_up()
            output.append(int(pick_from_logits(logits[place : place + 1].numpy(), [row])[0]))
    assert outputs == lonely


def test_settings_travel_as_text() -> None:
    sent = settings({"do_sample": True, "generation_seed": 2**62}, replicate=3)
    assert RowSettings.from_json(sent.to_json()) == sent


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("?", "cannot read"),
        (7, "cannot read"),
        ("{}", "cannot read"),
        (json.dumps({"version": 99}), "version 99"),
        (settings({"num_beams": 2}).to_json(), "beam needs more than one row"),
        (settings({"xtc_probability": 0.5, "do_sample": True}).to_json(), "does not know xtc_probability"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(text: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        RowSettings.from_json(text)
    assert MARK in str(refused.value)


def test_presence_and_frequency_penalties_are_those_of_servers() -> None:
    row = ChoosingRow(settings({"presence_penalty": 1.0, "frequency_penalty": 0.5}), [5], output := [4, 4, 6])
    logits = np.zeros((1, 8), dtype=np.float32)
    logits[0, [4, 5, 6]] = 2.1, 0.4, 1.8  # 2.1 - 1 - 2 * 0.5, 0.4 of the prompt, 1.8 - 1 - 0.5
    assert choose(torch.from_numpy(logits), [row]).tolist() == [5]
    output.append(5)
    assert choose(torch.from_numpy(logits), [row]).tolist() == [6]


def test_a_row_that_comes_back_goes_on_where_it_was() -> None:
    whole, parted = [], []
    one = ChoosingRow(settings(PARAMS[3]), [3], whole)
    other = ChoosingRow(settings(PARAMS[3]), [3], parted)
    for step in range(6):
        logits = torch.from_numpy(make_logits("normal", step))
        whole += choose(logits, [one]).tolist()
        parted += choose(logits, [other]).tolist()
        if step == 2:
            parted = list(parted)
            other.follow(parted)
    assert whole == parted

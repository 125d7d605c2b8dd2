"""Ready-made spaces are valid, need a length, and take further fixed values."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import IntDistribution

from llmsearch_optuna import presets
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.space.space import BRANCH, Space

NAMES = sorted(presets.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_every_point_of_a_preset_can_be_decoded_and_stored(name: str) -> None:
    space = getattr(presets, name)(max_new_tokens=30)
    rng = np.random.default_rng(0)
    for _ in range(60):
        point = space.at_random(rng)
        params = GenerationParams.of(point.values, {"eos_token_id": 2})
        assert params.max_new_tokens == 30
        assert params.inert == ()
        assert space.encode(point.values) == point
    assert space.baseline_values({})["max_new_tokens"] == 30


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_takes_a_searched_length_and_fixed_values(name: str) -> None:
    preset: Any = getattr(presets, name)
    space = preset(IntDistribution(8, 16), eos_token_id=[3, 4])
    assert space.fixed["eos_token_id"] == [3, 4]
    assert space.baseline_values({})["max_new_tokens"] == 16


@pytest.mark.parametrize("name", ["sampling", "wide", "demo", "arena"])
def test_what_the_user_fixes_is_not_searched(name: str) -> None:
    space = getattr(presets, name)(8, temperature=0.35)
    sampled = [branch for branch in space.branches if branch.fixed.get("do_sample") is True]
    assert sampled
    for branch in sampled:
        assert branch.fixed["temperature"] == 0.35
    assert not any("temperature" in stored for stored in space.search_distributions)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_where_it_comes_from(name: str) -> None:
    text = getattr(presets, name).__doc__
    assert "https://" in text or "measured" in text


def test_presets_are_named_by_how_they_decode() -> None:
    kinds = {name: [b.label for b in getattr(presets, name)(max_new_tokens=8).branches] for name in NAMES}
    assert kinds["greedy"] == ["greedy"]
    assert kinds["sampling"] == ["sampling"]
    assert kinds["beam"] == ["beam"]
    assert kinds["wide"] == kinds["demo"] == ["greedy", "sampling", "beam"]


def test_the_arena_is_a_grid_of_named_presets() -> None:
    space = presets.arena(max_new_tokens=20)
    assert space.size() == 11
    points = {point.params[BRANCH]: point.values for point in space.combinations()}
    assert points["simple_1"] == {
        "max_new_tokens": 20,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "repetition_penalty": 1.15,
    }
    assert len({GenerationParams.of(values).fingerprint for values in points.values()}) == 11


def test_the_demo_is_the_space_of_the_quickstart_study() -> None:
    path = Path(__file__).parent.parent / "studies" / "quickstart.toml"
    tables = tomllib.loads(path.read_text(encoding="utf-8"))["space"]
    assert Space.from_tables(tables).description == presets.demo().description

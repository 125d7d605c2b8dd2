"""Mirostat against a plain loop over one row, written from llama.cpp's definition, on a real model's logits."""

from __future__ import annotations

import doctest
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from transformers import LlamaForCausalLM, LogitsProcessorList, PreTrainedTokenizerFast

from llmsearch_optuna import Engine, search
from llmsearch_optuna.engine.sampling import mirostat
from llmsearch_optuna.engine.sampling.gumbel import gumbel, row_key
from llmsearch_optuna.engine.sampling.hf_processors import own_processors
from llmsearch_optuna.engine.sampling.mirostat import MirostatLogitsWarper
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError
from tests.engine_work import since

TEXTS = ["How many apples", "Anna asks Ben", "The quick brown fox", "T", "How many apples"]
STEERED = {"max_new_tokens": 14, "do_sample": True, "mirostat_mode": 2}
SETTINGS = [
    {},
    {"mirostat_tau": 1.5, "mirostat_eta": 0.6},
    {"mirostat_tau": 0.05, "mirostat_eta": 1.0},
    {"mirostat_tau": 2.5, "temperature": 1.7, "repetition_penalty": 1.3, "generation_seed": 4},
    {"mirostat_tau": 3.0, "temperature": 0.4, "no_repeat_ngram_size": 2},
]


def surprise_limits(
    probabilities: Sequence[Sequence[float]], tokens: Sequence[int], tau: float, eta: float
) -> list[list[int]]:
    """The tokens that may be drawn at each step: a loop over one row's sorted probabilities, as in llama.cpp."""
    mu, kept_at = 2 * tau, []
    for p, token in zip(probabilities, tokens, strict=True):
        order = sorted(range(len(p)), key=lambda i: (-p[i], i))
        kept = [i for i in order if p[i] > 0 and -math.log2(p[i]) <= mu] or order[:1]
        kept_at.append(sorted(kept))
        observed = -math.log2(p[token] / sum(p[i] for i in kept))
        mu -= eta * (observed - tau)
    return kept_at


def expected(model: LlamaForCausalLM, prompt: list[int], values: dict[str, Any], occurrence: int = 0) -> list[int]:
    """The whole row by a plain loop: one forward a token, Hugging Face's own penalties, our noise."""
    params = GenerationParams.of(values)
    rules = penalties(model, params, prompt)
    tau, eta = params["mirostat_tau"], params["mirostat_eta"]
    key, ids, history = row_key(prompt, occurrence, 0), list(prompt), []
    for step in range(params.max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[:, -1].float()
        scores = rules(torch.tensor([ids]), logits)[0].double() / params.get("temperature", 1.0)
        history.append(scores.softmax(-1).tolist())
        kept = surprise_limits(history, [*ids[len(prompt) :], 0][: step + 1], tau, eta)[-1]
        noise = gumbel(params.generation_seed, [key], [step], np.array([kept]))[0]
        ids.append(kept[int(np.argmax(noise + np.log([history[-1][i] for i in kept])))])
        if ids[-1] == 1:
            break
    return ids[len(prompt) :]


def penalties(model: LlamaForCausalLM, params: GenerationParams, prompt: list[int]) -> LogitsProcessorList:
    """What `generate` itself would apply before Mirostat."""
    found: list[LogitsProcessorList] = []

    def capture(model: Any, input_ids: torch.Tensor, logits_processor: LogitsProcessorList, **_: Any) -> Any:
        found.append(logits_processor)
        return input_ids

    names = ("repetition_penalty", "no_repeat_ngram_size")
    values = {name: params[name] for name in names if name in params}
    model.generate(torch.tensor([prompt]), custom_generate=capture, max_new_tokens=3, do_sample=False, **values)
    return found[0]


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return [tiny_tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("values", SETTINGS)
def test_the_engine_draws_what_a_plain_loop_draws(
    values: dict[str, Any],
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    prompts: list[list[int]],
) -> None:
    made = Engine(tiny_llama, tiny_tokenizer, batch_size=3).generate(TEXTS, {**STEERED, **values})
    for row, completion in enumerate(made):
        asked = {**STEERED, "eos_token_id": 1, **values}
        assert list(completion.token_ids) == expected(tiny_llama, prompts[row], asked, occurrence=row == 4)


def test_rows_depend_neither_on_neighbours_nor_on_what_was_computed_before(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = {**STEERED, "mirostat_tau": 2.0, "mirostat_eta": 0.5}
    alone = [Engine(tiny_llama, tiny_tokenizer).generate([text], asked)[0].token_ids for text in TEXTS[:4]]
    used = Engine(tiny_llama, tiny_tokenizer, batch_size=4)
    for other in ({"max_new_tokens": 14}, {**asked, "mirostat_tau": 4.0}, {**asked, "max_new_tokens": 5}):
        used.generate(TEXTS[:4], other)
    before = used.stats
    assert [c.token_ids for c in used.generate(TEXTS[:4], asked)] == alone
    assert since(before, used.stats).replayed_tokens > 0
    before = used.stats
    assert [c.token_ids for c in used.generate(TEXTS[:4][::-1], asked)] == alone[::-1]
    assert since(before, used.stats).forward_tokens == 0
    small = Engine(tiny_llama, tiny_tokenizer, batch_size=1, cache_budget=0)
    assert [c.token_ids for c in small.generate(TEXTS[:4], asked)] == alone


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_alone_with_generate_each_row_has_its_own_state(
    temperature: float, tiny_llama: LlamaForCausalLM, prompts: list[list[int]]
) -> None:
    tau, eta = 1.2, 0.7
    warper = MirostatLogitsWarper(tau, eta, temperature)
    length = min(map(len, prompts[:3]))
    batch = torch.tensor([prompt[:length] for prompt in prompts[:3]] * 2)
    for seed in range(2):  # a second text begins anew
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = tiny_llama.generate(
                batch, attention_mask=torch.ones_like(batch), do_sample=True, top_k=0, temperature=temperature,
                max_new_tokens=12, logits_processor=[warper], output_scores=True, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        for row in range(len(batch)):
            tokens = made.sequences[row, length:].tolist()
            tokens = tokens[: tokens.index(1) + 1] if 1 in tokens else tokens
            logits = [made.logits[step][row].double() / temperature for step in range(len(tokens))]
            kept = surprise_limits([scores.softmax(-1).tolist() for scores in logits], tokens, tau, eta)
            for step, allowed in enumerate(kept):
                assert made.scores[step][row].isfinite().nonzero()[:, 0].tolist() == allowed


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), tau=st.floats(0.1, 6.0), eta=st.floats(0.05, 1.0), rows=st.integers(1, 4))
def test_processor_and_plain_loop_agree_on_any_scores(seed: int, tau: float, eta: float, rows: int) -> None:
    rng = np.random.default_rng(seed)
    warper = MirostatLogitsWarper(tau, eta)
    ids = torch.from_numpy(rng.integers(0, 40, (rows, 3)))
    history: list[list[list[float]]] = [[] for _ in range(rows)]
    for step in range(6):
        scores = torch.from_numpy(rng.normal(size=(rows, 40)) * rng.choice([0.1, 2.0, 8.0]))
        left = warper(ids, scores)
        chosen = [int(rng.choice(np.flatnonzero(row.isfinite().numpy()))) for row in left]
        for row in range(rows):
            history[row].append(scores[row].softmax(-1).tolist())
            tokens = [*ids[row, 3:].tolist(), chosen[row]]
            allowed = surprise_limits(history[row], tokens, warper.mirostat_tau, warper.mirostat_eta)[step]
            assert left[row].isfinite().nonzero()[:, 0].tolist() == allowed
        ids = torch.cat((ids, torch.tensor(chosen)[:, None]), dim=-1)


def test_the_surprise_comes_near_its_target() -> None:
    rng = np.random.default_rng(0)
    log_p = -1.1 * np.log(np.arange(1, 2001))
    log_p -= np.log(np.exp(log_p).sum())
    for tau in (1.0, 3.0, 5.0):
        state = mirostat.MirostatState(tau, 0.1)
        bits = []
        for step in range(1500):
            kept = state.kept(log_p, step)
            p = np.exp(log_p[kept])
            token = int(rng.choice(kept, p=p / p.sum()))
            state.took(token, log_p, step)
            bits.append(-math.log2(math.exp(log_p[token]) / p.sum()))
        assert np.mean(bits[200:]) == pytest.approx(tau, abs=0.1)


def test_a_step_may_be_looked_at_again() -> None:
    log_p = np.log([0.5, 0.25, 0.25])
    state = mirostat.MirostatState(0.75, 0.4)
    for _ in range(2):
        state.took(0, log_p, 0)
        state.took(0, log_p, 1)
    assert state.limits == pytest.approx([1.5, 1.8, 1.8 + 0.4 * 0.75])


def test_through_generate_it_is_the_same_truncation(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    # so small a target leaves nothing to chance: the likeliest token wins, on both paths
    asked = {**STEERED, "mirostat_tau": 1e-6, "mirostat_eta": 1e-6}
    greedy = Engine(tiny_llama, tiny_tokenizer).generate(TEXTS, {"max_new_tokens": 14, "guidance_scale": 1.5})
    plain = Engine(tiny_llama, tiny_tokenizer).generate(TEXTS, {**asked, "guidance_scale": 1.5})
    assert [c.token_ids for c in plain] == [c.token_ids for c in greedy]
    (processor,) = own_processors(GenerationParams.of({**STEERED, "temperature": 0.7}))
    assert (processor.mirostat_tau, processor.mirostat_eta, processor.temperature) == (5.0, 0.1, 0.7)


def test_its_defaults_are_named_and_other_truncations_have_no_say() -> None:
    assert dict(GenerationParams.of(STEERED)) == {
        **STEERED, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "top_k": 0
    }  # fmt: skip
    others = {"top_k": 40, "top_p": 0.9, "min_p": 0.1, "tfs": 0.9, "typical_p": 0.5, "top_h": 0.4}
    both = GenerationParams.of({**STEERED, **others}, {"epsilon_cutoff": 0.1})
    assert both == GenerationParams.of(STEERED)
    assert both.inert == tuple(sorted(others))
    assert GenerationParams.of({**STEERED, "top_k": 0, "top_p": 1.0}).inert == ()
    assert both.to_hugging_face({"top_p": 0.8})["top_p"] == 1.0
    off = GenerationParams.of({"max_new_tokens": 4, "do_sample": True, "mirostat_tau": 3.0, "mirostat_mode": 0})
    assert off.inert == ("mirostat_tau",)
    assert GenerationParams.of({"max_new_tokens": 4, "mirostat_mode": 2}).inert == ("mirostat_mode",)


@pytest.mark.parametrize("asked", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_what_it_cannot_follow_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="mirostat_mode=2 steers one text .* cannot follow"):
        GenerationParams.of({**STEERED, **asked})


@pytest.mark.parametrize(("name", "value"), [("mirostat_mode", 1), ("mirostat_tau", 0.0), ("mirostat_eta", -0.1)])
def test_impossible_values_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name}={value} is not possible"):
        GenerationParams.of({**STEERED, name: value})


def test_it_can_be_searched(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [{"prompt": text, "reference": "a"} for text in TEXTS[:4]]
    space = {
        **STEERED,
        "mirostat_mode": CategoricalDistribution([0, 2]),
        "mirostat_tau": FloatDistribution(1.0, 6.0),
        "mirostat_eta": FloatDistribution(0.05, 0.5, log=True),
    }
    result = search(
        Engine(tiny_llama, tiny_tokenizer), rows, space, holdout=0.3, metric="contains", n_trials=8, progress=False,
        storage=f"sqlite:///{tmp_path}/s.db", study_name="s",
    )  # fmt: skip
    assert {t.state.name for t in result.trials} <= {"COMPLETE", "PRUNED"}
    assert {result.trial_params(t.number).get("mirostat_mode") for t in result.trials} == {None, 2}


def test_worked_examples() -> None:
    assert doctest.testmod(mirostat) == (0, 5)

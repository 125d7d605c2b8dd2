"""Tokens are those of Hugging Face's processors on the unpadded row; candidates prove them or say nothing."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process as hf

from llmsearch_optuna.engine.sampling import sampler
from llmsearch_optuna.engine.sampling.candidates import Candidates
from llmsearch_optuna.engine.sampling.gumbel import gumbel, row_key
from llmsearch_optuna.engine.sampling.hf_processors import (
    TailFreeLogitsWarper,
    TopALogitsWarper,
    TopNSigmaLogitsWarper,
    own_processors,
)
from llmsearch_optuna.engine.sampling.params import model_defaults
from llmsearch_optuna.engine.sampling.penalties import PresenceFrequencyLogitsProcessor
from llmsearch_optuna.engine.sampling.sampler import pick, pick_from_logits
from tests.engine.sampling.rows import (
    KINDS,
    Row,
    contexts,
    make_candidates,
    make_logits,
    make_params,
    own_warping,
    ruling,
    warping,
)

WARPERS = (
    hf.TemperatureLogitsWarper,
    hf.TopHLogitsWarper,
    hf.TopKLogitsWarper,
    hf.TopPLogitsWarper,
    hf.MinPLogitsWarper,
    hf.TypicalLogitsWarper,
    hf.EpsilonLogitsWarper,
    hf.EtaLogitsWarper,
)


OWN_WARPERS = (TopNSigmaLogitsWarper, TailFreeLogitsWarper, TopALogitsWarper)


LIMITS = {"top_h", "top_p", "min_p", "mass", "epsilon", "tfs", "top_a", "top_n_sigma"}


class ByHuggingFace:
    """The processors that ``model.generate`` would apply, and the token that they lead to."""

    def __init__(self, model: LlamaForCausalLM, row: Row) -> None:
        self.row = row
        captured: list[LogitsProcessorList] = []

        def capture(model: Any, input_ids: torch.Tensor, logits_processor: LogitsProcessorList, **_: Any) -> Any:
            captured.append(logits_processor)
            return input_ids

        prompt = torch.tensor([row.context[: row.prompt_length]])
        model.generate(
            prompt,
            custom_generate=capture,
            logits_processor=LogitsProcessorList(_starting_behind(row, one) for one in own_processors(row.params)),
            **row.params.to_hugging_face(model_defaults(model)),
        )
        (self.processors,) = captured

    def scores(self, logits: np.ndarray, dtype: torch.dtype, shift: float = 0.0) -> torch.Tensor:
        """Processed scores ``[vocab]``; temperature is always applied in float32. ``shift`` moves all limits.

        Nan where a limit went through equal scores: torch's sort is not stable, so which of them stay is chance.
        """
        scores = torch.from_numpy(logits)[None]
        context = torch.tensor([self.row.context])
        for processor in self.processors:
            before = scores
            if isinstance(processor, (*WARPERS[1:], *OWN_WARPERS)):
                before = scores = scores.to(dtype)
                processor = copy.copy(processor)
                for limit in LIMITS & set(vars(processor)):
                    setattr(processor, limit, getattr(processor, limit) * (1 + shift))
            scores = processor(context, scores)
            if scores.max() == torch.inf:
                raise ValueError("overflown")
            if isinstance(processor, (*WARPERS[1:], *OWN_WARPERS)):
                kept = torch.isfinite(scores)
                if torch.isin(before[~kept & torch.isfinite(before)], before[kept]).any():
                    return torch.full_like(scores[0], torch.nan)
        return scores[0]

    def token(self, logits: np.ndarray) -> int | None:
        """The next token; None where rounding decides what is kept, or nothing is."""
        try:
            usual, exact = self.scores(logits, torch.float32), self.scores(logits, torch.float64)
            moved = [self.scores(logits, torch.float64, shift) for shift in (-2e-6, 2e-6)]
        except ValueError:  # overflown
            return None
        kept, *others = (scores > torch.finfo(torch.float32).min for scores in (exact, usual, *moved))
        if not kept.any() or not all(torch.equal(kept, other) for other in others):
            return None
        if not self.row.params.get("do_sample"):
            return int(torch.argmax(usual))
        ids = np.arange(len(logits))[None]
        noise = gumbel(self.row.params.generation_seed, [self.row.row_key], [self.row.step], ids)[0]
        return int(np.argmax(np.where(kept.numpy(), exact.double().log_softmax(-1).numpy() + noise, -np.inf)))


def _starting_behind(row: Row, processor: LogitsProcessor) -> LogitsProcessor:
    """The processor, told where the prompt ends: here it is not called from a text's first token on."""
    if not isinstance(processor, PresenceFrequencyLogitsProcessor):
        return processor
    return PresenceFrequencyLogitsProcessor(
        processor.presence_penalty, processor.frequency_penalty, prompt_length=row.prompt_length
    )


@settings(max_examples=250)
@given(
    warping=st.one_of(st.just({}), warping),
    ruling=ruling,
    own=st.one_of(st.just({}), own_warping),
    context=contexts(),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
)
def test_tokens_are_hugging_faces(
    warping: dict[str, Any],
    ruling: dict[str, Any],
    own: dict[str, Any],
    context: dict[str, Any],
    kind: str,
    seed: int,
    tiny_llama: LlamaForCausalLM,
) -> None:
    row = Row(make_params(**warping, **ruling, **own), **context)
    logits = make_logits(kind, seed)
    expected = ByHuggingFace(tiny_llama, row).token(logits[0])
    assume(expected is not None)
    assert pick_from_logits(logits, [row]).tolist() == [expected]


@settings(max_examples=250)
@given(
    warping=st.one_of(st.just({}), warping),
    ruling=st.one_of(st.just({}), ruling),
    context=contexts(),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
    size=st.sampled_from([1, 3, 20, 100, 200, 299, 300]),
)
def test_candidates_prove_the_same_token_or_nothing(
    warping: dict[str, Any], ruling: dict[str, Any], context: dict[str, Any], kind: str, seed: int, size: int
) -> None:
    row = Row(make_params(**warping, **ruling), **context)
    logits = make_logits(kind, seed)
    found = pick(make_candidates(logits, size), [row])[0]
    assert found in (-1, pick_from_logits(logits, [row])[0])


@given(warping=warping, kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_sorting_a_part_is_enough(warping: dict[str, Any], kind: str, seed: int) -> None:
    """Looking at the first 2,048 of all logits, or at 1,024 candidates, changes nothing."""
    logits = make_logits(kind, seed, vocabulary=5000)
    row = Row(make_params(**warping), row_key=seed)
    found = pick_from_logits(logits, [row]).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "FULL_WIDTH", 10_000)
        assert pick_from_logits(logits, [row]).tolist() == found
    assert pick(make_candidates(logits, 1024), [row])[0] in (-1, found[0])


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
        {"do_sample": True, "temperature": 1.2, "top_k": 0, "min_p": 0.05},
        {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 0.9},
        {"do_sample": True, "temperature": 0.5, "top_k": 0},
        {"do_sample": True, "typical_p": 0.9, "eta_cutoff": 1e-3, "epsilon_cutoff": 1e-3},
        {"do_sample": True, "top_h": 0.5},
    ],
    ids=str,
)
def test_usual_settings_are_proven_by_candidates(values: dict[str, Any]) -> None:
    """A certificate that never holds would be true and useless."""
    logits = make_logits("normal", 3, rows=100, vocabulary=20_000)
    logits[:, :60] += np.linspace(9, 3, 60, dtype=np.float32)
    rows = [Row(make_params(**values), context=[3, 4, 5, 6, 5], step=2, row_key=key) for key in range(100)]
    found = pick(make_candidates(logits, 1024), rows)
    assert (found >= 0).mean() > 0.9
    decided = np.flatnonzero(found >= 0)
    assert (pick_from_logits(logits[decided], [rows[i] for i in decided]) == found[decided]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "values",
    [
        {"top_k": 0, "top_p": 0.95},
        {"top_k": 0, "top_p": 0.5, "temperature": 1.7},
        {"top_k": 3000, "top_p": 0.9},
        {"top_k": 0, "min_p": 0.001, "temperature": 2.5},
        {"top_k": 0, "epsilon_cutoff": 1e-6},
        {"top_k": 0, "top_h": 0.9},
        {"top_k": 0, "typical_p": 0.9},
        {"top_k": 0, "eta_cutoff": 1e-6},
        {"top_k": 0},
    ],
    ids=str,
)
def test_more_tokens_are_possible_than_candidates_are_kept(
    kind: str, values: dict[str, Any], tiny_llama: LlamaForCausalLM
) -> None:
    """A vocabulary of 50,257: the 1,024 candidates prove Hugging Face's token or nothing, and all logits find it."""
    rows = [Row(make_params(do_sample=True, **values), row_key=key, step=key % 5) for key in range(12)]
    logits = make_logits(kind, 7, rows=len(rows), vocabulary=50_257)
    full = pick_from_logits(logits, rows)
    listed = pick(make_candidates(logits, 1024), rows)
    assert ((listed == -1) | (listed == full)).all()
    compared = 0
    for row, scores, token in zip(rows, logits, full.tolist(), strict=True):
        expected = ByHuggingFace(tiny_llama, row).token(scores)
        compared += expected is not None
        assert expected in (None, token)
    by_sorted_equals = kind in ("flat", "half", "tied")  # which of equals Hugging Face's unstable sort keeps is chance
    assert compared or by_sorted_equals


@given(data=st.data(), seed=st.integers(0, 99))
def test_a_row_does_not_depend_on_its_neighbours(data: st.DataObject, seed: int) -> None:
    rows = [
        Row(make_params(**data.draw(warping), **data.draw(ruling)), **data.draw(contexts()))
        if data.draw(st.booleans())
        else Row(make_params(**data.draw(st.one_of(st.just({}), ruling))), **data.draw(contexts()))
        for _ in range(5)
    ]
    logits = np.concatenate([make_logits(data.draw(st.sampled_from(KINDS)), seed + i) for i in range(5)])
    order = data.draw(st.permutations(range(5)))
    together = pick(make_candidates(logits, 200), rows)
    shuffled = pick(make_candidates(logits[order], 200), [rows[i] for i in order])
    assert shuffled.tolist() == together[order].tolist()
    alone = [pick(make_candidates(logits[i : i + 1], 200), [rows[i]])[0] for i in range(5)]
    assert alone == together.tolist()
    full = pick_from_logits(logits, rows)
    assert [pick_from_logits(logits[i : i + 1], [rows[i]])[0] for i in range(5)] == full.tolist()


def test_greedy_takes_the_first_of_equals() -> None:
    logits = np.zeros((3, 10), dtype=np.float32)
    logits[0, [4, 8]] = 1.0
    logits[1, [9, 2, 6]] = 1.0
    rows = [Row(make_params())] * 3
    assert pick_from_logits(logits, rows).tolist() == [4, 2, 0]
    assert pick(make_candidates(logits, 4), rows).tolist() == [4, 2, -1]
    assert pick(make_candidates(logits, 10), rows).tolist() == [4, 2, 0]


def test_an_uncertain_total_proves_nothing_false() -> None:
    """The total is only known up to float32's rounding; what hangs on less is left to all logits."""
    logits = np.full((1, 1000), -8.0, dtype=np.float32)
    logits[0, :2] = 5.0
    row = Row(make_params(do_sample=True, top_k=0, top_p=0.5))
    exact = make_candidates(logits, 50)
    for error in (-5e-6, 0.0, 5e-6):
        candidates = Candidates(exact.values, exact.ids, exact.log_total + error, exact.vocab_size)
        assert pick(candidates, [row])[0] in (-1, pick_from_logits(logits, [row])[0])


def test_sampling_follows_the_softmax() -> None:
    from scipy import stats

    generator = np.random.default_rng(5)
    logits = np.repeat(generator.normal(size=(1, 50)).astype(np.float32), 20_000, axis=0)
    params = make_params(do_sample=True, temperature=0.8, top_k=8)
    rows = [Row(params, row_key=row_key([i])) for i in range(len(logits))]
    found = pick(make_candidates(logits, 20), rows)
    ids = np.argsort(-logits[0])[:8]
    p = np.exp(logits[0, ids].astype(np.float64) / 0.8)
    counts = [np.count_nonzero(found == token) for token in ids]
    assert sum(counts) == len(logits)
    assert stats.chisquare(counts, len(logits) * p / p.sum()).pvalue > 1e-4

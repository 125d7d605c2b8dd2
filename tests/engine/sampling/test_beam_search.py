"""Beam search against `model.generate` token by token, and beam sampling against its definition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, StoppingCriteria

from llmsearch_optuna.engine.sampling.beam_search import BeamSearch
from llmsearch_optuna.engine.sampling.candidates import Candidates
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import DecodingError
from tests.oracle import hf_generate
from tests.tiny import VOCABULARY, llama_config

LogitsOf = Callable[[Sequence[tuple[int, ...]]], np.ndarray]
PROMPT = (7, 31, 8, 31, 8, 99, 150)


def make_model(seed: int, sharpness: float = 2.0, architecture: str = "llama") -> torch.nn.Module:
    """A random model; with a low sharpness its logits are nearly flat, so that beams compete."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "gpt2":
            ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
            model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, **ids))
        else:
            model = LlamaForCausalLM(llama_config(intermediate_size=48, max_position_embeddings=2048))
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, 0.0, 0.2)
        with torch.no_grad():
            model.lm_head.weight.mul_(sharpness)
    return model.eval()


MODELS = [
    make_model(1),
    make_model(2, sharpness=0.3),
    make_model(3, sharpness=0.05),
    make_model(4, architecture="gpt2"),
]


def next_logits(model: torch.nn.Module, prompt: Sequence[int], paths: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Logits [paths, vocabulary] after every path, each from a full unpadded forward."""
    with torch.inference_mode():
        rows = torch.tensor([[*prompt, *path] for path in paths])
        return model(rows).logits[:, -1].float().numpy()


def candidates(logits: np.ndarray, size: int) -> Candidates:
    """The best `size` tokens of one row of logits."""
    ids = np.argsort(-logits, kind="stable")[:size]
    total = torch.logsumexp(torch.from_numpy(logits).double(), -1).item()
    return Candidates(values=logits[ids][None], ids=ids[None], log_total=np.array([total]), vocab_size=logits.shape[0])


def take_step(search: BeamSearch, scores: Mapping[tuple[int, ...], Candidates]) -> bool:
    """Go on by one token if these lists prove it."""
    beams = search.after(scores)
    if beams is not None:
        search.go_on(beams)
    return beams is not None


def decode(search: BeamSearch, logits_of: LogitsOf, size: int = 0) -> tuple[int, ...]:
    """Drive the search to its end, from lists of `size` candidates where these are enough (0: always full)."""
    while not search.finished:
        paths = search.running
        assert len(set(paths)) == len(paths) > 0
        rows = dict(zip(paths, logits_of(paths), strict=True))
        if size and take_step(search, {path: candidates(row, size) for path, row in rows.items()}):
            continue
        assert search.running == paths
        search.go_on(search.after_full(rows))
    return search.result()[0]


def search_of(params: dict, prompt: Sequence[int] = PROMPT, row_key: int = 0, stopper=None) -> BeamSearch:
    values = {"eos_token_id": 1, "max_new_tokens": 8, **params}
    return BeamSearch(
        GenerationParams.of(values), prompt_token_ids=prompt, row_key=row_key, stopper=stopper, vocab_size=VOCABULARY
    )


def all_hypotheses(model, prompt: Sequence[int], params: dict) -> tuple[list[tuple[int, ...]], list[float]]:
    """All finished hypotheses of `model.generate` and their scores; its placeholders have a score of about -1e9."""
    rows = torch.tensor([list(prompt)])
    output = model.generate(
        rows,
        attention_mask=torch.ones_like(rows),
        num_return_sequences=params["num_beams"],
        return_dict_in_generate=True,
        output_scores=True,
        **params,
    )
    lengths = (output.beam_indices >= 0).sum(dim=1).tolist()
    new = output.sequences[:, len(prompt) :].tolist()
    scores = output.sequences_scores.tolist()
    kept = [place for place, score in enumerate(scores) if score > -1e8]
    return [tuple(new[place][: lengths[place]]) for place in kept], [scores[place] for place in kept]


def assert_same_as_generate(model, params: dict, size: int, prompt: Sequence[int] = PROMPT) -> None:
    """All hypotheses, token for token and in order, not only the best one.

    Where a choice hangs on the last bits of float32, a nudge of 1e-6 must explain the difference.
    """
    params = {"eos_token_id": 1, "max_new_tokens": 8, **params}
    paths, scores = all_hypotheses(model, prompt, params)
    assert list(paths[0]) == hf_generate(model, prompt, **params)

    def exact(paths):
        return next_logits(model, prompt, paths)

    search = search_of(params, prompt)
    assert decode(search, exact, size) == search.hypotheses[0][1]
    if [path for _, path in search.hypotheses] == paths:
        assert np.allclose([score for score, _ in search.hypotheses], scores, rtol=1e-4, atol=1e-5)
        return
    noise = np.random.default_rng(0)

    def nudged(paths):
        rows = exact(paths)
        return rows + noise.uniform(-1e-6, 1e-6, rows.shape).astype(np.float32)

    nearby = []
    for _ in range(20):
        search = search_of(params, prompt)
        decode(search, nudged, size)
        nearby.append([path for _, path in search.hypotheses])
    assert paths in nearby


EOS_SETS = st.sampled_from([1, [1, 17, 40], list(range(1, 60)), list(range(0, 100)), list(range(0, 190, 2))])


@settings(max_examples=50)
@given(
    model=st.sampled_from(range(len(MODELS))),
    num_beams=st.integers(2, 6),
    length_penalty=st.sampled_from([0.0, 0.6, 1.0, 1.4, -1.0]),
    early_stopping=st.sampled_from([True, False, "never"]),
    eos_token_id=EOS_SETS,
    max_new_tokens=st.integers(1, 12),
    size=st.sampled_from([0, 16, 120, 199]),
    prompt=st.lists(st.integers(0, 198), min_size=1, max_size=9),
)
def test_equals_generate(model, size, prompt, **params):
    assert_same_as_generate(MODELS[model], params, size, prompt)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    num_beams=st.integers(2, 3),
    length_penalty=st.sampled_from([0.0, -1.0, 1.4]),
    early_stopping=st.sampled_from([False, "never"]),
)
def test_stops_when_generate_stops(seed, **params):
    """With many ending tokens the hypotheses are soon complete, and all hangs on the stopping processors."""
    prompt = np.random.default_rng(seed).integers(100, 199, 4).tolist()
    params |= {"eos_token_id": list(range(0, 70)), "max_new_tokens": 14}
    assert_same_as_generate(MODELS[seed % 2], params, 0, prompt)


def test_never_with_a_negative_length_penalty_hopes_for_no_more_length():
    """Step 2 completes two hypotheses (-5.0 and -10.2). The best beam could end now with -0.1 * length ** 2.

    At its length of step 4 that is -1.7; at 30 tokens it would be -12.6, and the better end at step 5 be missed.
    """
    token, end = 5, 1

    def logits_of(paths):
        rows = []
        for path in paths:
            likely = {end: 0.97} if path == (token,) * 4 else {token: 0.9, end: 0.0067}
            likely = likely if set(path) <= {token} else {}
            row = np.full(VOCABULARY, (1 - sum(likely.values())) / (VOCABULARY - len(likely)))
            row[list(likely)] = list(likely.values())
            rows.append(np.log(row).astype(np.float32))
        return rows

    params = {"num_beams": 2, "length_penalty": -1.0, "early_stopping": "never", "max_new_tokens": 30}
    assert decode(search_of(params), logits_of, 16) == (token, token, token, token, end)


PROCESSORS = {
    "repetition_penalty": st.sampled_from([0.8, 1.3, 2.0]),
    "no_repeat_ngram_size": st.integers(1, 3),
    "min_new_tokens": st.integers(1, 6),
    "min_length": st.integers(1, 12),
    "suppress_tokens": st.lists(st.integers(2, 198), min_size=1, max_size=150, unique=True),
    "begin_suppress_tokens": st.lists(st.integers(1, 198), min_size=1, max_size=20, unique=True),
    "bad_words_ids": st.lists(st.lists(st.integers(0, 198), min_size=1, max_size=2), min_size=2, max_size=60),
    "sequence_bias": st.lists(
        st.tuples(
            st.lists(st.integers(0, 198), min_size=1, max_size=2).map(tuple), st.sampled_from([-4.0, 0.5, 3.0])
        ).map(list),
        min_size=1,
        max_size=60,
        unique_by=lambda item: item[0],
    ).map(lambda items: [[list(tokens), bias] for tokens, bias in items]),
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 5), st.sampled_from([1.05, 1.5, 2.5])),
    "forced_eos_token_id": st.just(1),
    "remove_invalid_values": st.just(True),
    "renormalize_logits": st.just(True),
}


@settings(max_examples=50)
@given(
    model=st.sampled_from(range(len(MODELS))),
    processors=st.lists(st.sampled_from(sorted(PROCESSORS)), min_size=1, max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: PROCESSORS[name] for name in names})
    ),
    num_beams=st.integers(2, 5),
    length_penalty=st.sampled_from([0.6, 1.0, -1.0]),
    eos_token_id=EOS_SETS,
    size=st.sampled_from([0, 24, 160]),
    prompt=st.lists(st.integers(0, 198), min_size=2, max_size=9),
)
def test_equals_generate_with_processors(model, processors, size, prompt, **params):
    if "bad_words_ids" in processors:
        processors["bad_words_ids"].append([4, 4])
    assert_same_as_generate(MODELS[model], {**params, **processors}, size, prompt)


class _StopsOnTokens(StoppingCriteria):
    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = torch.tensor(tokens)

    def __call__(self, input_ids, scores, **kwargs):
        return torch.isin(input_ids[:, -1], self.tokens)


@settings(max_examples=40)
@given(
    model=st.sampled_from(range(len(MODELS))),
    tokens=st.sampled_from([range(0, 199, 7), range(0, 199, 2), range(3, 199), range(2, 40)]),
    num_beams=st.integers(2, 4),
    early_stopping=st.sampled_from([True, False, "never"]),
    length_penalty=st.sampled_from([-1.0, 1.0]),
)
def test_other_stops_count_as_in_generate(model, tokens, num_beams, early_stopping, length_penalty):
    params = {"num_beams": num_beams, "early_stopping": early_stopping, "length_penalty": length_penalty}
    search = search_of(params, stopper=lambda path: "stop" if path[-1] in tokens else None)
    ours = decode(search, lambda paths: next_logits(MODELS[model], PROMPT, paths), 24)
    theirs = MODELS[model].generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT)),
        eos_token_id=1,
        max_new_tokens=8,
        stopping_criteria=[_StopsOnTokens(list(tokens))],
        **params,
    )
    assert list(ours) == theirs[0, len(PROMPT) :].tolist()
    assert search.result()[1] == ("eos" if ours[-1] == 1 else "stop" if ours[-1] in tokens else "length")


def test_lists_are_enough_where_they_must_be():
    logits = next_logits(MODELS[0], PROMPT, [()])[0]
    assert search_of({"num_beams": 4}).after({(): candidates(logits, 8)}) is not None
    assert search_of({"num_beams": 4}).after({(): candidates(logits, 7)}) is None
    everything_listed = {"num_beams": 4, "suppress_tokens": candidates(logits, 24).ids[0].tolist()}
    assert search_of(everything_listed).after({(): candidates(logits, 24)}) is None
    assert search_of(everything_listed).after({(): candidates(logits, 33)}) is not None
    sampled = {"num_beams": 2, "do_sample": True, "suppress_tokens": candidates(logits, 20).ids[0].tolist()}
    assert search_of(sampled).after({(): candidates(logits, 60)}) is None  # top_k is 50, and 40 are left
    assert search_of(sampled).after({(): candidates(logits, 80)}) is not None
    lifted = int(candidates(logits, 199).ids[0, -1])
    bias = {"num_beams": 4, "sequence_bias": [[[lifted], 50.0]]}
    assert search_of(bias).after({(): candidates(logits, 100)}) is None
    assert search_of({"num_beams": 2, "renormalize_logits": True}).after({(): candidates(logits, 100)}) is None


def test_forced_tokens_are_proven_by_any_list():
    logits = candidates(next_logits(MODELS[0], PROMPT, [()])[0], 3)
    search = search_of({"num_beams": 3, "max_new_tokens": 1, "forced_eos_token_id": 1})
    assert take_step(search, {(): logits})
    assert search.finished
    assert search.running == ()
    assert search.result() == ((1,), "eos")
    first = search_of({"num_beams": 3, "forced_bos_token_id": 9}, prompt=[0])
    assert take_step(first, {(): logits})
    assert first.running == ((9,),)


def test_parameters_of_the_plain_path_are_refused():
    with pytest.raises(DecodingError, match="encoder_repetition_penalty"):
        search_of({"num_beams": 2, "encoder_repetition_penalty": 1.5})
    with pytest.raises(DecodingError, match="tfs"):
        search_of({"num_beams": 2, "do_sample": True, "tfs": 0.9})


def test_no_possible_token_is_an_error():
    search = search_of({"num_beams": 2, "suppress_tokens": list(range(VOCABULARY))})
    search.go_on(search.after_full({(): next_logits(MODELS[0], PROMPT, [()])[0]}))
    assert search.finished
    with pytest.raises(DecodingError, match="No hypothesis"):
        search.result()


# ---- beam sampling --------------------------------------------------------------------------------------------------

SAMPLED = {"num_beams": 3, "do_sample": True, "max_new_tokens": 6}
WARPERS = {
    "temperature": st.sampled_from([0.5, 1.7]),
    "top_k": st.sampled_from([0, 1, 5, 50]),
    "top_p": st.sampled_from([0.3, 0.9]),
    "min_p": st.sampled_from([0.05, 0.4]),
    "typical_p": st.sampled_from([0.3, 0.9]),
    "epsilon_cutoff": st.sampled_from([0.01, 0.1]),
    "eta_cutoff": st.sampled_from([0.01, 0.1]),
    "top_h": st.sampled_from([0.3, 0.8]),
    "repetition_penalty": st.sampled_from([0.8, 1.5]),
    "renormalize_logits": st.just(True),
}


@settings(max_examples=25)
@given(
    warpers=st.lists(st.sampled_from(sorted(WARPERS)), max_size=4, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: WARPERS[name] for name in names})
    ),
    row_key=st.integers(0, 2**64 - 1),
    size=st.sampled_from([50, 60, 150]),
)
def test_sampling_from_lists_is_sampling_from_all_logits(warpers, row_key, size):
    cache: dict[tuple[int, ...], np.ndarray] = {}

    def logits_of(paths):
        for path in paths:
            if path not in cache:
                cache[path] = next_logits(MODELS[0], PROMPT, [path])[0]
        return [cache[path] for path in paths]

    full, listed = (decode(search_of({**SAMPLED, **warpers}, row_key=row_key), logits_of, k) for k in (0, size))
    assert full == listed


def test_sampling_depends_on_row_key_and_seed_alone():
    def logits_of(paths):
        return next_logits(MODELS[1], PROMPT, paths)

    draws = [decode(search_of(SAMPLED, row_key=key), logits_of, 60) for key in (1, 1, 2, 3)]
    reseeded = decode(search_of({**SAMPLED, "generation_seed": 5}, row_key=1), logits_of, 60)
    assert draws[0] == draws[1]
    assert len({*draws, reseeded}) == 4


def test_sampling_has_the_frequencies_of_generate():
    """Chi-square of two samples over the answers: ours with 1,200 row keys, Hugging Face's with 1,200 draws."""
    params = {"num_beams": 2, "top_k": 3, "top_p": 0.95, "temperature": 4.0, "max_new_tokens": 3}
    params |= {"do_sample": True, "repetition_penalty": 1.2, "eos_token_id": [1, 40, 93]}  # so top_k is raised to 4
    model, count = MODELS[0], 1200
    listed: dict[tuple[int, ...], Candidates] = {}
    ours: Counter[tuple[int, ...]] = Counter()
    for key in range(count):
        search = search_of(params, row_key=key)
        while not search.finished:
            for path in search.running:
                if path not in listed:
                    listed[path] = candidates(next_logits(model, PROMPT, [path])[0], 30)
            assert take_step(search, listed)
        path = search.result()[0]
        ours[(*path, *([2] * (3 - len(path))))] += 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prompts = torch.tensor([PROMPT] * count)
        output = model.generate(prompts, attention_mask=torch.ones_like(prompts), pad_token_id=2, **params)
    theirs = Counter(tuple(row) for row in output[:, len(PROMPT) :].tolist())
    often = [path for path in ours | theirs if ours[path] + theirs[path] >= 20]
    table = np.array([[ours[path], theirs[path]] for path in often])
    table = np.vstack([table, [count, count] - table.sum(axis=0)])
    assert len(often) > 5
    assert chi2_contingency(table[table.sum(axis=1) > 0]).pvalue > 1e-3

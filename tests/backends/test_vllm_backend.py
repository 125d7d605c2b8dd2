"""Rows as requests of a step loop: texts are our own engine's, what is dropped is broken off, and death is no end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna import Engine, search
from llmsearch_optuna.backends.protocol import ParameterEnds
from llmsearch_optuna.backends.vllm.backend import VllmBackend
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams, model_defaults
from llmsearch_optuna.errors import EngineUnavailableError
from tests.backends.decoding import decoded
from tests.backends.vllm_engine import TinyStepEngine

TEXTS = ("Anna asks Ben whether", "The quick brown", "Thank you very much!", "Anna asks Ben whether")

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0, "generation_seed": 5},
    "truncated": {"do_sample": True, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "temperature": 1.3},
    "typical": {"do_sample": True, "typical_p": 0.7, "top_k": 0},
    "mirostat": {"do_sample": True, "mirostat_mode": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.5},
    "own": {"do_sample": True, "top_n_sigma": 1.0, "tfs": 0.97, "top_k": 0},
    "penalties": {"do_sample": True, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "top_k": 0},
    "minimum": {"min_new_tokens": 9, "do_sample": True, "top_k": 0},
    "stop": {"stop": ["e", "nn"], "do_sample": True, "top_k": 0},
    "stop tokens": {"stop_token_sequences": [[7, 8], [12]], "do_sample": True, "top_k": 0, "temperature": 2.0},
}


@pytest.fixture(scope="module")
def engine(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Engine:
    return Engine(tiny_llama, tiny_tokenizer, cache_budget=1 << 24)


def params(model: LlamaForCausalLM, **given: Any) -> GenerationParams:
    return GenerationParams.of({"max_new_tokens": 12, **given}, model_defaults(model))


def requests(name: str, asked: GenerationParams) -> list[Request]:
    occurrences = [TEXTS[:row].count(text) for row, text in enumerate(TEXTS)]
    return [
        Request(name, row, text, asked, occurrence, replicate=row % 2)
        for row, (text, occurrence) in enumerate(zip(TEXTS, occurrences, strict=True))
    ]


def test_rows_of_all_configurations_in_one_batch_are_those_of_our_own_engine(
    engine: Engine, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = [r for name, given in SETTINGS.items() for r in requests(name, params(tiny_llama, **given))]
    backend = VllmBackend(TinyStepEngine(tiny_llama, tiny_tokenizer, slots=7))
    assert decoded(backend, asked) == decoded(engine, asked)
    assert backend.stats["tokens"] == sum(backend.tag_stats(name)["tokens"] for name in SETTINGS)


@pytest.mark.parametrize("name", ["sampling", "mirostat"])
def test_a_row_is_the_same_alone_and_beside_others(
    name: str, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = requests(name, params(tiny_llama, **SETTINGS[name]))
    others = [r for other in SETTINGS for r in requests(f"not {other}", params(tiny_llama, **SETTINGS[other]))]
    alone = decoded(VllmBackend(TinyStepEngine(tiny_llama, tiny_tokenizer, slots=1)), asked)
    beside = decoded(VllmBackend(TinyStepEngine(tiny_llama, tiny_tokenizer, slots=9)), [*others, *asked])
    assert {key: found for key, found in beside.items() if key[0] == name} == alone
    assert len({found.token_ids for found in alone.values()}) == len(TEXTS)


def test_a_row_that_ends_by_its_text_is_broken_off(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    vllm = TinyStepEngine(tiny_llama, tiny_tokenizer)
    found = decoded(VllmBackend(vllm), requests("stop", params(tiny_llama, **SETTINGS["stop"])))
    stopped = [completion for completion in found.values() if completion.finish_reason == "stop"]
    assert stopped
    assert len(vllm.aborted) == sum(len(completion.token_ids) < 12 for completion in stopped)


def test_a_cancelled_trial_is_broken_off_and_never_comes_back(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    vllm = TinyStepEngine(tiny_llama, tiny_tokenizer, slots=8)
    backend = VllmBackend(vllm)
    kept = requests("kept", params(tiny_llama, max_new_tokens=4))
    backend.submit([*requests("pruned", params(tiny_llama, max_new_tokens=30)), *kept])
    first = backend.poll()
    backend.cancel("pruned")
    assert len(vllm.aborted) == len(TEXTS)
    found = [*first, *(item for _ in range(len(TEXTS)) for item in backend.poll())]
    assert sorted(item.request.row for item in found) == [0, 1, 2, 3]
    assert {item.request.tag for item in found} == {"kept"}
    assert backend.poll() == []


def test_rows_with_beams_wait_for_an_empty_engine_and_run_together(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    vllm = TinyStepEngine(tiny_llama, tiny_tokenizer, slots=6)
    backend = VllmBackend(vllm)
    beams = requests("beams", params(tiny_llama, num_beams=2, length_penalty=0.5))
    greedy = requests("greedy", params(tiny_llama))
    found = decoded(backend, [*greedy[:2], *beams, *greedy[2:]])
    asked = {"beam_width": 2, "max_tokens": 12, "length_penalty": 0.5, "ignore_eos": False}
    assert vllm.beam_calls == [(3, asked), (1, asked)]
    assert found["beams", 0].token_ids == (5, 6, 1)  # what comes behind the end is not part of it
    assert found["beams", 0].finish_reason == "eos"


@pytest.mark.parametrize(
    "dies_of", [None, MemoryError("no room"), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_a_dead_engine_is_not_now(
    dies_of: Exception | None, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    backend = VllmBackend(TinyStepEngine(tiny_llama, tiny_tokenizer, dies_after=3, dies_of=dies_of))
    backend.submit(requests("t", params(tiny_llama)))
    with pytest.raises(EngineUnavailableError, match="Nothing that was decoded is lost"):
        backend.poll()
    backend.cancel("t")  # a dead engine cannot be told, and need not be


def test_a_study_whose_engine_dies_goes_on_with_another_as_if_nothing_had_happened(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    def study(folder: str, **engine: Any) -> Any:
        return search(
            VllmBackend(TinyStepEngine(tiny_llama, tiny_tokenizer, slots=8, **engine)),
            [{"prompt": f"Anna asks Ben about {n}"} for n in range(8)],
            {"max_new_tokens": 6, "do_sample": True, "top_k": 0, "temperature": FloatDistribution(0.2, 2.0)},
            holdout=0.3,
            metric=length,
            n_trials=4,
            storage=f"sqlite:///{tmp_path}/{folder}.db",
            study_name="s",
            holdout_replicates=1,
            progress=False,
        )

    with pytest.raises(EngineUnavailableError):
        study("killed", dies_after=14)
    killed, whole = study("killed"), study("whole")
    assert [trial.values for trial in killed.trials] == [trial.values for trial in whole.trials]
    assert list(killed.completions()["completion"]) == list(whole.completions()["completion"])


def length(predictions: list[str], references: list[Any]) -> list[float]:
    return [float(len(prediction)) for prediction in predictions]


def test_a_row_that_cannot_be_decoded_fails_alone(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    backend = VllmBackend(TinyStepEngine(tiny_llama, tiny_tokenizer))
    asked = params(tiny_llama)
    backend.submit([Request("t", 0, "Anna " * 99, asked), Request("t", 1, "", asked), Request("t", 2, "Anna", asked)])
    found = {item.request.row: item for _ in range(2) for item in backend.poll()}
    assert "exceed the model's context of 128" in str(found[0].error)
    assert "empty after tokenization" in str(found[1].error)
    assert found[2].completion is not None


def test_what_vllm_refuses_is_refused_before_the_first_row(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    by_row = VllmBackend(TinyStepEngine(tiny_llama, tiny_tokenizer))
    plain = VllmBackend(TinyStepEngine(tiny_llama, tiny_tokenizer, picks_by_row=False, caches_prefixes=False))
    hot = params(tiny_llama, do_sample=True, temperature=2.5)
    assert by_row.refusal(hot) is None
    assert plain.refusal(hot) == "temperature must be in [0, 2]"
    ends = [ParameterEnds("temperature", hot, hot)]
    assert by_row.warnings([], ends) == []
    assert [warning[:30] for warning in plain.warnings([], ends)] == [
        "this vllm.LLM samples by its o",
        "this vllm.LLM computes every p",
    ]

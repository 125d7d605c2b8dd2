"""One set of parameters on a dataset; and that search, score and study files take the same arguments."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from tokenizers import processors
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.api import score, search
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.models.loader import load
from llmsearch_optuna.options import ServerOptions
from llmsearch_optuna.study_file.model import DataSection, ModelSection, StudySection
from llmsearch_optuna.task.task import Task
from tests.engine.architectures import make
from tests.oracle import hf_generate
from tests.synthetic import TextEngine, dataset, number_metric

TASK = {field.name for field in fields(Task)} - {"dataset", "name", "generation"}
ENGINE = set(inspect.signature(Engine).parameters) - {"model", "tokenizer", "top"}
LOADING = set(inspect.signature(load).parameters) - {"model", "tokenizer"}
SERVER = set(ServerOptions.__annotations__) | {"vllm_args"}


def arguments(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_search_and_score_take_what_task_engine_and_loader_take() -> None:
    assert arguments(search) >= TASK | ENGINE | LOADING | SERVER
    assert arguments(score) == TASK | ENGINE | LOADING | SERVER | {
        "model",
        "dataset",
        "params",
        "tokenizer",
        "replicates",
        "samples",
        "on_row",
    }


def test_every_argument_is_explained() -> None:
    for function in (search, score):
        explained = inspect.getdoc(function) or ""
        assert all(f"\n    {name}: " in explained for name in arguments(function))


def test_study_files_say_everything_that_python_says() -> None:
    data = set(DataSection.model_fields) - {"path", "rows"} | {"limit"}
    assert data == TASK
    assert set(ModelSection.model_fields) - {"name", "server"} == ENGINE | LOADING | SERVER | {"tokenizer"}
    elsewhere = {
        "model",
        "callbacks",
        "dataset",
        "space",
        "baseline",
        "try_first",
        "constraints",
        "baselines",
        "progress",
        "observer",
        "study_name",
        "tokenizer",
    }
    assert set(StudySection.model_fields) - {"name"} == arguments(search) - TASK - ENGINE - LOADING - SERVER - elsewhere


ROWS = [
    {"text": "How many apples", "answer": "7"},
    {"text": "Anna asks Ben whether the train to Oslo leaves", "answer": "x"},
]


def test_a_prompt_that_does_not_fit_is_told_before_anything_is_decoded(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    longest = len(tiny_tokenizer(ROWS[1]["text"])["input_ids"])
    room = tiny_llama.config.max_position_embeddings
    asked: dict[str, Any] = {"prompt": "{text}", "reference": "answer", "metric": "contains"}
    with pytest.raises(InputError, match=rf"1 of 2 prompts do not fit .*row 1 \({longest} tokens\)"):
        score(engine, ROWS, {"max_new_tokens": room - longest + 1}, **asked)
    assert engine.stats.tokens == 0


def test_a_prompt_that_an_encoder_cannot_take_is_told_as_early(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    asked: dict[str, Any] = {"prompt": "{text}", "reference": "answer", "metric": "contains"}
    rows = [*ROWS, {"text": "T" * 300, "answer": ""}]
    engine = Engine(make("bart"), tiny_tokenizer)
    with pytest.raises(InputError, match=r"1 of 3 prompts do not fit .*row 2 \(300 tokens\).*max_prompt_tokens=256"):
        score(engine, rows, {"max_new_tokens": 3}, **asked)
    cut = score(engine, rows, {"max_new_tokens": 3}, max_prompt_tokens=256, **asked)
    assert cut.completions[2].prompt_tokens == 256


def test_the_arguments_of_a_task_reach_it(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer)
    asked: dict[str, Any] = {"prompt": "{text}", "reference": "answer", "metric": "contains"}
    cut = score(engine, ROWS, {"max_new_tokens": 3}, max_prompt_tokens=9, limit=2, **asked)
    assert [c.prompt_tokens <= 9 for c in cut.completions] == [True, True]
    assert cut.prompts[1].endswith("leaves")
    truncated = score(
        engine, ROWS, {"max_new_tokens": 3}, tokenizer_encode_args={"truncation": True, "max_length": 4}, **asked
    )
    assert [c.prompt_tokens for c in truncated.completions] == [4, 4]
    assert len(score(engine, ROWS, {"max_new_tokens": 3}, limit=1, **asked).completions) == 1


def test_a_seed_is_a_parameter_and_replicates_average_over_several(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def length(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
        return [float(len(text)) for text in predictions]

    engine = Engine(tiny_llama, tiny_tokenizer)
    rows = [{"prompt": row["text"]} for row in ROWS]
    sampled = {"max_new_tokens": 9, "do_sample": True, "top_k": 0, "temperature": 1.5}
    texts = [
        tuple(c.text for c in score(engine, rows, {**sampled, "generation_seed": n}, metric=length).completions)
        for n in (0, 1, 1)
    ]
    assert texts[0] != texts[1] == texts[2]
    three = score(engine, rows, sampled, metric=length, replicates=3)
    requests = [
        Request("x", row, text["prompt"], GenerationParams.of(sampled, engine.default_params), replicate=replicate)
        for row, text in enumerate(rows)
        for replicate in range(3)
    ]
    engine.submit(requests)
    lengths: dict[int, dict[int, int]] = {0: {}, 1: {}}
    while sum(map(len, lengths.values())) < 6:
        for f in engine.poll():
            assert f.completion is not None
            lengths[f.request.row][f.request.replicate] = len(f.completion.text)
    assert all(len(set(found.values())) > 1 for found in lengths.values())
    assert three.scores == pytest.approx([sum(found.values()) / 3 for found in lengths.values()])
    space = {**sampled, "generation_seed": CategoricalDistribution([1, 2, 3])}
    result = search(
        engine, rows, space, holdout=0.3, metric=length, sampler="grid", n_trials=9, progress=False, pruner="none",
        storage=f"sqlite:///{tmp_path}/s.db", study_name="s",
    )  # fmt: skip
    searched = {
        p["generation_seed"]: t.value
        for t in result.trials
        if "generation_seed" in (p := result.trial_params(t.number))
    }
    assert set(searched) == {1, 2, 3}
    assert searched[1] == pytest.approx(sum(map(len, texts[1])) / 2)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_encoder_decoder_models_are_searched_and_scored(
    architecture: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = make(architecture)
    encoded: list[int] = []
    engine = Engine(model, tiny_tokenizer)
    # It looks at the model itself, and whether padding changes anything, before it is counted.
    engine.generate(["How", "What many pears"], {"max_new_tokens": 1})
    hook = model.get_encoder().register_forward_hook(lambda module, inputs, output: encoded.append(len(output[0])))
    rows = [{"prompt": row["text"], "reference": "a"} for row in ROWS] + [{"prompt": "T", "reference": "a"}]
    space = [
        {"max_new_tokens": 8, "repetition_penalty": FloatDistribution(1.0, 2.0)},
        {"max_new_tokens": 8, "do_sample": True, "temperature": FloatDistribution(0.5, 2.0)},
        {"max_new_tokens": 8, "num_beams": IntDistribution(2, 3)},
    ]
    result = search(
        engine, rows, space, holdout=0.3, metric="contains", n_trials=8, pruner="none", progress=False,
        storage=f"sqlite:///{tmp_path}/s.db", study_name="s",
    )  # fmt: skip
    assert {t.state.name for t in result.trials} == {"COMPLETE"}
    assert all(t.user_attrs["engine"]["tokens"] for t in result.trials)
    assert sum(encoded) == len(rows), "the encoder's output is computed once a study"
    hook.remove()
    found = score(engine, rows, {"max_new_tokens": 8}, metric="contains")
    for row, completion in zip(rows, found.completions, strict=True):
        ids = tiny_tokenizer(row["prompt"])["input_ids"]
        assert list(completion.token_ids) == hf_generate(model, ids, max_new_tokens=8)
    assert result.records(0)[0].token_ids == found.completions[result.records(0)[0].row].token_ids


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ([{"max_new_tokens": 3}], "is no dict: score takes one set of generation parameters"),
        (lambda trial: {}, "is no dict: score takes one set"),
        ({"max_new_tokens": 3, "top_k": IntDistribution(1, 9)}, "^top_k is to be searched: score takes one set"),
    ],
)
def test_a_space_is_not_scored(params: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        score("a/model/that/is/not/loaded", [], params)


def test_score_decodes_every_row_once() -> None:
    engine = TextEngine()
    found = score(engine, dataset(10), {"max_new_tokens": 5}, metric=number_metric)
    assert found.scores == tuple(float(c.text) for c in found.completions)
    assert found.score == pytest.approx(sum(found.scores) / 10)
    assert found.prompts[3] == "row 3"
    assert len(engine.calls) == 10
    assert found.params == {"max_new_tokens": 5}


def test_score_takes_replicates_and_corpus_metrics() -> None:
    params = {"max_new_tokens": 5, "do_sample": True}
    engine = TextEngine()
    three = score(engine, dataset(6), params, metric=number_metric, replicates=3)
    assert len(set(engine.calls)) == 18
    assert len(three.scores) == 6

    def corpus(predictions: Sequence[str], references: Sequence[Any]) -> float:
        return sum(number_metric(predictions, references)) / len(predictions)

    whole = score(TextEngine(), dataset(6), params, metric=corpus, replicates=3)
    assert whole.score == pytest.approx(three.score)
    assert whole.scores == ()


def test_score_needs_max_new_tokens() -> None:
    with pytest.raises(InputError, match="max_new_tokens"):
        score(TextEngine(), dataset(6), {"do_sample": True}, metric=number_metric)


@pytest.mark.parametrize("template", ["{{ bos_token }}{{ messages[0].content }}", "User: {{ messages[0].content }}"])
def test_text_from_a_chat_template_gets_no_second_bos(
    template: str, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert tokenizer("T").input_ids[0] == tokenizer.bos_token_id
    rows = [{"text": "How many apples", "answer": "7"}] * 2
    common: dict[str, Any] = {"prompt": "{text}", "reference": "answer", "metric": "contains"}
    plain = score(Engine(tiny_llama, tokenizer), rows, {"max_new_tokens": 2}, **common)
    assert plain.completions[0].prompt_tokens == len(tokenizer("How many apples").input_ids)
    tokenizer.chat_template = template
    wrapped = score(Engine(tiny_llama, tokenizer), rows, {"max_new_tokens": 2}, **common)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "How many apples"}], tokenize=False)
    assert wrapped.completions[0].prompt_tokens == len(tokenizer(text, add_special_tokens=False).input_ids)

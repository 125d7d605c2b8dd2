"""The best of several samples by the model's own log-probability: in `score`, in studies, and where it is refused."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.distributions import FloatDistribution
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna import score
from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.signals import StudyInterrupted
from tests.optimize.studies import run, signature
from tests.optimize.test_samples import ROWS, SAMPLED, first_letters, plain_loop
from tests.synthetic import TextEngine, dataset, number_metric

BEST: dict[str, Any] = {"aggregate": "best", "scorer": "mean_logprob"}
ASKED: dict[str, Any] = {
    "dataset": [{"prompt": f"How many apples {n}", "reference": "7"} for n in range(12)],
    "space": {**SAMPLED, "max_new_tokens": 4, "temperature": FloatDistribution(0.3, 1.5)},
    "metric": first_letters,
    "samples": 3,
    "n_trials": 4,
    "holdout": 0.0,
    "finalists": 1,
    "holdout_replicates": 1,
    **BEST,
}


@torch.no_grad()
def mean_logprob(model: LlamaForCausalLM, prompt_ids: list[int], tokens: tuple[int, ...]) -> float:
    logprobs = model(torch.tensor([[*prompt_ids, *tokens]])).logits[0].double().log_softmax(dim=-1)
    return sum(float(logprobs[len(prompt_ids) - 1 + n, token]) for n, token in enumerate(tokens)) / len(tokens)


def test_the_likeliest_sample_stands_for_the_row(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    found = score(Engine(tiny_llama, tiny_tokenizer), ROWS, SAMPLED, metric=first_letters, samples=6, **BEST)
    expected, firsts = [], []
    for row, occurrence in zip(ROWS, (0, 0, 1), strict=True):
        ids = tiny_tokenizer(row["prompt"])["input_ids"]
        samples = [plain_loop(tiny_llama, ids, occurrence, 0, sample) for sample in range(6)]
        best = max(samples, key=lambda tokens: mean_logprob(tiny_llama, ids, tokens))
        expected.append(first_letters([tiny_tokenizer.decode(best)], [None])[0])
        firsts.append(samples.index(best))
        told = [c.mean_logprob for c in found.samples[len(expected) - 1]]
        assert told == pytest.approx([mean_logprob(tiny_llama, ids, tokens) for tokens in samples], abs=1e-4)
    assert list(found.scores) == expected
    assert any(firsts), "the first sample is not always the best"


class BreakingEngine(Engine):
    """Ctrl-C comes at every n-th poll."""

    polls = 0
    every = 0

    def poll(self) -> Any:
        self.polls += 1
        if self.every and self.polls % self.every == 0:
            raise KeyboardInterrupt
        return super().poll()


def test_a_study_that_is_interrupted_goes_on_as_if_nothing_had_been(
    tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """What was decoded and not scored yet keeps its log-probability in the database, also in one made before it."""
    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole", Engine(tiny_llama, tiny_tokenizer), **ASKED)
    engine = BreakingEngine(tiny_llama, tiny_tokenizer, batch_size=4)
    engine.every = 7
    interruptions = 0
    while True:
        try:
            again = run(tmp_path, engine, **ASKED)
            break
        except (StudyInterrupted, KeyboardInterrupt):
            interruptions += 1
    assert interruptions > 2
    assert signature(again) == signature(whole)
    stored = again.records(0)
    assert all(sample.logprob is not None and sample.logprob < 0 for r in stored for sample in r.samples)


def test_a_study_without_it_stores_none_and_goes_on_from_before(tmp_path: Path) -> None:
    run(tmp_path, n_trials=3)
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as connection, connection:
        assert connection.execute("SELECT count(*) FROM llmsearch_rows WHERE logprob IS NOT NULL").fetchone() == (0,)
        connection.execute("ALTER TABLE llmsearch_rows DROP COLUMN logprob")
    (tmp_path / "whole").mkdir()
    assert signature(run(tmp_path, n_trials=5))[0] == signature(run(tmp_path / "whole", n_trials=5))[0]


def test_who_gives_no_log_probabilities_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    engine = TextEngine()
    with pytest.raises(
        InputError, match=r"best\(number_metric\) needs the log-probabilities of tokens, and TextEngine gives"
    ):
        run(tmp_path, engine, samples=3, **BEST)
    with pytest.raises(InputError, match="needs the log-probabilities"):
        score(engine, dataset(4), SAMPLED, metric=number_metric, samples=3, **BEST)
    assert not engine.calls


def test_an_engine_of_ones_own_may_give_them() -> None:
    class Telling(TextEngine):
        gives_logprobs = True

        def complete(self, prompt: str, params: Any) -> Completion:
            made = super().complete(prompt, params)
            return Completion(made.text, (1, 2), cumulative_logprob=-float(made.text))

    found = score(Telling(), dataset(4), SAMPLED, metric=number_metric, samples=5, **BEST)
    assert list(found.scores) == [min(float(c.text) for c in samples) for samples in found.samples]

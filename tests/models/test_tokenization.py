from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.models.tokenization import Positions, PromptTokens, encode
from llmsearch_optuna.task.task import Task
from tests.tiny import make_tokenizer

PLAIN = make_tokenizer()
COMPOSING = make_tokenizer()
COMPOSING.backend_tokenizer.normalizer = normalizers.NFC()


class CountingTokenizer:
    """Counts the texts that a tokenizer is given."""

    is_fast = True

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.texts: list[str] = []
        self._tokenizer = tokenizer

    def __call__(self, text: Any, **options: Any) -> Any:
        self.texts += [text] if isinstance(text, str) else text
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("tokenizer", [PLAIN, COMPOSING])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40), special=st.booleans())
def test_no_text_has_more_tokens_than_its_bound(tokenizer: Any, text: str, special: bool) -> None:
    most = PromptTokens(tokenizer).most(text, special)
    assert most is not None
    assert len(encode(tokenizer, text, special, {})) <= most


def test_a_normalizer_that_may_write_anything_has_no_bound() -> None:
    tokenizer = copy.deepcopy(PLAIN)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "many words")
    assert PromptTokens(tokenizer).most("a", False) is None


@given(texts=st.lists(st.tuples(st.sampled_from(["Anna asks", "Ben", "the train", "é"]), st.booleans()), max_size=9))
def test_prompts_are_counted_as_they_are_encoded_and_tokenized_once(texts: list[tuple[str, bool]]) -> None:
    counting = CountingTokenizer(PLAIN)
    tokens = PromptTokens(counting)
    assert tokens.count(texts, {}) == [len(encode(PLAIN, text, special, {})) for text, special in texts]
    assert [tokens.ids(text, special, {}) for text, special in texts] == [
        encode(PLAIN, text, special, {}) for text, special in texts
    ]
    assert len(counting.texts) == len(set(texts))


def test_only_prompts_that_may_be_too_long_are_tokenized_to_be_checked() -> None:
    rows = [{"prompt": "Anna asks Ben " * (40 if number == 7 else 1), "reference": "x"} for number in range(50)]
    counting = CountingTokenizer(PLAIN)
    task = Task(rows, metric="exact_match").prepare()
    task.check_lengths(PromptTokens(counting), Positions(shared=1000), 16)
    assert counting.texts == [task.prompts[7]]
    tokens = PromptTokens(counting)
    with pytest.raises(InputError, match="1 of 50 prompts do not fit into the model: row 7"):
        task.check_lengths(tokens, Positions(shared=100), 16)
    assert len(task.token_counts(tokens)) == 50

"""A tiny thinking model with a synthetic chat template, and where a row stands in its span, found the slow way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.sampling.reasoning import ReasoningSpan
from tests.tiny import llama_config, make_tokenizer, random_llama

TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% if open_thinking is defined and open_thinking %}<think>\n{% endif %}{% endif %}"
)
"""Thinks by itself, as Qwen3's; ``open_thinking`` writes the start marker into the prompt, as DeepSeek-R1's does."""

WORDS = ("<think>", "</think>")


@lru_cache(maxsize=1)
def thinking_tokenizer() -> PreTrainedTokenizerFast:
    """The tests' tokenizer with two markers that are no special tokens, two special ones, and the template."""
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn|>", "<|end|>"]})
    tokenizer.add_tokens([AddedToken(word, special=False) for word in WORDS])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@lru_cache(maxsize=1)
def thinking_model() -> LlamaForCausalLM:
    """A random model that writes the markers often: their logits are those of tokens that it likes."""
    tokenizer = thinking_tokenizer()
    model = random_llama(llama_config(vocab_size=len(tokenizer)))
    start, end = tokenizer.convert_tokens_to_ids(list(WORDS))
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
        model.lm_head.weight[start] = model.lm_head.weight[60] * 1.3
        model.lm_head.weight[end] = model.lm_head.weight[75] * 1.3
    return model


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def span_by_hand(
    prompt: Sequence[int], tokens: Sequence[int], span: ReasoningSpan
) -> tuple[int | None, int | None, int | None]:
    """How many tokens come before the start marker, before the thought, and before the answer: by the definition."""
    written = [*prompt, *tokens]
    began: int | None = None
    if opened_by_hand(prompt, span):
        began = 0
    else:
        for count in range(1, len(tokens) + 1):
            if ends_with(written[: len(prompt) + count], span.start_ids):
                began = count
                break
    if began is None:
        return None, None, None
    start = max(0, began - len(span.start_ids)) if began else 0
    for count in range(began + len(span.end_ids), len(tokens) + 1):
        if ends_with(tokens[:count], span.end_ids):
            return start, began, count
    return start, began, None


def opened_by_hand(prompt: Sequence[int], span: ReasoningSpan) -> bool:
    """A start marker in the prompt, and behind it neither an end marker nor a special token."""
    starts = [place for place in range(len(prompt) + 1) if ends_with(prompt[:place], span.start_ids)]
    if not starts:
        return False
    rest = prompt[starts[-1] :]
    closed = any(ends_with(prompt[:place], span.end_ids) for place in range(starts[-1] + 1, len(prompt) + 1))
    return not closed and not any(token in span.turn_ids for token in rest)


def ends_with(tokens: Sequence[int], marker: Sequence[int]) -> bool:
    return len(tokens) >= len(marker) and list(tokens[len(tokens) - len(marker) :]) == list(marker)

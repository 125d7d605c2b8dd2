"""A tiny thinking model with a synthetic chat template, and where a row stands in its span, found the slow way."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.sampling.gumbel import gumbel, row_key
from llmsearch_optuna.engine.sampling.params import GenerationParams
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
    """The tests' tokenizer with two markers, two special tokens, a line's end, and the template."""
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn|>", "<|end|>"]})
    tokenizer.add_tokens([AddedToken(word, special=False) for word in (*WORDS, "\n")])
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
    if closed_by_hand(prompt, span):
        return None, None, None
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


def by_hand(
    model: Any,
    prompt: Sequence[int],
    params: GenerationParams,
    span: ReasoningSpan,
    after: GenerationParams | None = None,
) -> tuple[int, ...]:
    """One whole forward a token, and the definition of the budget; temperature, top_k and the repetition penalty.

    Behind the span, ``after`` takes the place of the parameters.
    """
    written: list[int] = []
    while len(written) < params.max_new_tokens:
        token = closing_by_hand(prompt, written, span, params.get("thinking_budget"))
        if token is None:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *written]])).logits[0, -1].float().numpy()
            is_answer = after is not None and answers_by_hand(prompt, written, span)
            token = picked_by_hand(logits.copy(), prompt, written, after if is_answer and after else params)
        written.append(token)
        if token in params.eos_token_ids:
            break
    return tuple(written)


def answers_by_hand(prompt: Sequence[int], written: Sequence[int], span: ReasoningSpan) -> bool:
    """Behind the span, one that the prompt has closed itself included."""
    return span_by_hand(prompt, written, span)[2] is not None or closed_by_hand(prompt, span)


def closed_by_hand(prompt: Sequence[int], span: ReasoningSpan) -> bool:
    """An end marker in the prompt, and nothing but white space behind it."""
    ends = [place for place in range(1, len(prompt) + 1) if ends_with(prompt[:place], span.end_ids)]
    return bool(span.end_ids and ends) and all(token in span.blank_ids for token in prompt[ends[-1] :])


def closing_by_hand(
    prompt: Sequence[int], written: Sequence[int], span: ReasoningSpan, budget: int | None
) -> int | None:
    """The first token of what is still missing of the end marker, once so many tokens have been thought."""
    _, began, ended = span_by_hand(prompt, written, span)
    if budget is None or began is None or ended is not None or len(written) - began < budget:
        return None
    thought = written[began:]
    for size in range(1, len(span.end_ids) + 1):
        missing = span.end_ids[-size:]
        if ends_with([*thought, *missing], span.end_ids):
            return missing[0]
    raise AssertionError("a whole marker ends with itself")


def picked_by_hand(scores: np.ndarray, prompt: Sequence[int], written: Sequence[int], params: Mapping[str, Any]) -> int:
    if "repetition_penalty" in params:
        penalty = np.float32(params["repetition_penalty"])
        for token in {*prompt, *written}:
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    if not params.get("do_sample"):
        return int(np.argmax(scores))
    scores = scores / np.float32(params.get("temperature", 1.0))
    if size := params.get("top_k", 0):
        scores[scores < np.sort(scores)[-size]] = -np.inf
    noise = gumbel(params.get("generation_seed", 0), [row_key(prompt)], [len(written)], np.arange(len(scores))[None])[0]
    return int(np.argmax(scores.astype(np.float64) + noise))

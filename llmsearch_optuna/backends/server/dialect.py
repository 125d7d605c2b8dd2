"""The dialects of OpenAI's interface: what each server calls a parameter, what it takes, and what it does by itself.

Names on our side are Hugging Face's and this library's own. Only data and the translation of one value stand here;
which request they end up in is decided in `request_body`.

Sources, read in November 2026: vLLM 0.32, ``entrypoints/openai/*/protocol.py`` and ``v1/sample``; SGLang,
``srt/entrypoints/openai/protocol.py``, ``srt/sampling/sampling_params.py`` and its page on thinking budgets; llama.cpp,
``tools/server/server-schema.cpp`` and ``server-common.cpp``; Ollama, ``openai/openai.go`` and pull request 17679
(``repeat_penalty`` is 1.0 unless the model says otherwise; it was 1.1); OpenAI, the types of its Python client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from llmsearch_optuna.types import DialectName

DIALECT_NAMES: tuple[DialectName, ...] = get_args(DialectName)


@dataclass(frozen=True)
class Dialect:
    """How one kind of server is spoken to.

    Attributes:
        name: What people call the server.
        fields: Our name -> the server's field, for every parameter that it takes.
        neutral: The server's fields and the values that switch them off. Sent with every request, so that nothing is
            left to the server's own defaults.
        greedy: The fields that make it take the most likely token.
        defaults: What it does where a client is silent, under our names: the baseline of a study that gives none.
        unchangeable: Our name -> the value that it applies and that no field changes.
        constant: Fields that every request has, whatever is searched.
        written: Our name -> our value -> what stands for it there, where that differs: for "off", or for "all".
        max_stops: The most stop strings that it takes; None where there is no limit.
        continues_messages: Whether an answer that the last message has begun must be asked to be gone on with.
        takes_token_ids: Whether a prompt may be a list of token ids.
        returns_token_ids: Whether it says the ids of what it generated.
        generation_config: Whether sampling parameters travel as Hugging Face's generation configuration, in a string
            of JSON; then all of Hugging Face's names are taken.
        chat_only: Our names of what only the chat interface takes; beside a text it would be ignored.
        chat_names: The server's fields that its chat interface calls otherwise.
        picks_by_row: Whether this library's logits processor is loaded there (see `backends.vllm.logits_processor`);
            then it picks the tokens, under all parameters of our own engine but DRY and XTC.
    """

    name: DialectName
    fields: Mapping[str, str]
    neutral: Mapping[str, Any]
    greedy: Mapping[str, Any]
    defaults: Mapping[str, Any]
    unchangeable: Mapping[str, Any] = field(default_factory=dict)
    constant: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    max_stops: int | None = None
    continues_messages: bool = False
    takes_token_ids: bool = False
    returns_token_ids: bool = False
    generation_config: bool = False
    chat_only: frozenset[str] = frozenset()
    chat_names: Mapping[str, str] = field(default_factory=dict)
    picks_by_row: bool = False

    def value(self, name: str, value: Any) -> Any:
        """Return the value as the server writes it."""
        return self.written[name].get(value, value) if name in self.written else value


_OPENAI_FIELDS = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "stop": "stop",
    "sequence_bias": "logit_bias",
    "response_format": "response_format",
    "reasoning_effort": "reasoning_effort",
}
_OPENAI_NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_PLAIN_SAMPLING = {"do_sample": True, "top_k": 0}
"""Temperature 1 and no truncation: what most servers do where neither client nor model says anything."""

OPENAI = Dialect(
    name="openai",
    fields=_OPENAI_FIELDS,
    neutral=_OPENAI_NEUTRAL,
    greedy={"temperature": 0.0},
    defaults=_PLAIN_SAMPLING,
    max_stops=4,
    chat_only=frozenset({"reasoning_effort", "response_format"}),
)

OPENAI_ITSELF = replace(OPENAI, neutral={}, chat_names={"max_tokens": "max_completion_tokens"})
"""At api.openai.com: its defaults are documented to switch everything off, and its reasoning models refuse to be told
so; they refuse ``max_tokens``, too, which only the older interface for texts still wants."""

_VLLM_FIELDS = {
    **_OPENAI_FIELDS,
    "min_new_tokens": "min_tokens",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "stop_token_sequences": "stop_token_ids",
}
_VLLM_NEUTRAL = {**_OPENAI_NEUTRAL, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}

VLLM = Dialect(
    name="vllm",
    fields={
        **_VLLM_FIELDS,
        "num_beams": "n",
        "length_penalty": "length_penalty",
        "thinking_budget": "thinking_token_budget",
        "thinking_token_budget": "thinking_token_budget",
    },
    neutral=_VLLM_NEUTRAL,
    greedy={"temperature": 0.0},
    defaults=_PLAIN_SAMPLING,
    constant={"return_token_ids": True},
    continues_messages=True,
    takes_token_ids=True,
    returns_token_ids=True,
    chat_only=frozenset({"reasoning_effort"}),
)

VLLM_BY_ROW = replace(VLLM, picks_by_row=True)

SGLANG = Dialect(
    name="sglang",
    # A server that was started without --enable-strict-thinking ignores the budget.
    fields={**_VLLM_FIELDS, "thinking_budget": "custom_params"},
    neutral={**_VLLM_NEUTRAL, "top_k": -1},
    greedy={"temperature": 0.0},
    defaults=_PLAIN_SAMPLING,
    written={"top_k": {0: -1}},
    continues_messages=True,
    takes_token_ids=True,
    chat_only=frozenset({"reasoning_effort", "thinking_budget"}),
)

_WHOLE_CONTEXT = 2**20
"""Tokens; a llama.cpp server refuses -1, which stands for all of them elsewhere."""

LLAMA_CPP = Dialect(
    name="llama.cpp",
    fields={
        **{ours: theirs for ours, theirs in _OPENAI_FIELDS.items() if ours != "reasoning_effort"},
        "top_k": "top_k",
        "min_p": "min_p",
        "typical_p": "typical_p",
        "top_n_sigma": "top_n_sigma",
        "repetition_penalty": "repeat_penalty",
        "repeat_last_n": "repeat_last_n",
        "dry_multiplier": "dry_multiplier",
        "dry_base": "dry_base",
        "dry_allowed_length": "dry_allowed_length",
        "dry_penalty_last_n": "dry_penalty_last_n",
        "dry_sequence_breakers": "dry_sequence_breakers",
        "xtc_probability": "xtc_probability",
        "xtc_threshold": "xtc_threshold",
        "mirostat_mode": "mirostat",
        "mirostat_tau": "mirostat_tau",
        "mirostat_eta": "mirostat_eta",
        "thinking_budget": "thinking_budget_tokens",
    },
    neutral={
        **_OPENAI_NEUTRAL,
        "top_k": 0,
        "min_p": 0.0,
        "typical_p": 1.0,
        "top_n_sigma": -1.0,
        "repeat_penalty": 1.0,
        "dry_multiplier": 0.0,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": _WHOLE_CONTEXT,
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "mirostat": 0,
        "dynatemp_range": 0.0,
        "adaptive_target": -1.0,
    },
    written={"dry_penalty_last_n": {-1: _WHOLE_CONTEXT}},
    greedy={"temperature": 0.0},
    defaults={"do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_last_n": 64},
    constant={
        # What was computed for another request differs in its last bits, so that the same seed gives other texts.
        "cache_prompt": False,
    },
    takes_token_ids=True,
    chat_only=frozenset({"response_format", "thinking_budget"}),
)

OLLAMA = Dialect(
    name="ollama",
    fields={name: theirs for name, theirs in _OPENAI_FIELDS.items() if name != "sequence_bias"},
    neutral=_OPENAI_NEUTRAL,
    greedy={"temperature": 0.0},
    defaults={"do_sample": True, "top_k": 40},
    unchangeable={"top_k": 40},
    chat_only=frozenset({"reasoning_effort", "response_format"}),
)

TRANSFORMERS = Dialect(
    name="transformers",
    fields={"max_new_tokens": "max_tokens", "stop": "stop"},
    neutral={
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": None,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
    },
    greedy={"do_sample": False},
    defaults=_PLAIN_SAMPLING | {"top_k": 50},
    generation_config=True,
)

DIALECTS: Mapping[DialectName, Dialect] = {
    dialect.name: dialect for dialect in (VLLM, SGLANG, LLAMA_CPP, OLLAMA, TRANSFORMERS, OPENAI)
}

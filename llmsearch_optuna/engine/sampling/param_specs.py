"""The names of generation parameters: which exist, what each may be, and when it can matter.

Names and meanings are those of Hugging Face's ``GenerationConfig`` (transformers 5.23), our own, and those of servers.
One name and its value are judged here; what several of them mean together is judged in `canonical`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from transformers import GenerationConfig

from llmsearch_optuna.engine.sampling.after_thinking import (
    AFTER_THINKING,
    PENALTIES,
    PREFIX,
    is_after_thinking,
    plain_name,
)
from llmsearch_optuna.engine.sampling.param_values import (
    CACHES,
    anything,
    biases,
    boolean,
    cache,
    choice,
    decay,
    early_stopping,
    frozen,
    integer,
    label,
    mirostat_mode,
    number,
    only,
    plain,
    strings,
    token,
    token_sequences,
    tokens,
    watermark,
)
from llmsearch_optuna.errors import InputError, short

Scope = Literal["always", "sampling", "beams", "assisted", "task", "never", "refused"]
"""When a parameter can change the text.

``task``: it says what is asked for, and no engine is told. ``never``: it only changes speed or memory, or what else is
returned.
"""

OWN_NAMES = (
    "after_thinking",
    *("dry_allowed_length", "dry_base", "dry_multiplier", "dry_penalty_last_n", "dry_sequence_breakers"),
    *("frequency_penalty", "generation_seed", "min_tokens", "mirostat_eta", "mirostat_mode", "mirostat_tau"),
    *("presence_penalty", "samples", "stop", "stop_token_sequences", "tfs", "thinking_budget", "top_a"),
    "top_n_sigma",
    *("xtc_probability", "xtc_threshold"),
)
MOST_SAMPLES = 1024
"""Samples of a row."""

MIROSTAT_TAU = 5.0
MIROSTAT_ETA = 0.1
"""Where they are left out; those of llama.cpp."""

MIROSTAT_REPLACES = (
    *("top_n_sigma", "tfs", "top_a", "top_h", "top_k", "top_p", "min_p"),
    *("typical_p", "epsilon_cutoff", "eta_cutoff", "xtc_probability", "xtc_threshold"),
)
"""The truncations that have no say beside Mirostat."""

SERVER_NAMES = ("reasoning_effort", "repeat_last_n", "response_format", "thinking_token_budget")
"""What only servers apply, under the names that most of them give it."""

TASK_NAMES = ("prompt", "system")
"""Parts of a task that a study may choose among; see `llmsearch_optuna.task.choices`."""

TEMPLATE_VARIABLE = "chat_template_kwargs."
"""How such names begin where they are variables of the chat template; the variable's own name follows."""

NAMES_BESIDE_HUGGING_FACE = OWN_NAMES + SERVER_NAMES + TASK_NAMES


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """What one parameter may be.

    Attributes:
        parse: Turns a value into its canonical form (numbers, strings, and tuples of them); ValueError if it cannot.
        allowed: The permitted values in words; ends the sentence "it must be …".
        scope: When it can change the text.
        neutral: The value that is the same as not giving it.
    """

    parse: Callable[[Any], Any]
    allowed: str
    scope: Scope = "always"
    neutral: Any = None


_PROCESSORS = "leave it out; the parameters that are searched bring their own"
_ARGUMENTS_OF_GENERATE = {
    "assistant_model": "an assistant changes the speed and not what is decoded; leave it out, or give "
    "prompt_lookup_num_tokens or assistant_early_exit, which need no second model",
    "logits_processor": _PROCESSORS,
    "stopping_criteria": "give stop (texts) or stop_token_sequences (token ids)",
    "prefix_allowed_tokens_fn": "a function cannot be stored with a study; leave it out",
    "negative_prompt_ids": "leave it out; guidance_scale alone guides away from the text without its prompt",
    "synced_gpus": "leave it out",
    "streamer": 'leave it out; set_verbosity("debug") shows what is written',
}


def known_names() -> frozenset[str]:
    """All names a user may write: Hugging Face's of the installed version, ours, and those of servers."""
    return _HUGGING_FACE_NAMES | frozenset(NAMES_BESIDE_HUGGING_FACE)


def check_name(name: str) -> None:
    """Raise ``InputError`` with the nearest name if there is no such parameter."""
    if name in known_names() or is_template_variable(name):
        return
    if is_after_thinking(name):
        _check_name_after_thinking(plain_name(name))
        return
    if name in _ARGUMENTS_OF_GENERATE:
        raise InputError(
            f"{name!r} is an argument of generate and no generation parameter: {_ARGUMENTS_OF_GENERATE[name]}"
        )
    near = difflib.get_close_matches(str(name), sorted(known_names()), n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else "Names are those of transformers' GenerationConfig."
    own = ", ".join(OWN_NAMES)
    served = ", ".join(SERVER_NAMES)
    raise InputError(
        f"{name!r} is not a generation parameter. {hint} (Besides Hugging Face's there are {own}, and with a server "
        f"{served}.)"
    )


def check_value(name: str, value: Any) -> Any:
    """Return the canonical form of one value (``None`` stays), or raise ``InputError`` with what is allowed."""
    check_name(name)
    spec = spec_of(name)
    if value is None:
        return None
    try:
        return spec.parse(plain(value))
    except (ValueError, TypeError, ArithmeticError, RecursionError) as problem:
        detail = f" ({problem})" if str(problem) else ""
        raise InputError(f"{name}={short(value)} is not possible: it must be {spec.allowed}.{detail}") from None


def spec_of(name: str) -> ParamSpec:
    """The spec of a name; a name that a newer transformers brings is handed on as it is."""
    if is_after_thinking(name):
        return _spec_after_thinking(plain_name(name))
    return PARAM_SPECS.get(name, _LABEL if is_template_variable(name) else _HANDED_ON)


@lru_cache(maxsize=256)
def _spec_after_thinking(name: str) -> ParamSpec:
    spec = _TEMPERATURE_OR_GREEDY if name == "temperature" else PARAM_SPECS[name]
    return replace(spec, scope="always", neutral=None)


def _check_name_after_thinking(name: str) -> None:
    if name in AFTER_NAMES:
        return
    near = difflib.get_close_matches(name, AFTER_NAMES, n=1, cutoff=0.5)
    hint = f" Did you mean {PREFIX}{near[0]}?" if near else ""
    raise InputError(
        f"{PREFIX}{name} is not possible: behind a thought only sampling parameters can change, which are "
        f"{', '.join(AFTER_NAMES)}.{hint}"
    )


def is_of_task(name: str) -> bool:
    """Whether a parameter says what is asked for, and not how tokens are picked: no engine is told of it."""
    return spec_of(name).scope == "task"


def is_template_variable(name: object) -> bool:
    """Whether this names a variable of the chat template, such as ``chat_template_kwargs.enable_thinking``."""
    return isinstance(name, str) and name.startswith(TEMPLATE_VARIABLE) and len(name) > len(TEMPLATE_VARIABLE)


_IDS = "a token id or a list of token ids (integers from 0)"
_ID_LISTS = "a list of lists of token ids (integers from 0), such as [[13, 13], [2]]"
_ONE_TEXT = "left out here: each row has one completion, and its text, tokens and stop reason are what comes back"
_SAMPLES = "left out: give samples=, and aggregate= for what a row's score is made of"
_LEFT_CORE = (
    "left out: {} left transformers' core in version 5 (it is code on the hub now); "
    "greedy, sampling, beam search and beam sampling remain"
)

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")

_STOP = ParamSpec(strings, "a string or a list of strings, none of them empty", neutral=())
_HANDED_ON = ParamSpec(frozen, "a value that can be written as JSON")
_SPEED = ParamSpec(anything, "anything", scope="never")
_TEMPERATURE_OR_GREEDY = ParamSpec(number(0.0), "a number from 0 (0 takes the most likely token)", scope="sampling")
_LABEL = ParamSpec(label, "a text, a number, True or False: what the choice is called", scope="task")


def _left_core(strategy: str, neutral: Any = None) -> ParamSpec:
    return ParamSpec(only(neutral), _LEFT_CORE.format(strategy), scope="refused", neutral=neutral)


def _flag(neutral: Any = False) -> ParamSpec:
    return ParamSpec(only(neutral), _ONE_TEXT, scope="refused", neutral=neutral)


def _sampling(parse: Callable[[Any], Any], allowed: str, neutral: Any = None) -> ParamSpec:
    return ParamSpec(parse, allowed, scope="sampling", neutral=neutral)


def _assisted(parse: Callable[[Any], Any], allowed: str) -> ParamSpec:
    return ParamSpec(parse, allowed, scope="assisted")


PARAM_SPECS: Mapping[str, ParamSpec] = {
    # length and stops
    "max_new_tokens": ParamSpec(integer(1, 10**7), "an integer from 1 to 10,000,000"),
    "min_new_tokens": ParamSpec(integer(0), "an integer from 0", neutral=0),
    "min_tokens": ParamSpec(integer(0), "an integer from 0 (vLLM's name for min_new_tokens)", neutral=0),
    "min_length": ParamSpec(integer(0), "an integer from 0 (it counts the prompt; min_new_tokens does not)", neutral=0),
    "max_length": ParamSpec(
        only(None),
        "left out: it counts the prompt, so that it means another length in every row. Give max_new_tokens",
        scope="refused",
    ),
    "max_time": ParamSpec(
        only(None), "left out: texts would depend on the speed of the machine. Give max_new_tokens", scope="refused"
    ),
    "eos_token_id": ParamSpec(tokens, _IDS, neutral=()),
    "stop": _STOP,
    "stop_strings": _STOP,
    "stop_token_sequences": ParamSpec(token_sequences, _ID_LISTS, neutral=()),
    # strategy
    "do_sample": ParamSpec(boolean, "True or False", neutral=False),
    "num_beams": ParamSpec(integer(1, 4096), "an integer from 1 to 4096", neutral=1),
    "early_stopping": ParamSpec(early_stopping, 'True, False or "never"', scope="beams", neutral=False),
    "length_penalty": ParamSpec(number(-50, 50), "a number from -50 to 50", scope="beams", neutral=1.0),
    "renormalize_logits": ParamSpec(boolean, "True or False", scope="beams", neutral=False),
    # warpers, in the order in which they are applied
    "top_n_sigma": _sampling(number(0.0, above=True), "a number above 0"),
    "tfs": _sampling(number(0.0, 1.0, above=True), "a number above 0 and at most 1", 1.0),
    "top_a": _sampling(number(0.0, 1.0), "a number from 0 to 1", 0.0),
    "mirostat_mode": _sampling(mirostat_mode, "0 (off) or 2 (Mirostat 2.0; the first version is not here)", 0),
    "mirostat_tau": _sampling(number(0.0, above=True), "a number above 0: the surprise to aim at, in bits"),
    "mirostat_eta": _sampling(number(0.0, above=True), "a number above 0: how fast the limit follows"),
    "temperature": _sampling(
        number(0.0, above=True), "a number above 0 (for the most likely token give do_sample=False)", 1.0
    ),
    "top_h": _sampling(number(0.0, 1.0, above=True), "a number above 0 and at most 1"),
    "top_k": _sampling(integer(0), "an integer from 0 (0 switches it off)"),
    "top_p": _sampling(number(0.0, 1.0), "a number from 0 to 1 (1 switches it off)", 1.0),
    "min_p": _sampling(number(0.0, 1.0), "a number from 0 to 1 (0 switches it off)", 0.0),
    "typical_p": _sampling(number(0.0, 1.0, above=True), "a number above 0 and at most 1 (1 switches it off)", 1.0),
    "epsilon_cutoff": _sampling(number(0.0, 1.0, below=True), "a number from 0 to below 1 (0 switches it off)", 0.0),
    "eta_cutoff": _sampling(number(0.0, 1.0, below=True), "a number from 0 to below 1 (0 switches it off)", 0.0),
    "samples": _sampling(integer(1, MOST_SAMPLES), f"an integer from 1 to {MOST_SAMPLES:,}", 1),
    "generation_seed": _sampling(integer(0, 2**63 - 1), "an integer from 0 to 2**63 - 1", 0),
    # processors
    "repetition_penalty": ParamSpec(number(0.0, above=True), "a number above 0 (1 switches it off)", neutral=1.0),
    "encoder_repetition_penalty": ParamSpec(
        number(0.0, above=True), "a number above 0 (1 switches it off)", neutral=1.0
    ),
    "no_repeat_ngram_size": ParamSpec(integer(0), "an integer from 0 (0 switches it off)", neutral=0),
    "encoder_no_repeat_ngram_size": ParamSpec(integer(0), "an integer from 0 (0 switches it off)", neutral=0),
    "bad_words_ids": ParamSpec(token_sequences, _ID_LISTS, neutral=()),
    "sequence_bias": ParamSpec(
        biases,
        "a dict {(token ids): bias} or a list of [[token ids], bias], each bias a finite number "
        "(to forbid a sequence use bad_words_ids)",
        neutral=(),
    ),
    "suppress_tokens": ParamSpec(tokens, _IDS, neutral=()),
    "begin_suppress_tokens": ParamSpec(tokens, _IDS, neutral=()),
    "forced_bos_token_id": ParamSpec(token, "a token id (an integer from 0)"),
    "forced_eos_token_id": ParamSpec(tokens, _IDS, neutral=()),
    "exponential_decay_length_penalty": ParamSpec(
        decay, "a pair (start, factor): an integer from 0 and a number above 0, such as (20, 1.05)"
    ),
    "remove_invalid_values": ParamSpec(boolean, "True or False", neutral=False),
    "guidance_scale": ParamSpec(number(-math.inf), "a number (1 switches it off)", neutral=1.0),
    "watermarking_config": ParamSpec(watermark, "a WatermarkingConfig or a dict of its fields"),
    "token_healing": ParamSpec(boolean, "True or False", neutral=False),
    # special tokens
    "pad_token_id": ParamSpec(integer(-1), "a token id", scope="never"),
    "bos_token_id": ParamSpec(token, "a token id (an integer from 0)"),
    "decoder_start_token_id": ParamSpec(tokens, _IDS),
    # assisted decoding
    "prompt_lookup_num_tokens": ParamSpec(integer(1), "an integer from 1"),
    "use_mtp": ParamSpec(boolean, "True or False", neutral=False),
    "assistant_early_exit": ParamSpec(integer(1), "an integer from 1"),
    "max_matching_ngram_size": _assisted(integer(1), "an integer from 1"),
    "num_assistant_tokens": _assisted(integer(1), "an integer from 1"),
    "num_assistant_tokens_schedule": _assisted(
        choice("constant", "heuristic", "heuristic_transient"), '"constant", "heuristic" or "heuristic_transient"'
    ),
    "assistant_confidence_threshold": _assisted(number(0.0, 1.0), "a number from 0 to 1"),
    "assistant_lookbehind": _assisted(integer(1), "an integer from 1"),
    "target_lookbehind": _assisted(integer(1), "an integer from 1"),
    "assistant_ensemble_weight": _assisted(number(0.0, 1.0, above=True, below=True), "a number between 0 and 1"),
    "speculation_type": _assisted(choice("dflash"), '"dflash"'),
    "is_assistant": _flag(),
    # cache and speed: a quantized cache is the only one that changes the text
    "cache_implementation": ParamSpec(cache, "one of " + ", ".join(CACHES), neutral="dynamic"),
    "cache_config": ParamSpec(frozen, "a dict"),
    "use_cache": _SPEED,
    "max_cache_len": _SPEED,
    "compile_config": _SPEED,
    "disable_compile": _SPEED,
    "prefill_chunk_size": _SPEED,
    "low_memory": _SPEED,
    "continuous_batching_config": _flag(None),
    # processors of our own, in the order in which they are applied (see penalties, dry, xtc)
    "presence_penalty": ParamSpec(number(-2.0, 2.0), "a number from -2 to 2 (0 switches it off)", neutral=0.0),
    "frequency_penalty": ParamSpec(number(-2.0, 2.0), "a number from -2 to 2 (0 switches it off)", neutral=0.0),
    "dry_multiplier": ParamSpec(number(0.0), "a number from 0 (0 switches it off)", neutral=0.0),
    "dry_base": ParamSpec(number(1.0), "a number from 1 (left out it is 1.75)", neutral=1.75),
    "dry_allowed_length": ParamSpec(integer(0), "an integer from 0 (left out it is 2)", neutral=2),
    "dry_penalty_last_n": ParamSpec(
        integer(-1), "a number of tokens from 0 (which switches DRY off), or -1 for the whole context", neutral=-1
    ),
    "dry_sequence_breakers": ParamSpec(
        strings, "a string or a list of strings, none of them empty", neutral=("\n", '"', "*", ":")
    ),
    "xtc_probability": _sampling(number(0.0, 1.0), "a number from 0 to 1 (0 switches it off)", 0.0),
    "xtc_threshold": _sampling(number(0.0, 1.0), "a number from 0 to 1 (left out it is 0.1)", 0.1),
    # thinking models (see thinking_budget)
    "thinking_budget": ParamSpec(integer(0), "a number of tokens from 0"),
    AFTER_THINKING: ParamSpec(frozen, "a dict of sampling parameters, such as {temperature = 0.0}"),
    # servers only
    "repeat_last_n": ParamSpec(integer(0), "a number of tokens from 0"),
    "reasoning_effort": ParamSpec(choice(*_EFFORTS), "one of " + ", ".join(_EFFORTS)),
    "thinking_token_budget": ParamSpec(integer(0), "an integer from 0"),
    "response_format": ParamSpec(frozen, 'a dict such as {"type": "json_object"}'),
    # of the task
    "prompt": _LABEL,
    "system": _LABEL,
    # what else generate could return
    "num_return_sequences": ParamSpec(only(1), _SAMPLES, scope="refused", neutral=1),
    "output_attentions": _flag(),
    "output_hidden_states": _flag(),
    "output_scores": _flag(),
    "output_logits": _flag(),
    "return_dict_in_generate": _flag(),
    # strategies that are gone
    "penalty_alpha": _left_core("contrastive search (penalty_alpha)", 0.0),
    "dola_layers": _left_core("DoLa decoding (dola_layers)"),
    "num_beam_groups": _left_core("group beam search (num_beam_groups, diversity_penalty)", 1),
    "diversity_penalty": _left_core("group beam search (num_beam_groups, diversity_penalty)", 0.0),
    "constraints": _left_core("constrained beam search (constraints, force_words_ids)"),
    "force_words_ids": _left_core("constrained beam search (constraints, force_words_ids)"),
}

AFTER_NAMES = (
    "do_sample",
    *(n for n, spec in PARAM_SPECS.items() if spec.scope == "sampling" and n not in ("generation_seed", "samples")),
    *PENALTIES,
)
"""What can change behind a thought. Lengths, ends, beams, the seed and samples are those of the whole text."""

_INTERNAL = {"transformers_version"}
_HUGGING_FACE_NAMES = frozenset(
    name for name in vars(GenerationConfig()) if not name.startswith("_") and name not in _INTERNAL
)

"""The names of generation parameters: which exist, what each may be, and when it can matter.

Names and meanings are those of Hugging Face's ``GenerationConfig`` (transformers 5.23), our own, and those of servers.
One name and its value are judged here; what several of them mean together is judged in ``params``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from transformers import GenerationConfig, SynthIDTextWatermarkingConfig, WatermarkingConfig

from llmsearch_optuna.engine.sampling.after_thinking import (
    AFTER_THINKING,
    PENALTIES,
    PREFIX,
    is_after_thinking,
    plain_name,
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
        return spec.parse(_plain(value))
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


# ---- parsers: each returns the canonical value or raises ValueError ------------------------------------------------


def _plain(value: Any) -> Any:
    """Python's own types for numpy scalars and arrays, tensors, and what looks like them."""
    if isinstance(value, np.generic) or hasattr(value, "tolist"):
        return value.tolist()
    return value


def _rounded(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError
    return float(f"{value:.12g}") + 0.0  # -0.0 becomes 0.0


def _number(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Callable[[Any], float]:
    """Floats from ``low`` to ``high``; ``above`` and ``below`` leave out the ends."""

    def parse(value: Any) -> float:
        number = _rounded(value)
        if number < low or number > high or (above and number == low) or (below and number == high):
            raise ValueError
        return number

    return parse


def _integer(low: int, high: float = math.inf) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return parse


_token = _integer(0)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _sequence(value: Any) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)):
        raise ValueError
    return [_plain(item) for item in value]


def _tokens(value: Any) -> tuple[int, ...]:
    """A sorted set of token ids; one id may stand for itself."""
    items = [value] if isinstance(value, int) and not isinstance(value, bool) else _sequence(value)
    return tuple(sorted({_token(item) for item in items}))


def _token_sequences(value: Any) -> tuple[tuple[int, ...], ...]:
    sequences = {tuple(_token(token) for token in _sequence(sequence)) for sequence in _sequence(value)}
    if () in sequences:
        raise ValueError("an empty sequence")
    return tuple(sorted(sequences))


_MOST_STRINGS = 1000


def _strings(value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else _sequence(value)
    if not all(isinstance(string, str) and string for string in strings):
        raise ValueError
    if len(strings) > _MOST_STRINGS:
        raise ValueError(f"there are {len(strings)}, more than {_MOST_STRINGS}")
    for string in strings:
        string.encode()  # half a character is an error
    return tuple(sorted(set(strings)))


def _biases(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """``{(ids): bias}`` or ``[[[ids], bias], …]``; a bias of 0 changes nothing and is left out."""
    pairs = value.items() if isinstance(value, Mapping) else [_sequence(pair) for pair in _sequence(value)]
    biases: dict[tuple[int, ...], float] = {}
    for ids, bias in pairs:
        sequence = tuple(_token(token) for token in _sequence(ids))
        if not sequence:
            raise ValueError("an empty sequence")
        biases[sequence] = _rounded(bias)
    return tuple(sorted((ids, bias) for ids, bias in biases.items() if bias != 0.0))


def _decay(value: Any) -> tuple[int, float]:
    start, factor = _sequence(value)
    return _integer(0)(start), _number(0.0, above=True)(factor)


def _early_stopping(value: Any) -> bool | str:
    if value == "never":
        return "never"
    return _boolean(value)


def _mirostat(value: Any) -> int:
    if isinstance(value, bool) or value not in (0, 2):
        raise ValueError
    return int(value)


def _choice(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return parse


def _frozen(value: Any) -> Any:
    """Nested tuples of plain values, with mappings as sorted pairs under a marker that ``thaw`` knows."""
    value = _plain(value)
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return FrozenItems((str(key), _frozen(value[key])) for key in sorted(value, key=str))
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, float):
        return _rounded(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ValueError(f"a {type(value).__name__} cannot be written down")


def _watermark(value: Any) -> Any:
    """All fields, those that were not given included."""
    return _frozen(watermark_of(value) if isinstance(value, Mapping) else value)


def watermark_of(fields: Mapping[str, Any]) -> Any:
    """Return the configuration that these fields belong to: only SynthID's has an ``ngram_len``."""
    made: type[Any] = SynthIDTextWatermarkingConfig if "ngram_len" in fields else WatermarkingConfig
    return made(**fields)


def with_watermark(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with a watermark as the object that it stands for: a dict always means the older kind."""
    mark = values.get("watermarking_config")
    return {**values, **({"watermarking_config": watermark_of(mark)} if isinstance(mark, Mapping) else {})}


class FrozenItems(tuple):  # type: ignore[type-arg]
    """The sorted items of a mapping that a parameter holds."""

    __slots__ = ()


def thaw(value: Any) -> Any:
    """Lists and dicts of a canonical value, as JSON has them."""
    if isinstance(value, FrozenItems):
        return {key: thaw(item) for key, item in value}
    if isinstance(value, tuple):
        return [thaw(item) for item in value]
    return value


def _label(value: Any) -> bool | int | float | str:
    if isinstance(value, float):
        return _rounded(value)
    if not isinstance(value, bool | int | str):
        raise ValueError
    return value


_CACHES = (
    *("dynamic", "offloaded", "static", "offloaded_static", "sliding_window", "hybrid", "hybrid_chunked"),
    *("offloaded_hybrid", "offloaded_hybrid_chunked", "quantized"),
)


def _cache(value: Any) -> str:
    """All caches hold the same numbers, except the quantized one."""
    if value not in _CACHES:
        raise ValueError
    return "quantized" if value == "quantized" else "dynamic"


def _anything(value: Any) -> Any:
    return value


def _only(neutral: Any) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        if value != neutral or isinstance(value, bool) != isinstance(neutral, bool):
            raise ValueError
        return neutral

    return parse


# ---- the table ------------------------------------------------------------------------------------------------------

_IDS = "a token id or a list of token ids (integers from 0)"
_ID_LISTS = "a list of lists of token ids (integers from 0), such as [[13, 13], [2]]"
_ONE_TEXT = "left out here: each row has one completion, and its text, tokens and stop reason are what comes back"
_SAMPLES = "left out: give samples=, and aggregate= for what a row's score is made of"
_LEFT_CORE = (
    "left out: {} left transformers' core in version 5 (it is code on the hub now); "
    "greedy, sampling, beam search and beam sampling remain"
)

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")

_STOP = ParamSpec(_strings, "a string or a list of strings, none of them empty", neutral=())
_HANDED_ON = ParamSpec(_frozen, "a value that can be written as JSON")
_SPEED = ParamSpec(_anything, "anything", scope="never")
_TEMPERATURE_OR_GREEDY = ParamSpec(_number(0.0), "a number from 0 (0 takes the most likely token)", scope="sampling")
_LABEL = ParamSpec(_label, "a text, a number, True or False: what the choice is called", scope="task")


def _left_core(strategy: str, neutral: Any = None) -> ParamSpec:
    return ParamSpec(_only(neutral), _LEFT_CORE.format(strategy), scope="refused", neutral=neutral)


def _flag(neutral: Any = False) -> ParamSpec:
    return ParamSpec(_only(neutral), _ONE_TEXT, scope="refused", neutral=neutral)


def _sampling(parse: Callable[[Any], Any], allowed: str, neutral: Any = None) -> ParamSpec:
    return ParamSpec(parse, allowed, scope="sampling", neutral=neutral)


def _assisted(parse: Callable[[Any], Any], allowed: str) -> ParamSpec:
    return ParamSpec(parse, allowed, scope="assisted")


PARAM_SPECS: Mapping[str, ParamSpec] = {
    # length and stops
    "max_new_tokens": ParamSpec(_integer(1, 10**7), "an integer from 1 to 10,000,000"),
    "min_new_tokens": ParamSpec(_integer(0), "an integer from 0", neutral=0),
    "min_tokens": ParamSpec(_integer(0), "an integer from 0 (vLLM's name for min_new_tokens)", neutral=0),
    "min_length": ParamSpec(
        _integer(0), "an integer from 0 (it counts the prompt; min_new_tokens does not)", neutral=0
    ),
    "max_length": ParamSpec(
        _only(None),
        "left out: it counts the prompt, so that it means another length in every row. Give max_new_tokens",
        scope="refused",
    ),
    "max_time": ParamSpec(
        _only(None), "left out: texts would depend on the speed of the machine. Give max_new_tokens", scope="refused"
    ),
    "eos_token_id": ParamSpec(_tokens, _IDS, neutral=()),
    "stop": _STOP,
    "stop_strings": _STOP,
    "stop_token_sequences": ParamSpec(_token_sequences, _ID_LISTS, neutral=()),
    # strategy
    "do_sample": ParamSpec(_boolean, "True or False", neutral=False),
    "num_beams": ParamSpec(_integer(1, 4096), "an integer from 1 to 4096", neutral=1),
    "early_stopping": ParamSpec(_early_stopping, 'True, False or "never"', scope="beams", neutral=False),
    "length_penalty": ParamSpec(_number(-50, 50), "a number from -50 to 50", scope="beams", neutral=1.0),
    "renormalize_logits": ParamSpec(_boolean, "True or False", scope="beams", neutral=False),
    # warpers, in the order in which they are applied
    "top_n_sigma": _sampling(_number(0.0, above=True), "a number above 0"),
    "tfs": _sampling(_number(0.0, 1.0, above=True), "a number above 0 and at most 1", 1.0),
    "top_a": _sampling(_number(0.0, 1.0), "a number from 0 to 1", 0.0),
    "mirostat_mode": _sampling(_mirostat, "0 (off) or 2 (Mirostat 2.0; the first version is not here)", 0),
    "mirostat_tau": _sampling(_number(0.0, above=True), "a number above 0: the surprise to aim at, in bits"),
    "mirostat_eta": _sampling(_number(0.0, above=True), "a number above 0: how fast the limit follows"),
    "temperature": _sampling(
        _number(0.0, above=True), "a number above 0 (for the most likely token give do_sample=False)", 1.0
    ),
    "top_h": _sampling(_number(0.0, 1.0, above=True), "a number above 0 and at most 1"),
    "top_k": _sampling(_integer(0), "an integer from 0 (0 switches it off)"),
    "top_p": _sampling(_number(0.0, 1.0), "a number from 0 to 1 (1 switches it off)", 1.0),
    "min_p": _sampling(_number(0.0, 1.0), "a number from 0 to 1 (0 switches it off)", 0.0),
    "typical_p": _sampling(_number(0.0, 1.0, above=True), "a number above 0 and at most 1 (1 switches it off)", 1.0),
    "epsilon_cutoff": _sampling(_number(0.0, 1.0, below=True), "a number from 0 to below 1 (0 switches it off)", 0.0),
    "eta_cutoff": _sampling(_number(0.0, 1.0, below=True), "a number from 0 to below 1 (0 switches it off)", 0.0),
    "samples": _sampling(_integer(1, MOST_SAMPLES), f"an integer from 1 to {MOST_SAMPLES:,}", 1),
    "generation_seed": _sampling(_integer(0, 2**63 - 1), "an integer from 0 to 2**63 - 1", 0),
    # processors
    "repetition_penalty": ParamSpec(_number(0.0, above=True), "a number above 0 (1 switches it off)", neutral=1.0),
    "encoder_repetition_penalty": ParamSpec(
        _number(0.0, above=True), "a number above 0 (1 switches it off)", neutral=1.0
    ),
    "no_repeat_ngram_size": ParamSpec(_integer(0), "an integer from 0 (0 switches it off)", neutral=0),
    "encoder_no_repeat_ngram_size": ParamSpec(_integer(0), "an integer from 0 (0 switches it off)", neutral=0),
    "bad_words_ids": ParamSpec(_token_sequences, _ID_LISTS, neutral=()),
    "sequence_bias": ParamSpec(
        _biases,
        "a dict {(token ids): bias} or a list of [[token ids], bias], each bias a finite number "
        "(to forbid a sequence use bad_words_ids)",
        neutral=(),
    ),
    "suppress_tokens": ParamSpec(_tokens, _IDS, neutral=()),
    "begin_suppress_tokens": ParamSpec(_tokens, _IDS, neutral=()),
    "forced_bos_token_id": ParamSpec(_token, "a token id (an integer from 0)"),
    "forced_eos_token_id": ParamSpec(_tokens, _IDS, neutral=()),
    "exponential_decay_length_penalty": ParamSpec(
        _decay, "a pair (start, factor): an integer from 0 and a number above 0, such as (20, 1.05)"
    ),
    "remove_invalid_values": ParamSpec(_boolean, "True or False", neutral=False),
    "guidance_scale": ParamSpec(_number(-math.inf), "a number (1 switches it off)", neutral=1.0),
    "watermarking_config": ParamSpec(_watermark, "a WatermarkingConfig or a dict of its fields"),
    "token_healing": ParamSpec(_boolean, "True or False", neutral=False),
    # special tokens
    "pad_token_id": ParamSpec(_integer(-1), "a token id", scope="never"),
    "bos_token_id": ParamSpec(_token, "a token id (an integer from 0)"),
    "decoder_start_token_id": ParamSpec(_tokens, _IDS),
    # assisted decoding
    "prompt_lookup_num_tokens": ParamSpec(_integer(1), "an integer from 1"),
    "use_mtp": ParamSpec(_boolean, "True or False", neutral=False),
    "assistant_early_exit": ParamSpec(_integer(1), "an integer from 1"),
    "max_matching_ngram_size": _assisted(_integer(1), "an integer from 1"),
    "num_assistant_tokens": _assisted(_integer(1), "an integer from 1"),
    "num_assistant_tokens_schedule": _assisted(
        _choice("constant", "heuristic", "heuristic_transient"), '"constant", "heuristic" or "heuristic_transient"'
    ),
    "assistant_confidence_threshold": _assisted(_number(0.0, 1.0), "a number from 0 to 1"),
    "assistant_lookbehind": _assisted(_integer(1), "an integer from 1"),
    "target_lookbehind": _assisted(_integer(1), "an integer from 1"),
    "assistant_ensemble_weight": _assisted(_number(0.0, 1.0, above=True, below=True), "a number between 0 and 1"),
    "speculation_type": _assisted(_choice("dflash"), '"dflash"'),
    "is_assistant": _flag(),
    # cache and speed: a quantized cache is the only one that changes the text
    "cache_implementation": ParamSpec(_cache, "one of " + ", ".join(_CACHES), neutral="dynamic"),
    "cache_config": ParamSpec(_frozen, "a dict"),
    "use_cache": _SPEED,
    "max_cache_len": _SPEED,
    "compile_config": _SPEED,
    "disable_compile": _SPEED,
    "prefill_chunk_size": _SPEED,
    "low_memory": _SPEED,
    "continuous_batching_config": _flag(None),
    # processors of our own, in the order in which they are applied (see penalties, dry, xtc)
    "presence_penalty": ParamSpec(_number(-2.0, 2.0), "a number from -2 to 2 (0 switches it off)", neutral=0.0),
    "frequency_penalty": ParamSpec(_number(-2.0, 2.0), "a number from -2 to 2 (0 switches it off)", neutral=0.0),
    "dry_multiplier": ParamSpec(_number(0.0), "a number from 0 (0 switches it off)", neutral=0.0),
    "dry_base": ParamSpec(_number(1.0), "a number from 1 (left out it is 1.75)", neutral=1.75),
    "dry_allowed_length": ParamSpec(_integer(0), "an integer from 0 (left out it is 2)", neutral=2),
    "dry_penalty_last_n": ParamSpec(
        _integer(-1), "a number of tokens from 0 (which switches DRY off), or -1 for the whole context", neutral=-1
    ),
    "dry_sequence_breakers": ParamSpec(
        _strings, "a string or a list of strings, none of them empty", neutral=("\n", '"', "*", ":")
    ),
    "xtc_probability": _sampling(_number(0.0, 1.0), "a number from 0 to 1 (0 switches it off)", 0.0),
    "xtc_threshold": _sampling(_number(0.0, 1.0), "a number from 0 to 1 (left out it is 0.1)", 0.1),
    # thinking models (see thinking_budget)
    "thinking_budget": ParamSpec(_integer(0), "a number of tokens from 0"),
    AFTER_THINKING: ParamSpec(_frozen, "a dict of sampling parameters, such as {temperature = 0.0}"),
    # servers only
    "repeat_last_n": ParamSpec(_integer(0), "a number of tokens from 0"),
    "reasoning_effort": ParamSpec(_choice(*_EFFORTS), "one of " + ", ".join(_EFFORTS)),
    "thinking_token_budget": ParamSpec(_integer(0), "an integer from 0"),
    "response_format": ParamSpec(_frozen, 'a dict such as {"type": "json_object"}'),
    # of the task
    "prompt": _LABEL,
    "system": _LABEL,
    # what else generate could return
    "num_return_sequences": ParamSpec(_only(1), _SAMPLES, scope="refused", neutral=1),
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

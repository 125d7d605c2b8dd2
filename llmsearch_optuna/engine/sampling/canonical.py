"""The canonical form of checked parameters: what cannot change the text is left out, and what has two names has one.

Two settings that decode the same have one form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from llmsearch_optuna.engine.sampling.after_thinking import (
    PREFIX,
    is_after_thinking,
    plain_name,
)
from llmsearch_optuna.engine.sampling.param_specs import (
    AFTER_NAMES,
    MIROSTAT_ETA,
    MIROSTAT_REPLACES,
    MIROSTAT_TAU,
    spec_of,
)
from llmsearch_optuna.engine.sampling.param_values import thaw
from llmsearch_optuna.errors import InputError

Kind: TypeAlias = Literal["greedy", "sampling", "beam", "beam_sampling", "assisted"]

DEFAULT_TOP_K = 50
"""What Hugging Face puts in when ``do_sample=True`` comes without ``top_k``."""

_SETTINGS_OF = {
    ("dry_multiplier",): ("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    ("xtc_probability",): ("xtc_threshold",),
    ("repetition_penalty", "presence_penalty", "frequency_penalty"): ("repeat_last_n",),
}
"""Without one of the first, the others have no effect."""

_ASSISTED_TRIGGERS = ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")

_OTHER_NAMES = {"stop_strings": "stop", "min_tokens": "min_new_tokens"}
"""Hugging Face's name for ours, and vLLM's for Hugging Face's."""


def canonical_form(merged: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what has no effect. ``merged`` holds checked values; ``None`` is off."""
    values = {name: value for name, value in merged.items() if not is_after_thinking(name)}
    if merged.get("do_sample") is True:
        values["top_k"] = _top_k(merged)
    live = live_scopes(values)
    values = {
        name: value
        for name, value in values.items()
        if value is not None and spec_of(name).scope in live and not says_nothing(name, value)
    }
    _drop_what_others_make_void(values)
    _settle_mirostat(values)
    for value in values.values():
        if isinstance(value, Unusable):
            raise InputError(f"In the model's generation configuration: {value.problem}")
    if after := values_after_thinking(merged):
        values |= _canonical_after_thinking(values, after)
        if is_random(values) and (merged.get("samples") or 1) > 1:  # only the answer is sampled
            values["samples"] = merged["samples"]
    return values


def answer_form(values: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The canonical form of how tokens are picked behind a thought, where there is no budget any more."""
    kept = {n: value for n, value in values.items() if n != "thinking_budget" and not is_after_thinking(n)}
    if after.get("temperature") == 0:
        after = {**{n: value for n, value in after.items() if n != "temperature"}, "do_sample": False}
    return canonical_form({**kept, **after})


def values_after_thinking(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of what follows a thought, under their plain names."""
    return {plain_name(name): value for name, value in values.items() if is_after_thinking(name)}


def one_name(values: dict[str, Any]) -> dict[str, Any]:
    """One name for what has two."""
    if values.get("min_tokens") and (values.get("stop") or values.get("stop_token_sequences")):
        raise InputError(
            "min_tokens holds back stop strings and stop tokens in vLLM, too, which is not possible here. Give "
            "min_new_tokens, which holds back the end-of-sequence token, or leave the stops out."
        )
    if values.get("thinking_budget") is not None and values.get("thinking_token_budget") is not None:
        raise InputError("thinking_token_budget is a server's name for thinking_budget. Give only thinking_budget.")
    for other, name in _OTHER_NAMES.items():
        if other not in values:
            continue
        value = values.pop(other)
        if name in values and values[name] != value:
            raise InputError(f"{name} and {other} are two names of one parameter and differ here. Give only {name}.")
        values[name] = value
    return values


class Unusable:
    """A default that is out of range; an error only where it would have an effect."""

    def __init__(self, problem: InputError) -> None:
        self.problem = problem


def kind_of(values: Mapping[str, Any]) -> Kind:
    """As ``GenerationConfig.get_generation_mode``; with beams the assisting parameters are ignored."""
    sampled = values.get("do_sample") is True
    if (values.get("num_beams") or 1) > 1:
        return "beam_sampling" if sampled else "beam"
    if any(values.get(trigger) not in (None, False) for trigger in _ASSISTED_TRIGGERS):
        return "assisted"
    return "sampling" if sampled else "greedy"


def is_random(params: Mapping[str, Any]) -> bool:
    """Whether fresh replicates of these parameters can differ."""
    return params.get("do_sample") is True or params.get(f"{PREFIX}do_sample") is True


def live_scopes(values: Mapping[str, Any]) -> set[str]:
    """Which scopes of parameters can matter under this strategy."""
    kind = kind_of(values)
    live = {"always", "task"}
    if values.get("do_sample") is True:
        live.add("sampling")
    if kind in ("beam", "beam_sampling"):
        live.add("beams")
    if kind == "assisted":
        live.add("assisted")
    return live


def says_nothing(name: str, value: Any) -> bool:
    """Whether a value is the same as its absence."""
    spec = spec_of(name)
    return spec.scope != "never" and spec.neutral is not None and bool(value == spec.neutral)


def off_value(name: str) -> Any:
    """The value that makes a model's default void when it is given to ``generate``."""
    if name == "top_k":
        return 0
    neutral = spec_of(name).neutral
    return None if neutral == () or neutral is None else neutral


def _canonical_after_thinking(values: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What is different behind a thought; ``None`` is off where a parameter has no value that says so."""
    if kind_of(values) not in ("greedy", "sampling"):
        raise InputError(
            f"after_thinking follows one text from its thought to its answer; it cannot follow {kind_of(values)}. "
            "Leave out num_beams and what asks for assisted decoding, or after_thinking."
        )
    answer = answer_form(values, after)
    live = live_scopes(answer)
    found = {}
    for name in AFTER_NAMES:
        if name in answer and answer[name] != values.get(name):
            found[f"{PREFIX}{name}"] = answer[name]
        elif name not in answer and name in values and spec_of(name).scope in live:
            found[f"{PREFIX}{name}"] = off_value(name)
    return found


def _top_k(merged: Mapping[str, Any]) -> Any:
    """Absent means 50, ``None`` and 0 mean off."""
    value = merged.get("top_k", DEFAULT_TOP_K)
    return 0 if value is None else value


def _drop_what_others_make_void(values: dict[str, Any]) -> None:
    limit = values.get("max_new_tokens")
    if kind_of(values) in ("beam", "beam_sampling"):
        for trigger in _ASSISTED_TRIGGERS:
            values.pop(trigger, None)
    if "eos_token_id" not in values or "min_new_tokens" in values:
        values.pop("min_length", None)  # Hugging Face overwrites it with prompt + min_new_tokens
    # Kept where no end-of-sequence token is known here: a server knows its own.
    if isinstance(limit, int) and isinstance(values.get("min_new_tokens"), int):
        values["min_new_tokens"] = min(values["min_new_tokens"], limit)
    decay = values.get("exponential_decay_length_penalty")
    if isinstance(decay, tuple):
        start, factor = decay
        if factor == 1.0 or (isinstance(limit, int) and start >= limit - 1):
            del values["exponential_decay_length_penalty"]
        elif "eos_token_id" not in values:
            raise InputError(
                f"exponential_decay_length_penalty={decay!r} raises the score of the end-of-sequence token, "
                "and there is none. Give eos_token_id."
            )
    bad_words = values.get("bad_words_ids")
    if isinstance(bad_words, tuple):
        ends = {(token,) for token in values.get("eos_token_id", ())}
        kept = tuple(sequence for sequence in bad_words if sequence not in ends)
        if not kept:
            raise InputError(
                f"bad_words_ids={thaw(bad_words)!r} forbids only end-of-sequence tokens, which Hugging Face "
                "takes out of this list. To forbid an early end give min_new_tokens."
            )
        values["bad_words_ids"] = kept
    if values.get("cache_implementation") != "quantized":
        values.pop("cache_config", None)
    if isinstance(values.get("cache_implementation"), Unusable):
        del values["cache_implementation"]
    budget = values.get("thinking_budget")
    if isinstance(limit, int) and isinstance(budget, int) and budget >= limit:
        del values["thinking_budget"]  # no thought is that long
    if values.get("dry_penalty_last_n") == 0:
        values.pop("dry_multiplier", None)
    if (values.get("xtc_threshold") or 0.0) > 0.5:  # two tokens cannot be as likely as that
        values.pop("xtc_probability", None)
    for switch, settings in _SETTINGS_OF.items():
        if not any(name in values for name in switch):
            for name in settings:
                values.pop(name, None)


def _settle_mirostat(values: dict[str, Any]) -> None:
    """Name what Mirostat works with, and leave out what it takes the place of."""
    if "mirostat_mode" not in values:
        values.pop("mirostat_tau", None)
        values.pop("mirostat_eta", None)
        return
    if kind_of(values) != "sampling":
        raise InputError(
            f"mirostat_mode=2 steers one text by what it has said so far; it cannot follow {kind_of(values)}. "
            "Leave out num_beams and what asks for assisted decoding, or mirostat_mode."
        )
    for name in MIROSTAT_REPLACES:
        values.pop(name, None)
    values["top_k"] = 0
    values.setdefault("mirostat_tau", MIROSTAT_TAU)
    values.setdefault("mirostat_eta", MIROSTAT_ETA)

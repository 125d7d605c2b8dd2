"""Generation parameters of one configuration: checked, brought to one form, and named by a fingerprint.

Two settings that decode the same have one canonical form: what cannot change the text is left out of it,
and floats are rounded. Single names and values are judged in `param_specs`; how tokens are picked is not known here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, TypeAlias

from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from llmsearch_optuna.engine.sampling import mirostat
from llmsearch_optuna.engine.sampling.after_thinking import (
    PREFIX,
    flattened,
    is_after_thinking,
    plain_name,
)
from llmsearch_optuna.engine.sampling.param_specs import (
    AFTER_NAMES,
    NAMES_BESIDE_HUGGING_FACE,
    OWN_NAMES,
    SERVER_NAMES,
    check_name,
    check_value,
    is_of_task,
    is_template_variable,
    known_names,
    spec_of,
)
from llmsearch_optuna.engine.sampling.param_values import thaw, with_watermark
from llmsearch_optuna.errors import InputError

__all__ = ["OWN_NAMES", "SERVER_NAMES", "GenerationParams", "Kind", "check_name", "check_value", "model_defaults"]

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


class GenerationParams(Mapping[str, Any]):
    """One configuration. As a mapping it shows its canonical form, and nothing that has no effect.

    Equal, and of equal hash, are configurations that decode the same. Make them with :meth:`of`.

    >>> hot = GenerationParams.of({"max_new_tokens": 8, "do_sample": True, "top_p": 1.0, "num_beams": 1})
    >>> dict(hot)
    {'do_sample': True, 'max_new_tokens': 8, 'top_k': 50}
    >>> GenerationParams.of({"max_new_tokens": 8, "temperature": 0.7}).inert
    ('temperature',)
    """

    __slots__ = ("__dict__", "_canonical", "_given")

    def __init__(self, *, canonical: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self._canonical = dict(sorted(canonical.items()))
        self._given = dict(given)

    @classmethod
    def of(cls, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> GenerationParams:
        """Check values and bring them, laid over defaults, to their canonical form.

        Args:
            values: Hugging Face's names or ours. ``None`` switches a default off, as in ``model.generate``.
                Parameters that were made before are complete and returned as they are.
            defaults: What holds where ``values`` is silent: the model's generation configuration
                (:func:`model_defaults`). Names and values in it that Hugging Face would ignore are ignored.

        Raises:
            InputError: An unknown name, a value out of range, or a combination that Hugging Face refuses.
        """
        if isinstance(values, GenerationParams):
            return values
        given = _one_name({name: check_value(name, value) for name, value in flattened(values).items()})
        merged: dict[str, Any] = {**_checked_defaults(defaults or {}), **given}
        canonical = _canonical(merged)
        _ask_hugging_face(canonical)
        if after := _after_thinking(canonical):
            _ask_hugging_face(_answer(canonical, after))
        return cls(canonical=canonical, given={name: value for name, value in given.items() if value is not None})

    @classmethod
    def from_json(cls, text: str) -> GenerationParams:
        """Read what :meth:`to_json` wrote. It is complete: no defaults are laid under it."""
        return cls.of(json.loads(text))

    def to_json(self) -> str:
        """The canonical form as a JSON object with sorted names."""
        return json.dumps(self.canonical, sort_keys=True, separators=(",", ":"))

    @property
    def canonical(self) -> dict[str, Any]:
        """A copy of all values that have an effect; ``GenerationParams.of(p.canonical) == p``.

        When something is sampled ``top_k`` is always named (0 is off), since its absence means 50.
        """
        return {name: thaw(value) for name, value in self._canonical.items()}

    @property
    def given(self) -> dict[str, Any]:
        """A copy of what the user gave, effective or not."""
        return {name: thaw(value) for name, value in self._given.items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def decoding(self) -> GenerationParams:
        """What an engine is told: these parameters without those that say what is asked for, and how often."""
        return self._without(lambda name: is_of_task(name) or name == "samples")

    @cached_property
    def drawing(self) -> GenerationParams:
        """How a row's completions are drawn: these parameters without those that say what is asked for."""
        return self._without(is_of_task)

    @cached_property
    def one_sample(self) -> GenerationParams:
        """The same parameters with one sample a row."""
        return self._without(lambda name: name == "samples")

    def _without(self, is_left_out: Callable[[str], bool]) -> GenerationParams:
        if not any(map(is_left_out, (*self._canonical, *self._given))):
            return self
        parts = ({n: v for n, v in of.items() if not is_left_out(n)} for of in (self._canonical, self._given))
        canonical, given = parts
        return GenerationParams(canonical=canonical, given=given)

    @cached_property
    def answer(self) -> GenerationParams:
        """How tokens are picked behind a thought; these parameters themselves where there is no difference."""
        after = _after_thinking(self._canonical)
        if not after and "thinking_budget" not in self._canonical:
            return self
        return GenerationParams(canonical=_answer(self._canonical, after), given={})

    @cached_property
    def kind(self) -> Kind:
        """The strategy: greedy, sampling, beam, beam_sampling or assisted."""
        return _kind(self._canonical)

    @cached_property
    def inert(self) -> tuple[str, ...]:
        """Names that the user gave and that have no effect beside the other values, sorted.

        A value that says the same as its absence (``top_p=1.0`` when sampling) is not complained about.
        """
        return tuple(
            sorted(
                name
                for name, value in self._given.items()
                if not self._has_a_say(name) and name != "pad_token_id" and not _says_nothing(name, value)
            )
        )

    def _has_a_say(self, name: str) -> bool:
        if is_after_thinking(name):
            return self._has_a_say_after_thinking(plain_name(name), self._given[name])
        if "mirostat_mode" in self._canonical and name in mirostat.REPLACED:
            return bool(self._canonical.get(name) == self._given[name])  # top_k is named there, as off
        return name in self._canonical

    def _has_a_say_after_thinking(self, name: str, value: Any) -> bool:
        says_greedy = name == "temperature" and value == 0
        return says_greedy or value == self._canonical.get(name) or name in self.answer

    @property
    def max_new_tokens(self) -> int:
        """The most tokens a completion may have."""
        if "max_new_tokens" not in self._canonical:
            raise InputError(
                "max_new_tokens is missing. Give it (fixed or searched): without it Hugging Face stops after 20 tokens."
            )
        return int(self._canonical["max_new_tokens"])

    @property
    def generation_seed(self) -> int:
        """Which noise sampling uses; 0 unless given."""
        return int(self._canonical.get("generation_seed", 0))

    @property
    def samples(self) -> int:
        """How many completions of a row are drawn and scored together; 1 where nothing is sampled."""
        return int(self._canonical.get("samples", 1))

    @property
    def most_tokens(self) -> int:
        """The most tokens of a row, all its samples together."""
        return self.samples * self.max_new_tokens

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a completion, sorted; often one, sometimes none or several."""
        return tuple(self._canonical.get("eos_token_id", ()))

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end a completion."""
        return tuple(self._canonical.get("stop", ()))

    @property
    def stop_token_sequences(self) -> tuple[tuple[int, ...], ...]:
        """The token sequences that end a completion."""
        return tuple(self._canonical.get("stop_token_sequences", ()))

    def to_hugging_face(self, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The part that plain ``model.generate`` applies, under its names.

        ``stop`` becomes ``stop_strings``, for which ``generate`` wants ``tokenizer=`` too; the rest of
        ``OWN_NAMES`` is left out, and so is what only servers apply.

        Args:
            defaults: The generation configuration of the model that will be called. Where it sets something
                that these parameters do not have, the value that switches it off is added, so that
                ``model.generate(**inputs, **params.to_hugging_face(model_defaults(model)))`` decodes as these
                parameters say. Without defaults the result is what a ``generation_config.json`` should hold.
        """
        values = self.explicit(defaults)
        if "stop" in values:
            values["stop_strings"] = values.pop("stop")
        start = values.get("decoder_start_token_id")
        if isinstance(start, list | tuple) and len(start) == 1:
            values["decoder_start_token_id"] = start[0]  # a list would mean one start token a row
        return with_watermark({name: value for name, value in values.items() if _is_hugging_faces(name)})

    def explicit(self, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The canonical form, plus what switches off those defaults that it does not have.

        ``GenerationParams.of(p.explicit(defaults), defaults) == p`` for any defaults.
        """
        values = self.canonical
        live = _live_scopes(values)
        for name, value in _checked_defaults(defaults or {}).items():
            if name not in values and value is not None and spec_of(name).scope in live:
                values[name] = _off(name)
        return dict(sorted(values.items()))

    def __getitem__(self, name: str) -> Any:
        return thaw(self._canonical[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._canonical)

    def __len__(self) -> int:
        return len(self._canonical)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GenerationParams):
            return self.fingerprint == other.fingerprint
        return super().__eq__(other)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"GenerationParams({self.canonical!r})"


def model_defaults(model: Any) -> dict[str, Any]:
    """The values of a model's generation configuration that hold where a configuration is silent.

    Lengths that count the prompt (``max_length``), time limits, output flags and what only changes speed are left
    out, and so is what is unset. Models that wrap the one that decodes in ``.model`` (AutoAWQ) are looked into.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        config = getattr(getattr(model, "model", None), "generation_config", None)
    if config is None:
        return {}
    return {
        name: value
        for name, value in config.to_dict().items()
        if value is not None and name in known_names() and _matters(name)
    }


def _matters(name: str) -> bool:
    """Whether a model's default can have a say in how it decodes; the pad token has one in ``model.generate``."""
    return spec_of(name).scope not in ("refused", "never") or name == "pad_token_id"


class _Unusable:
    """A default that is out of range; an error only where it would have an effect."""

    def __init__(self, problem: InputError) -> None:
        self.problem = problem


def _checked_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(defaults, GenerationParams):
        return dict(defaults._canonical)
    checked: dict[str, Any] = {}
    for name, value in defaults.items():
        is_known = name in known_names() or is_template_variable(name)
        if value is None or not is_known or spec_of(name).scope == "refused":
            continue
        try:
            checked[name] = check_value(name, value)
        except InputError as problem:
            checked[name] = _Unusable(problem)
    return _one_name(checked)


_OTHER_NAMES = {"stop_strings": "stop", "min_tokens": "min_new_tokens"}
"""Hugging Face's name for ours, and vLLM's for Hugging Face's."""


def _one_name(values: dict[str, Any]) -> dict[str, Any]:
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


def _kind(values: Mapping[str, Any]) -> Kind:
    """As ``GenerationConfig.get_generation_mode``; with beams the assisting parameters are ignored."""
    sampled = values.get("do_sample") is True
    if (values.get("num_beams") or 1) > 1:
        return "beam_sampling" if sampled else "beam"
    if any(values.get(trigger) not in (None, False) for trigger in _ASSISTED_TRIGGERS):
        return "assisted"
    return "sampling" if sampled else "greedy"


def _canonical(merged: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what has no effect. ``merged`` holds checked values; ``None`` is off."""
    values = {name: value for name, value in merged.items() if not is_after_thinking(name)}
    if merged.get("do_sample") is True:
        values["top_k"] = _top_k(merged)
    live = _live_scopes(values)
    values = {
        name: value
        for name, value in values.items()
        if value is not None and spec_of(name).scope in live and not _says_nothing(name, value)
    }
    _drop_what_others_make_void(values)
    _settle_mirostat(values)
    for value in values.values():
        if isinstance(value, _Unusable):
            raise InputError(f"In the model's generation configuration: {value.problem}")
    if after := _after_thinking(merged):
        values |= _canonical_after_thinking(values, after)
        if is_random(values) and (merged.get("samples") or 1) > 1:  # only the answer is sampled
            values["samples"] = merged["samples"]
    return values


def _after_thinking(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of what follows a thought, under their plain names."""
    return {plain_name(name): value for name, value in values.items() if is_after_thinking(name)}


def _answer(values: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The canonical form of how tokens are picked behind a thought, where there is no budget any more."""
    kept = {n: value for n, value in values.items() if n != "thinking_budget" and not is_after_thinking(n)}
    if after.get("temperature") == 0:
        after = {**{n: value for n, value in after.items() if n != "temperature"}, "do_sample": False}
    return _canonical({**kept, **after})


def _canonical_after_thinking(values: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What is different behind a thought; ``None`` is off where a parameter has no value that says so."""
    if _kind(values) not in ("greedy", "sampling"):
        raise InputError(
            f"after_thinking follows one text from its thought to its answer; it cannot follow {_kind(values)}. Leave "
            "out num_beams and what asks for assisted decoding, or after_thinking."
        )
    answer = _answer(values, after)
    live = _live_scopes(answer)
    found = {}
    for name in AFTER_NAMES:
        if name in answer and answer[name] != values.get(name):
            found[f"{PREFIX}{name}"] = answer[name]
        elif name not in answer and name in values and spec_of(name).scope in live:
            found[f"{PREFIX}{name}"] = _off(name)
    return found


def _live_scopes(values: Mapping[str, Any]) -> set[str]:
    """Which scopes of parameters can matter under this strategy."""
    kind = _kind(values)
    live = {"always", "task"}
    if values.get("do_sample") is True:
        live.add("sampling")
    if kind in ("beam", "beam_sampling"):
        live.add("beams")
    if kind == "assisted":
        live.add("assisted")
    return live


def _top_k(merged: Mapping[str, Any]) -> Any:
    """Absent means 50, ``None`` and 0 mean off."""
    value = merged.get("top_k", DEFAULT_TOP_K)
    return 0 if value is None else value


def _says_nothing(name: str, value: Any) -> bool:
    """Whether a value is the same as its absence."""
    spec = spec_of(name)
    return spec.scope != "never" and spec.neutral is not None and bool(value == spec.neutral)


def _drop_what_others_make_void(values: dict[str, Any]) -> None:
    limit = values.get("max_new_tokens")
    if _kind(values) in ("beam", "beam_sampling"):
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
    if isinstance(values.get("cache_implementation"), _Unusable):
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
    if _kind(values) != "sampling":
        raise InputError(
            f"mirostat_mode=2 steers one text by what it has said so far; it cannot follow {_kind(values)}. Leave out "
            "num_beams and what asks for assisted decoding, or mirostat_mode."
        )
    for name in mirostat.REPLACED:
        values.pop(name, None)
    values["top_k"] = 0
    values.setdefault("mirostat_tau", mirostat.DEFAULT_TAU)
    values.setdefault("mirostat_eta", mirostat.DEFAULT_ETA)


def _off(name: str) -> Any:
    """The value that makes a model's default void when it is given to ``generate``."""
    if name == "top_k":
        return 0
    neutral = spec_of(name).neutral
    return None if neutral == () or neutral is None else neutral


def _is_hugging_faces(name: str) -> bool:
    return name not in NAMES_BESIDE_HUGGING_FACE and not is_of_task(name) and not is_after_thinking(name)


def _ask_hugging_face(canonical: Mapping[str, Any]) -> None:
    """Let ``GenerationConfig`` refuse what it refuses."""
    values = {name: thaw(value) for name, value in canonical.items() if _is_hugging_faces(name)}
    try:
        with _quiet_transformers():
            GenerationConfig(**with_watermark(values)).validate()
    except (ValueError, TypeError, AttributeError) as problem:
        raise InputError(f"transformers refuses these parameters: {problem}") from problem


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hugging Face's own hints name flags that the user did not give."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)


def is_random(params: Mapping[str, Any]) -> bool:
    """Whether fresh replicates of these parameters can differ."""
    return params.get("do_sample") is True or params.get(f"{PREFIX}do_sample") is True

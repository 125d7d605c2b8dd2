"""Generation parameters of one configuration: checked, brought to one form, and named by a fingerprint.

Single names and values are judged in `param_specs`, what several of them mean together in `canonical`; how tokens are
picked is not known here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from transformers import GenerationConfig

from llmsearch_optuna.engine.sampling.after_thinking import (
    flattened,
    is_after_thinking,
    plain_name,
)
from llmsearch_optuna.engine.sampling.canonical import (
    Kind,
    Unusable,
    answer_form,
    canonical_form,
    is_random,
    kind_of,
    live_scopes,
    off_value,
    one_name,
    says_nothing,
    values_after_thinking,
)
from llmsearch_optuna.engine.sampling.param_specs import (
    MIROSTAT_REPLACES,
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

__all__ = [
    "OWN_NAMES",
    "SERVER_NAMES",
    "GenerationParams",
    "Kind",
    "check_name",
    "check_value",
    "is_random",
    "model_defaults",
]


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
        given = one_name({name: check_value(name, value) for name, value in flattened(values).items()})
        merged: dict[str, Any] = {**_checked_defaults(defaults or {}), **given}
        canonical = canonical_form(merged)
        _ask_hugging_face(canonical)
        if after := values_after_thinking(canonical):
            _ask_hugging_face(answer_form(canonical, after))
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
        after = values_after_thinking(self._canonical)
        if not after and "thinking_budget" not in self._canonical:
            return self
        return GenerationParams(canonical=answer_form(self._canonical, after), given={})

    @cached_property
    def kind(self) -> Kind:
        """The strategy: greedy, sampling, beam, beam_sampling or assisted."""
        return kind_of(self._canonical)

    @cached_property
    def inert(self) -> tuple[str, ...]:
        """Names that the user gave and that have no effect beside the other values, sorted.

        A value that says the same as its absence (``top_p=1.0`` when sampling) is not complained about.
        """
        return tuple(
            sorted(
                name
                for name, value in self._given.items()
                if not self._has_a_say(name) and name != "pad_token_id" and not says_nothing(name, value)
            )
        )

    def _has_a_say(self, name: str) -> bool:
        if is_after_thinking(name):
            return self._has_a_say_after_thinking(plain_name(name), self._given[name])
        if "mirostat_mode" in self._canonical and name in MIROSTAT_REPLACES:
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
        live = live_scopes(values)
        for name, value in _checked_defaults(defaults or {}).items():
            if name not in values and value is not None and spec_of(name).scope in live:
                values[name] = off_value(name)
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
            checked[name] = Unusable(problem)
    return one_name(checked)


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
    """Hugging Face's own hints name flags that the user did not give.

    A filter and no level: setting a level empties the caches of all loggers, which takes longer than all the rest.
    """
    _HINTS.addFilter(_refuse)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _HINTS.removeFilter(_refuse)


_HINTS = logging.getLogger(GenerationConfig.__module__)


def _refuse(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR

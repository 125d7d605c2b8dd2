"""The canonical forms of the values of generation parameters: numbers, texts, and tuples of them.

Each parser returns the canonical value, or raises ValueError; which parameter takes which stands in `param_specs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from transformers import SynthIDTextWatermarkingConfig, WatermarkingConfig


def plain(value: Any) -> Any:
    """Python's own types for numpy scalars and arrays, tensors, and what looks like them."""
    if isinstance(value, np.generic) or hasattr(value, "tolist"):
        return value.tolist()
    return value


def number(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Callable[[Any], float]:
    """Floats from ``low`` to ``high``; ``above`` and ``below`` leave out the ends."""

    def parse(value: Any) -> float:
        found = rounded(value)
        if found < low or found > high or (above and found == low) or (below and found == high):
            raise ValueError
        return found

    return parse


def integer(low: int, high: float = math.inf) -> Callable[[Any], int]:
    """Whole numbers from ``low`` to ``high``."""

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return parse


def rounded(value: Any) -> float:
    """A finite number to twelve digits, so that what is written down is read back the same."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError
    return float(f"{value:.12g}") + 0.0  # -0.0 becomes 0.0


token = integer(0)


def boolean(value: Any) -> bool:
    """True or False, and no number."""
    if not isinstance(value, bool):
        raise ValueError
    return value


def tokens(value: Any) -> tuple[int, ...]:
    """A sorted set of token ids; one id may stand for itself."""
    items = [value] if isinstance(value, int) and not isinstance(value, bool) else _sequence(value)
    return tuple(sorted({token(item) for item in items}))


def token_sequences(value: Any) -> tuple[tuple[int, ...], ...]:
    """A sorted set of sequences of token ids."""
    sequences = {tuple(token(item) for item in _sequence(sequence)) for sequence in _sequence(value)}
    if () in sequences:
        raise ValueError("an empty sequence")
    return tuple(sorted(sequences))


_MOST_STRINGS = 1000


def strings(value: Any) -> tuple[str, ...]:
    """A sorted set of texts; one text may stand for itself."""
    texts = [value] if isinstance(value, str) else _sequence(value)
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError
    if len(texts) > _MOST_STRINGS:
        raise ValueError(f"there are {len(texts)}, more than {_MOST_STRINGS}")
    for text in texts:
        text.encode()  # half a character is an error
    return tuple(sorted(set(texts)))


def biases(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """``{(ids): bias}`` or ``[[[ids], bias], …]``; a bias of 0 changes nothing and is left out."""
    pairs = value.items() if isinstance(value, Mapping) else [_sequence(pair) for pair in _sequence(value)]
    found: dict[tuple[int, ...], float] = {}
    for ids, bias in pairs:
        sequence = tuple(token(item) for item in _sequence(ids))
        if not sequence:
            raise ValueError("an empty sequence")
        found[sequence] = rounded(bias)
    return tuple(sorted((ids, bias) for ids, bias in found.items() if bias != 0.0))


def decay(value: Any) -> tuple[int, float]:
    """A step and a factor."""
    start, factor = _sequence(value)
    return integer(0)(start), number(0.0, above=True)(factor)


def early_stopping(value: Any) -> bool | str:
    """True, False or ``"never"``."""
    if value == "never":
        return "never"
    return boolean(value)


def mirostat_mode(value: Any) -> int:
    """0 or 2: the first version of Mirostat is not here."""
    if isinstance(value, bool) or value not in (0, 2):
        raise ValueError
    return int(value)


def choice(*choices: str) -> Callable[[Any], str]:
    """One of these texts."""

    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return parse


CACHES = (
    *("dynamic", "offloaded", "static", "offloaded_static", "sliding_window", "hybrid", "hybrid_chunked"),
    *("offloaded_hybrid", "offloaded_hybrid_chunked", "quantized"),
)


def cache(value: Any) -> str:
    """All caches hold the same numbers, except the quantized one."""
    if value not in CACHES:
        raise ValueError
    return "quantized" if value == "quantized" else "dynamic"


def label(value: Any) -> bool | int | float | str:
    """What one of a task's choices is called."""
    if isinstance(value, float):
        return rounded(value)
    if not isinstance(value, bool | int | str):
        raise ValueError
    return value


def anything(value: Any) -> Any:
    """What changes no text, as it is."""
    return value


def only(neutral: Any) -> Callable[[Any], Any]:
    """The one value that is allowed."""

    def parse(value: Any) -> Any:
        if value != neutral or isinstance(value, bool) != isinstance(neutral, bool):
            raise ValueError
        return neutral

    return parse


def frozen(value: Any) -> Any:
    """Nested tuples of plain values, with mappings as sorted pairs under a marker that ``thaw`` knows."""
    value = plain(value)
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return FrozenItems((str(key), frozen(value[key])) for key in sorted(value, key=str))
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(frozen(item) for item in value)
    if isinstance(value, float):
        return rounded(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ValueError(f"a {type(value).__name__} cannot be written down")


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


def watermark(value: Any) -> Any:
    """All fields, those that were not given included."""
    return frozen(watermark_of(value) if isinstance(value, Mapping) else value)


def watermark_of(fields: Mapping[str, Any]) -> Any:
    """Return the configuration that these fields belong to: only SynthID's has an ``ngram_len``."""
    made: type[Any] = SynthIDTextWatermarkingConfig if "ngram_len" in fields else WatermarkingConfig
    return made(**fields)


def with_watermark(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with a watermark as the object that it stands for: a dict always means the older kind."""
    mark = values.get("watermarking_config")
    return {**values, **({"watermarking_config": watermark_of(mark)} if isinstance(mark, Mapping) else {})}


def _sequence(value: Any) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)):
        raise ValueError
    return [plain(item) for item in value]

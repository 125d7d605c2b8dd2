"""The sampling settings that a GGUF file recommends, as defaults of the model that was loaded from it.

The keys are ``general.sampling.*``; source: ``gguf.Keys.General`` of llama.cpp's own package.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_log = logging.getLogger("llmsearch_optuna.models.gguf_sampling")

PREFIX = "general.sampling."

_NAMES = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""llama.cpp's name -> ours. Its penalty looks at the last ``penalty_last_n`` tokens only, ours at all of them."""


def take_recommended(model: Any, path: str | Path) -> None:
    """Lay what the file recommends over the model's generation configuration, and say so in one line.

    Args:
        model: Loaded from the file.
        path: The .gguf file.
    """
    found = sampling_keys(path)
    taken = as_generation_params(found)
    if not taken:
        return
    for name, value in taken.items():
        setattr(model.generation_config, name, value)
    shown = ", ".join(f"{name}={value!r}" for name, value in taken.items())
    others = ", ".join(sorted(found.keys() - _NAMES.keys()))
    _log.warning(
        "%s recommends %s: these are the model's own defaults, and so the baseline where none is given%s",
        Path(path).name,
        shown,
        f" (not taken over: {others})" if others else "",
    )


def sampling_keys(path: str | Path) -> dict[str, Any]:
    """Return the file's ``general.sampling.*`` values, by what follows the prefix."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    return {
        name.removeprefix(PREFIX): field.contents() for name, field in reader.fields.items() if name.startswith(PREFIX)
    }


def as_generation_params(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return generation parameters for sampling keys; a temperature of 0 is greedy decoding.

    >>> as_generation_params({"temp": 0.6000000238418579, "top_k": 40, "sequence": "k;p"})
    {'do_sample': True, 'temperature': 0.6, 'top_k': 40}
    """
    taken = {ours: _plain(found[theirs]) for theirs, ours in _NAMES.items() if theirs in found}
    if "temperature" not in taken:
        return {"do_sample": True, **taken} if taken.keys() - {"repetition_penalty"} else taken
    if taken["temperature"] > 0:
        return {"do_sample": True, **taken}
    greedy = {"do_sample": False}
    return greedy | {name: value for name, value in taken.items() if name == "repetition_penalty"}


def _plain(value: Any) -> Any:
    """A number without the digits that 32 bits add."""
    return float(f"{value:.6g}") if isinstance(value, float) else int(value)

"""The named baselines of a study: which one is in use, and which others are run in full beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llmsearch_optuna.declaration import nearest
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.task.choices import TaskChoices
from llmsearch_optuna.task.text_checks import is_encodable

logger = logging.getLogger("llmsearch_optuna.optimize.baselines")

MODELS_OWN = "generation_config.json"
"""The name of what the model's authors recommend: the file in which they do."""

UNNAMED = "baseline"
"""What the one in use is called where it has no name."""

ROLE = "baseline "
"""How the role of a trial begins that is a named baseline; its name follows."""


@dataclass(frozen=True)
class Baselines:
    """What a user gave as baselines.

    Attributes:
        in_use: The parameters in use today; None for the model's own generation configuration.
        name: What that one is called; empty where it has no name.
        named: All that have a name, the one in use too.
    """

    in_use: Mapping[str, Any] | None = None
    name: str = ""
    named: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, baseline: Any, named: Any) -> Baselines:
        """Check what a user gave.

        Args:
            baseline: Parameters, the name of one of the others, or None.
            named: Name -> parameters, or None.

        Raises:
            InputError: A name or a value cannot be used.
        """
        given = {} if named is None else named
        if not isinstance(given, Mapping):
            raise InputError(
                f"baselines={short(named)} must be a dict of names, each with a dict of generation parameters"
            )
        for name, values in given.items():
            if not isinstance(name, str) or not name.strip() or not is_encodable(name):
                raise InputError(f"baselines: {short(name)} is no name; give a text such as 'authors'")
            if name == UNNAMED:
                raise InputError(f"baselines: {name!r} is what the one in use is called where it has no name")
            if not isinstance(values, Mapping):
                raise InputError(f"baselines[{name!r}]={short(values)} must be a dict of generation parameters")
        if not isinstance(baseline, str):
            return cls(baseline, "", given)
        if baseline not in given:
            raise InputError(
                f"baseline={short(baseline)} is none of the baselines {', '.join(given) or '(there are none)'}"
                f"{nearest(baseline, list(given))}"
            )
        return cls(given[baseline], baseline, given)

    def labelled(self, choices: TaskChoices) -> Baselines:
        """The same with prompts and messages that a task chooses among under their labels.

        Raises:
            InputError: One of them names a prompt that the task has not.
        """
        found = {name: _labelled(values, choices, f"baselines[{name!r}]") for name, values in self.named.items()}
        return replace(self, in_use=_labelled(self.in_use, choices, "baseline="), named=found)

    def beside(self) -> dict[str, Mapping[str, Any]]:
        """Those that are run beside the one in use, by name.

        Where there are named ones, and the one in use is not the model's own configuration, that is one of them: it is
        what the model's authors recommend.
        """
        others = {name: values for name, values in self.named.items() if name != self.name}
        if self.named and self.in_use is not None and MODELS_OWN not in self.named:
            others[MODELS_OWN] = {}
        return others


def _labelled(values: Any, choices: TaskChoices, where: str) -> Any:
    if not isinstance(values, Mapping):
        return values
    try:
        choices.check_names(values)
        return choices.labelled(values)
    except InputError as problem:
        raise InputError(f"{where}: {problem}") from None


def trial_name(role: str) -> str:
    """The name of the baseline that a trial of this role is; empty for any other trial."""
    return role.removeprefix(ROLE) if role.startswith(ROLE) else ""


def same_as(found: Mapping[str, GenerationParams], known: Mapping[str, GenerationParams]) -> dict[str, str]:
    """Name -> what decodes the same and is run before it.

    Args:
        found: Named baselines, in their order.
        known: What is run before all of them, by what people call it.
    """
    seen = {params.fingerprint: name for name, params in reversed(list(known.items()))}
    same = {}
    for name, params in found.items():
        if params.fingerprint in seen:
            same[name] = seen[params.fingerprint]
        seen.setdefault(params.fingerprint, name)
    return same

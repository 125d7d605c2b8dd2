"""What of a task a study chooses: several prompts, system messages, or values of the chat template's variables.

Each is a choice under a name that stands among the generation parameters of a configuration; its values have short
labels, which is what samplers, tables and stored trials know of them. What prompts are made of them is not known here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llmsearch_optuna.engine.sampling.param_specs import TEMPLATE_VARIABLE, is_template_variable
from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.task.choice import (
    PROMPT,
    SYSTEM,
    Label,
    TaskChoice,
    choice_of,
    is_list,
    is_same_label,
    system_message,
    variable_choice,
)


@dataclass(frozen=True)
class TaskChoices:
    """All choices of a task; none where it asks in one way only."""

    choices: tuple[TaskChoice, ...] = ()

    @classmethod
    def of(cls, prompt: Any, system: Any, chat_template_kwargs: Mapping[str, Any] | None) -> TaskChoices:
        """Return what there is to choose of what a user gave.

        Args:
            prompt: A list of prompts or a mapping of names to prompts; anything else is one prompt.
            system: A list of system messages or a mapping of names to them; None or False in it stands for none.
            chat_template_kwargs: Variables of the chat template; a list is chosen from, but a list of dicts (tools,
                documents) is one value.

        Raises:
            InputError: A list or a mapping is empty, or two values or names are the same.
        """
        found = [choice_of(PROMPT, prompt) if _is_several_prompts(prompt) else None]
        found.append(choice_of(SYSTEM, system) if _is_several_messages(system) else None)
        for variable, values in _variables(chat_template_kwargs).items():
            if _is_several_values(values):
                found.append(variable_choice(variable, list(values)))
        return cls(tuple(choice for choice in found if choice is not None))

    def __bool__(self) -> bool:
        return bool(self.choices)

    def __iter__(self) -> Iterator[TaskChoice]:
        return iter(self.choices)

    @property
    def first(self) -> dict[str, Label]:
        """The first value of each, by its label: what a configuration has that names none."""
        return {choice.name: choice.labels[0] for choice in self.choices}

    def combinations(self) -> list[dict[str, Label]]:
        """All combinations of their values, by label; the first one first, and one without labels where none is."""
        names = [choice.name for choice in self.choices]
        every = itertools.product(*(choice.labels for choice in self.choices))
        return [dict(zip(names, labels, strict=True)) for labels in every]

    def place(self, params: Mapping[str, Any]) -> int:
        """Return the place of a configuration among the `combinations`.

        Raises:
            InputError: It leaves a choice open, or chooses what cannot be chosen.
        """
        self.check_names(params)
        place = 0
        for choice in self.choices:
            if choice.name not in params:
                raise InputError(
                    f"{choice.name} is not said, and there are several; name one of "
                    f"{', '.join(map(repr, choice.labels))}"
                )
            choice.value_of(params[choice.name])
            here = next(n for n, label in enumerate(choice.labels) if is_same_label(label, params[choice.name]))
            place = place * len(choice.labels) + here
        return place

    def check_names(self, names: Iterable[str]) -> None:
        """Raise InputError where a name is that of a choice which this task has not; says how it is made one."""
        known = {choice.name for choice in self.choices}
        for name in names:
            if _is_prompts(name) and name not in known:
                variable = name.removeprefix(TEMPLATE_VARIABLE)
                is_own = variable == name
                spelled = f"{name}=[…, …]" if is_own else f"chat_template_kwargs={{{variable!r}: […, …]}}"
                raise InputError(
                    f"{name!r} is no generation parameter but names one of several that a task has, and this task has "
                    f"one only. To choose among several give {spelled} beside the space"
                )

    def labelled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters in which a prompt or a message that was given itself is named by its label.

        Raises:
            InputError: What is given is none of the choice's values.
        """
        by_name = {choice.name: choice for choice in self.choices}
        return {name: by_name[name].label_of(v) if name in by_name else v for name, v in values.items()}

    def options(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a configuration chooses, as the options of `search` say it."""
        found: dict[str, Any] = {}
        for choice in self.choices:
            value = choice.value_of(params[choice.name])
            if is_template_variable(choice.name):
                variable = choice.name.removeprefix(TEMPLATE_VARIABLE)
                found.setdefault("chat_template_kwargs", {})[variable] = value
            else:
                found[choice.name] = value
        return found

    @property
    def description(self) -> dict[str, Any]:
        """All of them as JSON has them; what is stored with a study."""
        return {choice.name: choice.description for choice in self.choices}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> TaskChoices:
        """Return the choices that were stored with a study; of a function its name is left."""
        return cls(
            tuple(
                TaskChoice(name, tuple(label for label, _ in pairs), tuple(value for _, value in pairs))
                for name, pairs in description.items()
            )
        )


def shown_labels(labels: Mapping[str, Any]) -> str:
    """What is chosen, for people: ``prompt='short', system='none'``."""
    return ", ".join(f"{name}={label!r}" for name, label in labels.items())


@contextmanager
def naming(labels: Mapping[str, Any]) -> Iterator[None]:
    """Say in front of what is wrong which choice it is wrong with; nothing where there is none."""
    try:
        yield
    except InputError as problem:
        if not labels:
            raise
        raise InputError(f"{shown_labels(labels)}: {problem}") from problem.__cause__


def one_of(value: Any) -> Any:
    """Return the only value of a list or mapping of one; anything else as it is."""
    if (isinstance(value, Mapping) or is_list(value)) and len(value) == 1:
        return next(iter(value.values() if isinstance(value, Mapping) else value))
    return value


def fixed_variables(chat_template_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return those variables of the chat template that are not chosen: one value is given, or a list of one."""
    return {
        name: one_of(value) if _is_several_values(value) else value
        for name, value in _variables(chat_template_kwargs).items()
        if not _is_several_values(value) or len(value) == 1
    }


def single_prompt(prompt: Any) -> Any:
    """Return the prompt that is the only one of a list or mapping of prompts; anything else as it is."""
    return one_of(prompt) if _is_several_prompts(prompt) else prompt


def single_system(system: Any) -> str | None:
    """Return the system message that is the only one of a list or mapping; None where it says that there is none."""
    return system_message(one_of(system)) if _is_several_messages(system) else system


def _is_several_prompts(prompt: Any) -> bool:
    if isinstance(prompt, Mapping):
        if "role" in prompt and "content" in prompt:
            raise InputError(f"prompt={short(prompt, 80)} is one chat message; give a list of messages: [{{...}}]")
        return True
    return is_list(prompt) and len(prompt) > 0 and not all(isinstance(item, Mapping) for item in prompt)


def _is_several_messages(system: Any) -> bool:
    if system is None or isinstance(system, str):
        return False
    if not isinstance(system, Mapping) and not is_list(system):
        raise InputError(f"system={short(system)} must be a text, or several of them in a list or in a dict by name")
    return True


def _is_several_values(value: Any) -> bool:
    """Whether a variable's value is a list to choose from; templates take a list of dicts whole, such as tools."""
    return is_list(value) and not (len(value) > 0 and all(isinstance(item, Mapping) for item in value))


def _variables(chat_template_kwargs: Any) -> Mapping[str, Any]:
    if chat_template_kwargs is None:
        return {}
    if not isinstance(chat_template_kwargs, Mapping) or not all(isinstance(n, str) and n for n in chat_template_kwargs):
        raise InputError(
            f"chat_template_kwargs={short(chat_template_kwargs, 80)} must be a dict of the chat template's variables, "
            "such as {'enable_thinking': [True, False]}"
        )
    if isinstance(tools := chat_template_kwargs.get("tools"), Mapping | str):
        raise InputError(
            f"chat_template_kwargs: tools={short(tools, 80)} must be a list of tools, each a dict as "
            "OpenAI's interface takes it"
        )
    return chat_template_kwargs


def _is_prompts(name: str) -> bool:
    """Whether a parameter decides what prompts are made of."""
    return name in (PROMPT, SYSTEM) or is_template_variable(name)

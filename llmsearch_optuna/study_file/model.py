"""What a study file holds: its tables, their keys, and which values each may have.

It is read in `parse`, checked further in `checks`, and becomes the arguments of `search` in `arguments`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Self, TypeVar, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, create_model, field_validator, model_validator

from llmsearch_optuna.backends.server import is_address
from llmsearch_optuna.declaration import Limits, Option, annotation, declared
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.options import Inputs, ModelOptions, SearchOptions, keys_of

DEMO = "demo"
"""As a model's or dataset's name: the bundled chat model, the bundled dialogues."""

DEMO_STUDY = Path(__file__).parent.parent / "data" / "quickstart.toml"
"""The study that ``llmsearch-optuna demo`` runs."""


class Section(BaseModel):
    """A table of a study file; its keys are options (see `llmsearch_optuna.options`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


S = TypeVar("S", bound=Section)


def with_keys(table: str, *kinds: Any) -> Callable[[type[S]], type[S]]:
    """Give a class a field for every option that is a key of a table; what a file leaves out is None.

    Args:
        table: See `Key`.
        kinds: The TypedDicts that declare the options; those of `search` by default.
    """

    def decorate(section: type[S]) -> type[S]:
        fields: Any = {
            key: (_type(kind, name, declared(kind)[name]), _field(declared(kind)[name]))
            for kind in kinds or (Inputs, SearchOptions)
            for key, name in keys_of(table, declared(kind)).items()
        }
        return create_model(section.__name__, __base__=section, __module__=__name__, __doc__=section.__doc__, **fields)

    return decorate


def _type(kind: Any, name: str, option: Option) -> Any:
    assert option.key is not None
    found = annotation(kind, name) if option.key.type is None else option.key.type
    if option.limits is not None:
        found = _limited(found, option.limits)
    return found if option.key.is_required else Optional[found]  # noqa: UP045 - it may be a text


def _limited(found: Any, limits: Limits) -> Any:
    """A type whose numbers are within limits."""
    if found in (int, float):
        return Annotated[found, Field(ge=limits.ge, gt=limits.gt, lt=limits.lt)]
    if get_origin(found) is list:
        return Annotated[list[_limited(get_args(found)[0], limits)], Field(min_length=1)]  # type: ignore[misc]
    if get_origin(found) in (Union, UnionType):
        return Union[tuple(_limited(member, limits) for member in get_args(found))]  # noqa: UP007 - as many as there are
    return found


def _field(option: Option) -> Any:
    assert option.key is not None
    shown = {} if option.effective is None else {"default": option.effective}
    return Field(... if option.key.is_required else None, description=option.help, json_schema_extra=shown or None)


class Message(Section):
    """One chat message; its content is a template."""

    role: Literal["system", "user", "assistant"]
    content: str


class PrunerSection(Section):
    """The paired pruner with other settings; see PairedPruner."""

    risk: float = Field(0.02, gt=0, lt=1, description="Chance of dropping what would have been the winner.")
    min_rows: int = Field(8, ge=4, description="Rows of the first look; nothing is pruned before.")
    step: PositiveInt = Field(8, description="Rows between two looks.")


def check_one_model(name: str | None, server: str | None, name_said: str, server_said: str) -> None:
    """Raise InputError where a model has a name and an address, or the address is none.

    Args:
        name: Of the model.
        server: Its address.
        name_said: How the user writes a name, with a place for it.
        server_said: The same for an address.
    """
    if name is not None and server is not None:
        raise InputError(f"{name_said.format(name)} and {server_said.format(server)} are two models; give one of them")
    if server is not None and not is_address(server):
        raise InputError(f"{server_said.format(server)} is no address, such as http://127.0.0.1:8000/v1")


@with_keys("model")
class ModelSection(Section):
    """Which model decodes."""

    @model_validator(mode="after")
    def _is_one_model(self) -> Self:
        if self.name is None and self.server is None:
            raise ValueError("a model is missing; give its name, or server, the address of one")
        check_one_model(self.name, self.server, "name = {!r}", "server = {!r}")
        return self


@with_keys("data")
class DataSection(Section):
    """Which rows, and how they are asked and judged."""


@with_keys("study")
class StudySection(Section):
    """How long and how to search."""


@with_keys("model", Inputs, ModelOptions)
class JudgeSection(Section):
    """The language model that rates answers, where the metric is "judge"; see docs/judge.md."""

    rubric: str = Field(min_length=1, description="What a good answer is, in words.")
    scale: list[float] | None = Field(
        None, min_length=2, max_length=2, description="The lowest and the highest score; [1, 5] by default."
    )
    question: str | None = Field(
        None, description="What was asked: a template of the columns; by default the column question or prompt."
    )
    repeats: PositiveInt | None = Field(None, description="How often a text is judged; its score is the mean.")
    params: dict[str, Any] | None = Field(None, description="Generation parameters of the judge, over greedy ones.")
    labels: str | None = Field(
        None, description="A file of people's scores: columns answer and score, and row where it matters."
    )
    reference: bool | None = Field(None, description="Whether the judge sees the row's reference.")
    cache: str | None = Field(None, description="An SQLite file that keeps judgements for other studies.")

    @model_validator(mode="after")
    def _is_one_model(self) -> Self:
        if self.name is None and self.server is None:
            raise ValueError("the judge's model is missing; give its name, or server, the address of one")
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale = {self.scale}: the lowest score must be below the highest one")
        check_one_model(self.name, self.server, "name = {!r}", "server = {!r}")
        return self


TABLES: dict[str, type[Section]] = {"study": StudySection, "model": ModelSection, "data": DataSection}


@with_keys("")
class StudyFile(Section):
    """A whole study file; `space` is a table, or a list of tables (branches)."""

    study: StudySection
    model: ModelSection
    data: DataSection
    judge: JudgeSection | None = Field(None, description=JudgeSection.__doc__)

    @field_validator("space", check_fields=False)
    @classmethod
    def _not_empty(cls, space: dict[str, Any] | list[dict[str, Any]]) -> dict[str, Any] | list[dict[str, Any]]:
        if not space:
            raise ValueError("the space is empty; give at least max_new_tokens and one searched parameter")
        return space


def study_file_text(file: StudyFile) -> str:
    """Return the file as TOML; what it leaves out is left out."""
    return tomli_w.dumps(file.model_dump(exclude_none=True))

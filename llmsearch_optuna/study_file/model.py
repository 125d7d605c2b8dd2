"""A study as a TOML file: read, checked, and turned into the arguments of `search`.

Every error names the file, the line and the key. Paths in a file are taken from the folder where the command runs,
as on the command line. Nothing is loaded or decoded here.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Self, TypeVar, Union, get_args, get_origin

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from llmsearch_optuna.backends.server import is_address
from llmsearch_optuna.declaration import Limits, Option, annotation, declared, part
from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.options import Inputs, SearchOptions, TaskOptions, every_option, keys_of
from llmsearch_optuna.redaction import redacted_values
from llmsearch_optuna.study_file.locations import place, place_of_mention

if TYPE_CHECKING:
    from llmsearch_optuna.task.choices import TaskChoices

DEMO = "demo"
"""As a model's or dataset's name: the bundled chat model, the bundled dialogues."""

DEMO_STUDY = Path(__file__).parent.parent / "data" / "quickstart.toml"
"""The study that ``llmsearch-optuna demo`` runs."""

DEMO_DIALOGUES = Path(__file__).parent.parent / "data" / "dialogues.jsonl"


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


def _check_one_model(name: str | None, server: str | None, name_said: str, server_said: str) -> None:
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
        _check_one_model(self.name, self.server, "name = {!r}", "server = {!r}")
        return self


@with_keys("data")
class DataSection(Section):
    """Which rows, and how they are asked and judged."""


@with_keys("study")
class StudySection(Section):
    """How long and how to search."""


TABLES: dict[str, type[Section]] = {"study": StudySection, "model": ModelSection, "data": DataSection}


@with_keys("")
class StudyFile(Section):
    """A whole study file; `space` is a table, or a list of tables (branches)."""

    study: StudySection
    model: ModelSection
    data: DataSection

    @field_validator("space", check_fields=False)
    @classmethod
    def _not_empty(cls, space: dict[str, Any] | list[dict[str, Any]]) -> dict[str, Any] | list[dict[str, Any]]:
        if not space:
            raise ValueError("the space is empty; give at least max_new_tokens and one searched parameter")
        return space


@dataclass(frozen=True, slots=True)
class Changes:
    """What the command line puts in the place of a file's values; None leaves a value as it is."""

    data: str | None = None
    rows: int | None = None
    model: str | None = None
    server: str | None = None
    n_trials: int | None = None
    storage: str | None = None
    name: str | None = None
    samples: int | None = None
    constraints: Mapping[str, str] | None = None

    def apply(self, file: StudyFile) -> StudyFile:
        """Return the file with these values."""
        data = _changed(file.data, path=self.data, rows=self.rows)
        model = self._model(file.model)
        study = _changed(file.study, n_trials=self.n_trials, storage=self.storage, name=self.name, samples=self.samples)
        constraints = {**(file.constraints or {}), **(self.constraints or {})} or None
        changed = {"data": data, "model": model, "study": study, "constraints": constraints}
        found = file.model_copy(update=changed)
        check_constraints(found)
        return found

    def _model(self, section: Any) -> Any:
        """The section with one model: what the command line names takes the place of either key."""
        if self.model is None and self.server is None:
            return section
        _check_one_model(self.model, self.server, "--model {}", "--server {}")
        return type(section).model_validate({**section.model_dump(), "name": self.model, "server": self.server})


def read_study_file(path: str | Path) -> StudyFile:
    """Return what a study file says.

    Raises:
        InputError: The file is not there, is no TOML, or has a key or value that does not belong; names file, line
            and key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"there is no study file {path}; `studies/quickstart.toml` is an example") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{path} cannot be read: {problem}") from None
    return parse_study_file(text, name=str(path))


def parse_study_file(text: str, *, name: str = "study file") -> StudyFile:
    """Return what the text of a study file says; `name` stands in the errors (see `read_study_file`)."""
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{name} is nested too deep to be a study file") from None
    except ValueError as problem:  # a number of thousands of digits is none of TOML's own errors
        raise InputError(f"{name} is no TOML: {problem}") from None
    try:
        file = StudyFile.model_validate(values)
    except ValidationError as problem:
        raise InputError("\n".join(_explain(error, text, name) for error in _of_one_form(problem.errors()))) from None
    with _placed(name, lambda said: place_of_mention(text, said, "data")):
        check_choices(file)
    with _placed(name, lambda said: place_of_mention(text, said, "space")):
        check_space(file)
    with _placed(name, lambda said: place_of_mention(text, said, "baseline")):
        check_baseline(file)
    with _placed(name, lambda said: place_of_mention(text, said, "try_first")):
        check_try_first(file)
    with _placed(name, lambda said: place_of_mention(text, said, "constraints")):
        check_constraints(file)
    with _placed(name, lambda _: place(text, ["study", "objectives"])):
        check_objectives(file)
    with _placed(name, lambda _: place(text, ["data", "metric"])):
        check_metric(file)
    with _placed(name, lambda _: place(text, ["data", "aggregate"])):
        check_aggregate(file)
    return file


@contextmanager
def _placed(name: str, place_of: Callable[[str], str]) -> Iterator[None]:
    """Say the file and the line in front of what is wrong."""
    try:
        yield
    except InputError as problem:
        raise InputError(f"{name}{place_of(str(problem))}: {problem}") from None


def with_defaults(file: StudyFile) -> StudyFile:
    """Return the file with what `search` does by default in the place of what it leaves out."""
    filled = {}
    for table in TABLES:
        section, options = getattr(file, table), every_option()
        left_out = {key: options[name] for key, name in keys_of(table).items() if getattr(section, key) is None}
        filled[table] = _changed(section, **{key: option.effective for key, option in left_out.items()})
    return file.model_copy(update=filled)


def study_file_text(file: StudyFile) -> str:
    """Return the file as TOML; what it leaves out is left out."""
    return tomli_w.dumps(file.model_dump(exclude_none=True))


def check_choices(file: StudyFile) -> TaskChoices:
    """Return what of the task is searched; raises InputError where prompts or messages cannot be told apart."""
    from llmsearch_optuna.task.choices import TaskChoices

    data = file.data.model_dump()
    return TaskChoices.of(data["prompt"], data["system"], data["chat_template_kwargs"])


def check_space(file: StudyFile) -> Any:
    """Return the file's space, ready for `search`; raises InputError where a name or a value is not allowed."""
    from llmsearch_optuna.space.space import Space

    space = Space.from_tables(file.space)
    space.with_choices(check_choices(file))
    return space


def check_baseline(file: StudyFile) -> None:
    """Raise InputError where a name or a value of the baseline is not allowed."""
    from llmsearch_optuna.optimize.baselines import Baselines

    Baselines.of(file.baseline, file.baselines).labelled(check_choices(file))
    _check_values({} if isinstance(file.baseline, str) else file.baseline or {})
    for values in (file.baselines or {}).values():
        _check_values(values)


def check_try_first(file: StudyFile) -> None:
    """Raise InputError where a name or a value of what is to be tried first is not allowed."""
    for values in file.try_first or ():
        _check_values(values)
        check_choices(file).labelled(values)


def check_constraints(file: StudyFile) -> None:
    """Raise InputError where a condition names no metric, or its limit is none."""
    from llmsearch_optuna.optimize.constraints import Constraints

    Constraints.of(file.constraints)


def check_objectives(file: StudyFile) -> None:
    """Raise InputError where an objective is none."""
    from llmsearch_optuna.optimize.objectives import Objectives

    if file.study.objectives is not None:
        Objectives.of(file.study.objectives, "maximize", metric=metric_name(file))


def _check_values(values: Mapping[str, Any]) -> None:
    from llmsearch_optuna.engine.sampling.after_thinking import flattened
    from llmsearch_optuna.engine.sampling.param_specs import check_value

    for name, value in flattened(values).items():
        check_value(name, value)


def check_metric(file: StudyFile) -> None:
    """Raise InputError where there is no such metric, or it has no such options."""
    metric_name(file)


def check_aggregate(file: StudyFile) -> None:
    """Raise InputError where samples cannot be made one score of as the file says."""
    from llmsearch_optuna.metrics.aggregates import Aggregate

    Aggregate.of(file.data.aggregate, scorer=file.data.scorer, pass_score=file.data.pass_score)


def metric_name(file: StudyFile) -> str:
    """Return the metric's name for people.

    Raises:
        InputError: There is none, no such metric, or it has no such options.
    """
    from llmsearch_optuna.metrics.metric import Metric
    from llmsearch_optuna.task.library_task import is_library_task

    if file.data.metric is None:
        if is_library_task(file.data.path):
            return "the task's own"
        raise InputError("data.metric is missing")
    return Metric.of(file.data.metric, options=file.data.metric_options).name


def search_arguments(file: StudyFile) -> dict[str, Any]:
    """Return the keyword arguments of `search` that a study file stands for (the demo's names resolved).

    Raises:
        InputError: The file leaves the data to the command line, and the command line gave none.
    """
    of_task = declared(TaskOptions)
    said = {name: value for name, value in _said(file).items() if name not in of_task and name != "server"}
    given = {"model": _model(file.model), "dataset": _task(file), "space": check_space(file)}
    return {**said, **given, **({} if file.study.pruner is None else {"pruner": _pruner(file.study.pruner)})}


def _said(file: StudyFile) -> dict[str, Any]:
    """What the file says, by the names of the options; what it leaves out is what `search` itself does by default."""
    values = {"": file.model_dump(exclude=set(TABLES))} | {table: getattr(file, table).model_dump() for table in TABLES}
    said = {name: values[table][key] for table in values for key, name in keys_of(table).items()}
    return {name: value for name, value in said.items() if value is not None}


def _pruner(given: str | PrunerSection | None) -> Any:
    if not isinstance(given, PrunerSection):
        return given
    from llmsearch_optuna.optimize.pruner import PairedPruner

    return PairedPruner(**given.model_dump())


def _model(section: ModelSection) -> str:
    if section.server is not None:
        return str(section.server)
    if section.name != DEMO:
        return str(section.name)
    from llmsearch_optuna.demo.model import demo_model_folder

    return str(demo_model_folder())


def _task(file: StudyFile) -> Any:
    from llmsearch_optuna.task.task import Task

    path = file.data.path
    if path is None:
        raise InputError("the study file leaves the data to you: give --data PATH, or data.path in the file")
    return Task.of(DEMO_DIALOGUES if path == DEMO else path, **part(TaskOptions, _said(file)))


def _changed(section: Any, **values: Any) -> Any:
    given = {name: value for name, value in values.items() if value is not None}
    # Validated again, so that a value from the command line is held to the same rules.
    if not given:
        return section
    try:
        return type(section).model_validate({**section.model_dump(), **given})
    except ValidationError as problem:
        said = [
            f"{error['loc'][0]} = {short(redacted_values(error['input']))}: {error['msg']}"
            for error in problem.errors()
        ]
        raise InputError("; ".join(dict.fromkeys(said))) from None


def _of_one_form(errors: Sequence[Any]) -> list[Any]:
    """Without what is said only because a value might have been a table, or a table a value.

    Of a value that may have several forms the deepest errors count, each once.
    """
    kept = [
        error
        for error in errors
        if not (error["type"] == "literal_error" and isinstance(error["input"], dict | int | float))
        and not (error["type"] == "model_type" and isinstance(error["input"], str))
    ]
    depth: dict[Any, int] = {}
    for error in kept:
        depth[error["loc"][:2]] = max(depth.get(error["loc"][:2], 0), len(_keys(error)))
    found = {(*_keys(e), e["msg"]): e for e in reversed(kept) if len(_keys(e)) == depth[e["loc"][:2]]}
    return list(reversed(found.values()))


def _keys(error: Mapping[str, Any]) -> list[Any]:
    """Where an error is in the file, without the forms that a value may have."""
    return [key for key in error["loc"] if not (isinstance(key, str) and ("[" in key or key in _UNION_MEMBERS))]


def _explain(error: Mapping[str, Any], text: str, name: str) -> str:
    keys = _keys(error)
    where = f"{name}{place(text, keys)}: {'.'.join(str(key) for key in keys) or 'the file'}"
    if error["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        near = difflib.get_close_matches(str(keys[-1]), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return f"{where} is not a key here{hint} The keys are {', '.join(known)}."
    if error["type"] == "missing":
        return f"{where} is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where} = {short(redacted_values(error['input']))}: {message[:1].lower()}{message[1:]}"


_UNION_MEMBERS = frozenset(
    {"str", "int", "float", "bool", "list", "dict", "PrunerSection", "Message", "constrained-int", "constrained-float"}
)


def _known_keys(path: Sequence[Any]) -> list[str]:
    model: Any = StudyFile
    for key in path:
        model = model.model_fields[key].annotation if key in getattr(model, "model_fields", {}) else None
    return list(getattr(model, "model_fields", {}))

"""A study as a TOML file: read, checked, and turned into the arguments of `search`.

Every error names the file, the line and the key. Paths in a file are taken from the folder where the command runs,
as on the command line. Nothing is loaded or decoded here.
"""

from __future__ import annotations

import difflib
import inspect
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, field_validator

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.redaction import redacted
from llmsearch_optuna.study_file.locations import place, place_of_mention

DEMO = "demo"
"""As a model's or dataset's name: the bundled chat model, the bundled dialogues."""

DEMO_STUDY = Path(__file__).parent.parent / "data" / "quickstart.toml"
"""The study that ``llmsearch-optuna demo`` runs."""

DEMO_DIALOGUES = Path(__file__).parent.parent / "data" / "dialogues.jsonl"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(_Section):
    """Which model decodes."""

    name: str = Field(description='Folder or hub id of a model; "demo" is the bundled chat model.')
    tokenizer: str | None = Field(None, description="Folder or hub id of a tokenizer that is not the model's own.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    dtype: str | None = Field(None, description='"float32", "bfloat16" …; the default is what the model was saved in.')
    adapter: str | None = Field(None, description="Folder or hub id of a PEFT adapter.")
    gguf_file: str | None = Field(None, description="Which .gguf file of a hub repository.")
    trust_remote_code: bool | None = Field(None, description="Run code that comes with the model.")
    batch_size: PositiveInt | Literal["auto"] = Field("auto", description='Rows in one pass; "auto" finds what fits.')
    cache_budget: NonNegativeInt | Literal["auto"] = Field(
        "auto", description="Bytes for what earlier trials computed."
    )
    device: str | None = Field(None, description='"cuda:0", "cpu" …; the default is the best there is.')
    device_map: str | dict[str, Any] | None = Field(None, description='How to spread it over devices, such as "auto".')
    tokenizer_decode_args: dict[str, Any] | None = Field(None, description="What tokenizer.decode is called with.")


class Message(_Section):
    """One chat message; its content is a template."""

    role: Literal["system", "user", "assistant"]
    content: str


class DataSection(_Section):
    """Which rows, and how they are asked and judged."""

    path: str | None = Field(None, description='File, folder or hub id; "demo" is the bundled dialogues.')
    split: str | None = Field(None, description="Split of a dataset that has several.")
    subset: str | None = Field(None, description="Configuration of a hub dataset that has several.")
    rows: int | None = Field(None, ge=1, description="Use only the first so many rows.")
    prompt: str | list[Message] | None = Field(
        None, description='Template, such as "Summarize: {dialogue}", or chat messages: {role = …, content = …}.'
    )
    system: str | None = Field(None, description="System message of the chat template.")
    chat_template: bool | dict[str, Any] = Field(
        True, description="Wrap the prompt in the tokenizer's chat template; a table holds variables for it."
    )
    max_prompt_tokens: int | float | None = Field(
        None, gt=0, description="Cut the longest column of longer prompts; below 1 it is a quantile of their lengths."
    )
    tokenizer_encode_args: dict[str, Any] | None = Field(None, description="What the tokenizer is called with.")
    reference: str | list[str] | None = Field(None, description="Column or columns with the right answer.")
    metric: str = Field(description="Built-in metric: rouge1, rouge2, rougeL, bleu, chrf, exact_match, …")
    direction: Literal["maximize", "minimize"] = Field("maximize", description="Whether a higher score is better.")


class PrunerSection(_Section):
    """The paired pruner with other settings; see PairedPruner."""

    risk: float = Field(0.02, gt=0, lt=1, description="Chance of dropping what would have been the winner.")
    min_rows: int = Field(8, ge=4, description="Rows of the first look; nothing is pruned before.")
    step: PositiveInt = Field(8, description="Rows between two looks.")


class StudySection(_Section):
    """How long and how to search."""

    name: str = Field(min_length=1, description="Names the study in its database.")
    n_trials: int | None = Field(None, ge=1, description="The study's total; the default is 40, or a whole grid.")
    timeout: float | None = Field(None, gt=0, description="Seconds after which no new trial begins.")
    max_tokens: int | None = Field(None, ge=1, description="Generated tokens of all trials; then the verdict follows.")
    storage: str | None = Field(None, description="Database URL; the default is sqlite:///studies/<name>.db.")
    objectives: list[Literal["score", "tokens"]] | None = Field(
        None, description='["score"], or ["score", "tokens"] for the front of both; the latter prunes nothing.'
    )
    sampler: Literal["tpe", "random", "grid"] | None = Field(None, description="Who suggests the next trial.")
    pruner: Literal["paired", "none"] | PrunerSection | None = Field(
        None, description='Who stops hopeless trials; {risk = 0.05} is "paired" with another chance of losing the best.'
    )
    holdout: float | None = Field(None, ge=0, lt=1, description="Share of the rows that no trial sees.")
    folds: int | None = Field(None, ge=2, description="Show the score of each of so many parts of the search rows.")
    seed: int | None = Field(None, description="Of the split, the order of the rows, and all suggestions.")
    replicates: int | None = Field(None, ge=1, description="How often a row is decoded in a trial that samples.")
    holdout_replicates: int | None = Field(None, ge=1, description="The same on the holdout.")
    margin: float | None = Field(None, ge=0, description="A loss up to this is accepted.")
    trials_in_flight: int | None = Field(None, ge=1, description="Trials decoded together.")


class StudyFile(_Section):
    """A whole study file; `space` is a table, or a list of tables (branches)."""

    study: StudySection
    model: ModelSection
    data: DataSection
    space: dict[str, Any] | list[dict[str, Any]] = Field(
        description="What to search: a plain value is fixed, {low = …, high = …} or {choices = […]} is searched."
    )
    baseline: dict[str, Any] | None = Field(None, description="Parameters in use today.")

    @field_validator("space")
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
    n_trials: int | None = None
    storage: str | None = None
    name: str | None = None

    def apply(self, file: StudyFile) -> StudyFile:
        """Return the file with these values."""
        data = _changed(file.data, path=self.data, rows=self.rows)
        model = _changed(file.model, name=self.model)
        study = _changed(file.study, n_trials=self.n_trials, storage=self.storage, name=self.name)
        return file.model_copy(update={"data": data, "model": model, "study": study})


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
    except tomllib.TOMLDecodeError as problem:
        raise InputError(f"{name} is no TOML: {problem}") from None
    try:
        file = StudyFile.model_validate(values)
    except ValidationError as problem:
        raise InputError("\n".join(_explain(error, text, name) for error in _of_one_form(problem.errors()))) from None
    with _placed(name, lambda said: place_of_mention(text, said, "space")):
        check_space(file)
    with _placed(name, lambda said: place_of_mention(text, said, "baseline")):
        check_baseline(file)
    with _placed(name, lambda _: place(text, ["data", "metric"])):
        check_metric(file)
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
    from llmsearch_optuna.api import search

    known = inspect.signature(search).parameters
    missing = [name for name, value in file.study if value is None and name in known]
    defaults = {name: known[name].default for name in missing}
    # TOML has lists where Python has tuples.
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    return file.model_copy(update={"study": _changed(file.study, **values)})


def study_file_text(file: StudyFile) -> str:
    """Return the file as TOML; what it leaves out is left out."""
    return tomli_w.dumps(file.model_dump(exclude_none=True))


def check_space(file: StudyFile) -> Any:
    """Return the file's space, ready for `search`; raises InputError where a name or a value is not allowed."""
    from llmsearch_optuna.space.space import Space

    return Space.from_tables(file.space)


def check_baseline(file: StudyFile) -> None:
    """Raise InputError where a name or a value of the baseline is not allowed."""
    from llmsearch_optuna.engine.sampling.param_specs import check_value

    for name, value in (file.baseline or {}).items():
        check_value(name, value)


def check_metric(file: StudyFile) -> None:
    """Raise InputError where there is no such metric."""
    from llmsearch_optuna.metrics.metric import Metric

    Metric.of(file.data.metric)


def search_arguments(file: StudyFile) -> dict[str, Any]:
    """Return the keyword arguments of `search` that a study file stands for (the demo's names resolved).

    Raises:
        InputError: The file leaves the data to the command line, and the command line gave none.
    """
    arguments: dict[str, Any] = {
        "model": _model(file.model),
        "dataset": _task(file.data),
        "space": check_space(file),
        "baseline": file.baseline,
        "study_name": file.study.name,
        **file.study.model_dump(exclude={"name", "pruner"}),
        "pruner": _pruner(file.study.pruner),
        **file.model.model_dump(exclude={"name"}),
    }
    # What the file leaves out is what `search` itself does by default.
    return {name: value for name, value in arguments.items() if value is not None}


def _pruner(given: str | PrunerSection | None) -> Any:
    if not isinstance(given, PrunerSection):
        return given
    from llmsearch_optuna.optimize.pruner import PairedPruner

    return PairedPruner(**given.model_dump())


def _model(section: ModelSection) -> str:
    if section.name != DEMO:
        return section.name
    from llmsearch_optuna.demo.model import demo_model_folder

    return str(demo_model_folder())


def _task(section: DataSection) -> Any:
    from llmsearch_optuna.task.task import Task

    if section.path is None:
        raise InputError("the study file leaves the data to you: give --data PATH, or data.path in the file")
    return Task(
        DEMO_DIALOGUES if section.path == DEMO else section.path,
        **section.model_dump(exclude={"path", "rows"}),
        limit=section.rows,
    )


def _changed(section: Any, **values: Any) -> Any:
    given = {name: value for name, value in values.items() if value is not None}
    # Validated again, so that a value from the command line is held to the same rules.
    return type(section).model_validate({**section.model_dump(), **given}) if given else section


def _of_one_form(errors: Sequence[Any]) -> list[Any]:
    """Without what is said only because a value might have been a table, or a table a value."""
    return [
        error
        for error in errors
        if not (error["type"] == "literal_error" and isinstance(error["input"], dict))
        and not (error["type"] == "model_type" and isinstance(error["input"], str))
    ]


def _explain(error: Mapping[str, Any], text: str, name: str) -> str:
    keys = [key for key in error["loc"] if not (isinstance(key, str) and ("[" in key or key in _UNION_MEMBERS))]
    where = f"{name}{place(text, keys)}: {'.'.join(str(key) for key in keys) or 'the file'}"
    if error["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        near = difflib.get_close_matches(str(keys[-1]), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return f"{where} is not a key here{hint} The keys are {', '.join(known)}."
    if error["type"] == "missing":
        return f"{where} is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where} = {redacted(repr(error['input']))}: {message[:1].lower()}{message[1:]}"


_UNION_MEMBERS = frozenset({"str", "int", "float", "bool", "list", "dict", "PrunerSection"})


def _known_keys(path: Sequence[Any]) -> list[str]:
    model: Any = StudyFile
    for key in path:
        model = model.model_fields[key].annotation if key in getattr(model, "model_fields", {}) else None
    return list(getattr(model, "model_fields", {}))

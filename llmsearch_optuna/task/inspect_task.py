"""Tasks of Inspect: its samples, the prompts that its solvers make, and its scorers.

``file.py@task`` names a task as ``inspect eval`` does; reading one runs the file's code. A task's solvers are run with
a ``generate`` of ours: once to see what they ask the model, and for each answer to let them and the scorer make of it
what they do. So whatever asks the model once is possible, and whatever asks it more often, or calls tools, is refused.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import importlib.util
import inspect
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from llmsearch_optuna.errors import InputError, describe_error, short
from llmsearch_optuna.metrics.checks import is_number
from llmsearch_optuna.metrics.library_scores import is_mean, library_metric
from llmsearch_optuna.task.content_hash import content_hash
from llmsearch_optuna.task.library_task import LibraryTask, checked_generation

logger = logging.getLogger("llmsearch_optuna.task.inspect_task")

T = TypeVar("T")

MODEL = "none/none"
"""What solvers and scorers are told the model is called."""

_NAMES = {
    "max_tokens": "max_new_tokens",
    "stop_seqs": "stop_strings",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "generation_seed",
}
"""Inspect's generation options under our names."""

_OF_THE_REQUEST = ("max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections")
"""How a server is asked, which changes no text."""


def read_task(address: str, *, limit: int | None, system: str | None, wraps: bool | None) -> LibraryTask:
    """Return a task of Inspect that generates text.

    Args:
        address: ``file.py@task``; the task's name may be left out where the file has one task.
        limit: Only the first so many samples.
        system: A system message before the task's own messages.
        wraps: Whether prompts are messages for the model's chat template, as in Inspect and by default.

    Raises:
        InputError: There is no such task, it asks the model more than once, or its score is no mean over samples.
    """
    _require_library()
    path, _, name = address.partition("@")
    module = _module(Path(path).expanduser())
    name, task = _task(module, name.strip(), path)
    where = f"inspect:{path}@{name}"
    _refuse_other_kinds(task, where)
    asked = Asked(task, where)
    samples = list(task.dataset)[:limit]
    rows = []
    options: Mapping[str, Any] | None = None
    for number, sample in enumerate(samples):
        _refuse_sample(sample, number, where)
        request = _run(asked.request(sample))
        if options is not None and options != request.options:
            raise InputError(f"{where}: samples are decoded with different options, which is not done here")
        options = request.options
        messages = ([{"role": "system", "content": system}] if system is not None else []) + list(request.messages)
        rows.append(
            {
                "doc": sample.model_dump(),
                "prompt": messages if wraps is not False else _as_text(messages, where),
                "reference": sample.target,
            }
        )
    if not rows:
        raise InputError(f"{where} has no samples")
    described = {
        "inspect": name,
        "version": str(task.version),
        "scorer": _scorer_name(task),
        "file": content_hash([inspect.getsource(module)]),
    }
    return LibraryTask(
        name=name,
        rows=tuple(rows),
        metric=library_metric(_scorer_name(task), functools.partial(_score, asked), described),
        direction="maximize",
        generation=_generation(options or {}, where),
        wraps=wraps is not False,
    )


def _require_library() -> None:
    try:
        import inspect_ai  # noqa: F401
    except ImportError as problem:
        raise InputError(
            f"reading tasks of Inspect needs it: pip install 'llmsearch-optuna[inspect]' ({problem})"
        ) from None


def _module(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"inspect:{path}: there is no Python file {path} (looked for from {Path.cwd()})")
    spec = importlib.util.spec_from_file_location(f"inspect_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"inspect:{path} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        raise InputError(f"inspect:{path} cannot be run: {describe_error(problem)}") from problem
    return module


def _task(module: ModuleType, name: str, path: str) -> tuple[str, Any]:
    """The task of this name, made without arguments; the only one of the file where no name is given."""
    from inspect_ai import Task

    own = {n: f for n, f in vars(module).items() if inspect.isfunction(f) and _is_of(f, module) and n[0] != "_"}
    if not name:
        makers = [n for n, f in own.items() if inspect.signature(f).return_annotation in (Task, "Task")]
        if len(makers) != 1:
            raise InputError(
                f"inspect:{path} has no single task: give one, as in inspect:{path}@{next(iter(own), 'task')}"
            )
        name = makers[0]
    if name not in own:
        raise InputError(f"inspect:{path} has no task {name!r}; it has {', '.join(own) or 'none'}")
    try:
        task = own[name]()
    except Exception as problem:
        raise InputError(f"the task {name!r} of {path} cannot be made: {describe_error(problem)}") from problem
    if not isinstance(task, Task):
        raise InputError(f"{name!r} of {path} makes no task of Inspect, but {short(task, 80)}")
    return name, task


def _is_of(function: Any, module: ModuleType) -> bool:
    return bool(getattr(inspect.unwrap(function), "__module__", None) == module.__name__)


def _refuse_other_kinds(task: Any, where: str) -> None:
    if task.dataset is None:
        raise InputError(f"{where} makes its samples while it runs, which is not done here")
    if task.sandbox is not None or task.setup is not None:
        raise InputError(f"{where} runs in a sandbox or sets something up, which is not done here")
    if (task.epochs or 1) > 1:
        raise InputError(f"{where} decodes each sample {task.epochs} times (epochs); here a row has one answer")
    if not task.scorer or len(task.scorer) != 1:
        raise InputError(f"{where} has {len(task.scorer or ())} scorers; give it one")
    if not any(map(_is_mean_of_scores, _metrics(task.scorer[0]))):
        raise InputError(
            f"{where}: none of its metrics is the mean over the samples' scores (accuracy, mean), and trials are "
            "compared row by row; give metric= one of ours"
        )


def _metrics(scorer: Any) -> list[Any]:
    from inspect_ai.util import registry_info

    found = registry_info(scorer).metadata.get("metrics", [])
    return [metric for metric in found if callable(metric)] if isinstance(found, list) else []


def _is_mean_of_scores(metric: Any) -> bool:
    from inspect_ai.scorer import SampleScore, Score

    return is_mean(lambda values: metric([SampleScore(score=Score(value=value)) for value in values]))


def _refuse_sample(sample: Any, number: int, where: str) -> None:
    for name in ("sandbox", "files", "setup"):
        if getattr(sample, name, None):
            raise InputError(f"{where}, sample {number} needs {name}, which is not there here")


@dataclass(frozen=True)
class ModelRequest:
    """What a task's solvers ask the model.

    Attributes:
        messages: As a chat template takes them.
        options: Inspect's generation options that are set.
    """

    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]


class _SeenError(Exception):
    """Ends the solvers once it is known what they ask."""


@dataclass(frozen=True)
class Asked:
    """A task's solvers and its scorer, run with a model that says what it is told to.

    Attributes:
        task: The task.
        where: Its address, for messages.
    """

    task: Any
    where: str

    async def request(self, sample: Any) -> ModelRequest:
        """Return what the solvers ask the model first."""
        seen: list[ModelRequest] = []

        async def generate(state: Any, tool_calls: str = "loop", **options: Any) -> Any:
            seen.append(self._request(state, options))
            raise _SeenError

        try:
            await self.task.solver(_state(sample), generate)
        except _SeenError:
            return seen[0]
        except Exception as problem:
            raise InputError(f"{self.where}: its solvers fail: {describe_error(problem)}") from problem
        raise InputError(f"{self.where} does not ask the model anything by generate()")

    async def score(self, sample: Any, expected: Sequence[Mapping[str, Any]], answer: str) -> Any:
        """Return the scorer's score of an answer.

        Args:
            sample: What is solved.
            expected: What the model was asked.
            answer: What it said.
        """
        from inspect_ai.model import ModelOutput
        from inspect_ai.scorer import Target

        count = 0

        async def generate(state: Any, tool_calls: str = "loop", **options: Any) -> Any:
            nonlocal count
            count += 1
            if count > 1:
                raise InputError(f"{self.where} asks the model more than once for a sample, which is not done here")
            if list(self._request(state, options).messages) != list(expected):
                raise InputError(f"{self.where} asks another question each time it is run; take the chance out of it")
            state.output = ModelOutput.from_content(MODEL, answer)
            state.messages.append(state.output.message)
            return state

        state = await self.task.solver(_state(sample), generate)
        return await self.task.scorer[0](state, Target(sample.target))

    def _request(self, state: Any, options: Mapping[str, Any]) -> ModelRequest:
        if state.tools:
            raise InputError(f"{self.where} gives the model tools, which is not done here")
        set_here = {name: value for name, value in options.items() if value is not None}
        config = {**self.task.config.model_dump(exclude_none=True), **set_here}
        system = config.pop("system_message", None)
        messages = [_message(message, self.where) for message in state.messages]
        first = [{"role": "system", "content": system}] if system else []
        return ModelRequest([*first, *messages], config)


def _state(sample: Any) -> Any:
    """Where Inspect's own runner begins: the sample's messages, and nothing said yet."""
    from inspect_ai.model import ChatMessageUser, ModelName
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState

    fresh = sample.model_copy(deep=True)
    is_text = isinstance(fresh.input, str)
    return TaskState(
        model=ModelName(MODEL),
        sample_id=fresh.id if fresh.id is not None else 0,
        epoch=1,
        input=fresh.input,
        messages=[ChatMessageUser(content=fresh.input, source="input")] if is_text else list(fresh.input),
        target=Target(fresh.target),
        choices=fresh.choices,
        metadata=dict(fresh.metadata or {}),
    )


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message.content, str):
        raise InputError(f"{where} shows the model more than text, which is not done here")
    return {"role": message.role, "content": message.content}


def _as_text(messages: Sequence[Mapping[str, Any]], where: str) -> str:
    if len(messages) != 1:
        raise InputError(
            f"{where} asks with {len(messages)} messages, which take a chat template; leave chat_template= out"
        )
    return str(messages[0]["content"])


def _generation(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    unknown = [name for name in options if name not in (*_NAMES, *_OF_THE_REQUEST)]
    if unknown:
        raise InputError(f"{where} is decoded with {', '.join(unknown)}, which is not possible here")
    found = {_NAMES[name]: value for name, value in options.items() if name in _NAMES}
    if (temperature := found.get("temperature")) is not None:
        found["do_sample"] = temperature > 0
        if temperature == 0:
            del found["temperature"]
    return checked_generation(found, where)


def _scorer_name(task: Any) -> str:
    from inspect_ai.util import registry_info

    return str(registry_info(task.scorer[0]).name).rpartition("/")[2]


def _score(asked: Asked, row: Mapping[str, Any], answer: str) -> float:
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import value_to_float

    messages = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
    sample = Sample.model_validate(row["doc"])
    score = _run(asked.score(sample, messages, answer))
    if not isinstance(score.value, str | bool | int | float):
        raise InputError(
            f"{asked.where}: its scorer gives {short(score.value)} for a sample, which is no single number"
        )
    value = value_to_float()(score.value)
    if not is_number(value):
        raise InputError(f"{asked.where}: its scorer gives {short(score.value)} for a sample, which is no number")
    return float(value)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end, in a thread of its own: the caller may be in an event loop, as notebooks are."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()

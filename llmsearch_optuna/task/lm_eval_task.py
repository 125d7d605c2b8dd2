"""Tasks of lm-evaluation-harness: its documents, few-shot prompts, stop strings, filters and metrics by row.

Names are those that ``lm_eval --tasks`` takes, or paths of YAML files; ``#`` chooses filter and metric. All of it is
lm-eval's own work, done as `lm_eval.simple_evaluate` does it; only the decoding is not.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsearch_optuna.errors import InputError, describe_error, short
from llmsearch_optuna.metrics.checks import is_number
from llmsearch_optuna.metrics.library_scores import is_mean, library_metric
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.task.content_hash import content_hash
from llmsearch_optuna.task.library_task import LibraryTask, checked_generation

logger = logging.getLogger("llmsearch_optuna.task.lm_eval_task")

GENERATES = "generate_until"

_SAYS_WHERE = ("dataset_path", "dataset_name", "dataset_kwargs")
"""Settings that say where the documents are, which count by themselves."""

_ONE_MISSING = "reading tasks of lm-evaluation-harness needs it: pip install 'llmsearch-optuna[lm-eval]'"


def read_task(address: str, *, limit: int | None, system: str | None, wraps: bool | None) -> LibraryTask:
    """Return a generation task of lm-eval.

    Args:
        address: A name or the path of a YAML file, and behind ``#`` a filter, a metric, or both as lm-eval's tables
            have them (``exact_match,strict-match``). The first of each by default.
        limit: Only the first so many documents.
        system: lm-eval's ``--system_instruction``.
        wraps: lm-eval's ``--apply_chat_template``, few-shot examples as turns; off by default, as there.

    Raises:
        InputError: There is no such task, it is a group, does not generate text, or its metric is no mean over rows.
    """
    _require_library()
    spec, _, selected = address.partition("#")
    spec = spec.strip()
    task = _loaded(spec)
    _refuse_other_kinds(task, spec)
    choice = _chosen(task, [part.strip() for part in selected.split(",") if part.strip()], spec)
    instances = _instances(task, spec, limit=limit, system=system, wraps=bool(wraps))
    rows = tuple(
        {"doc": instance.doc, "prompt": _content(instance.arguments[0]), "reference": task.doc_to_target(instance.doc)}
        for instance in instances
    )
    if choice.others:
        logger.warning(
            "the task %s has several scores; taken is %s. Others: %s, as in 'lm_eval:%s#%s'",
            *(task.task_name, choice.key, ", ".join(choice.others), spec, choice.others[0]),
        )
    return LibraryTask(
        name=str(task.task_name),
        rows=rows,
        metric=_metric(task, choice),
        direction="maximize" if task.higher_is_better().get(choice.metric, True) else "minimize",
        generation=_generation(task.config.generation_kwargs or {}, spec),
        wraps=bool(wraps),
    )


def _require_library() -> None:
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as problem:
        raise InputError(f"{_ONE_MISSING} ({problem})") from None


@functools.cache
def _all_tasks() -> Any:
    """What finds lm-eval's own tasks by their names; reads thousands of files when it is made."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _loaded(spec: str) -> Any:
    from lm_eval.tasks import TaskManager

    path = Path(spec).expanduser()
    is_file = path.suffix in (".yaml", ".yml")
    if is_file and not path.is_file():
        raise InputError(f"lm_eval:{spec}: there is no file {path} (looked for from {Path.cwd()})")
    manager = TaskManager(include_defaults=False) if is_file else _all_tasks()
    _refuse_several(spec, manager, path if is_file else None)
    try:
        (task,) = manager.load([str(path) if is_file else spec])["tasks"].values()
    except Exception as problem:
        raise InputError(
            f"the lm-eval task {spec!r} cannot be loaded: {describe_error(problem)}\n"
            "Its data may have to be fetched from the Hugging Face hub; without a network give a YAML file whose "
            "dataset_path is json and whose data_files are local."
        ) from problem
    return task


def _refuse_several(spec: str, manager: Any, path: Path | None) -> None:
    """Raise InputError for what is no single task: a group, a tag, or nothing at all."""
    if path is not None:
        if "group" in _keys_of_file(path):
            raise InputError(f"lm_eval:{spec} is a group of tasks; give one of its tasks")
        return
    for kind, names in (("group", manager.all_groups), ("tag", manager.all_tags)):
        if spec in names:
            members = [name for name in manager.all_subtasks if spec in name][:4]
            shown = f", such as {', '.join(members)}" if members else ""
            raise InputError(f"lm_eval:{spec} is a {kind} of several tasks; give one of its tasks{shown}")
    if spec not in manager.all_subtasks:
        near = difflib.get_close_matches(spec, manager.all_subtasks, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"lm-eval has no task {spec!r}{hint}; a file is given by its path, ending in .yaml")


def _keys_of_file(path: Path) -> list[str]:
    import yaml

    try:  # this loader makes texts of everything, lm-eval's !function too
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise InputError(f"lm_eval:{path} cannot be read: {problem}") from None
    return list(found) if isinstance(found, Mapping) else []


def _refuse_other_kinds(task: Any, spec: str) -> None:
    kind = task.OUTPUT_TYPE
    if kind != GENERATES:
        raise InputError(
            f"lm_eval:{spec} compares likelihoods ({kind}); there is nothing to generate, so no generation parameter "
            "changes its score. Give a task whose output_type is generate_until"
        )
    for name, what in (("UNSAFE_CODE", "runs code that the model wrote"), ("MULTIMODAL", "shows more than text")):
        if getattr(task, name, False):
            raise InputError(f"lm_eval:{spec} {what}, which is not done here")
    if (task.get_config("repeats") or 1) > 1:
        raise InputError(
            f"lm_eval:{spec} asks {task.get_config('repeats')} times for each row (repeats) and lets its filters "
            "choose; here a row has one answer. Set repeats: 1 in a YAML file that includes it"
        )


@dataclass(frozen=True)
class Choice:
    """Which of a task's scores counts.

    Attributes:
        metric: The metric's name.
        filter: The filter's name.
        steps: The filter's steps: function and its arguments.
        others: The task's other scores, as lm-eval's tables call them.
    """

    metric: str
    filter: str
    steps: Sequence[Sequence[Any]]
    others: tuple[str, ...]

    @property
    def key(self) -> str:
        """What lm-eval's tables call the score."""
        return f"{self.metric},{self.filter}"


def _filters(task: Any) -> dict[str, list[list[Any]]]:
    listed = task.config.filter_list
    if listed is None:
        return {"none": [["take_first", None]]}
    return {
        one["name"]: [[step["function"], {k: v for k, v in step.items() if k != "function"}] for step in one["filter"]]
        for one in listed
    }


def _chosen(task: Any, selected: Sequence[str], spec: str) -> Choice:
    filters, metrics = _filters(task), list(task.aggregation())
    if not metrics:
        raise InputError(f"lm_eval:{spec} has no metric")
    metric, name = metrics[0], next(iter(filters))
    for part in selected:
        if part in filters:
            name = part
        elif part in metrics:
            metric = part
        else:
            raise InputError(
                f"lm_eval:{spec}#{','.join(selected)}: {part!r} is neither a filter ({', '.join(filters)}) nor a "
                f"metric ({', '.join(metrics)}) of this task"
            )
    usable = [known for known in metrics if is_mean(task.aggregation()[known])]
    if metric not in usable:
        other = f"choose another one: {', '.join(f'#{known}' for known in usable)}" if usable else "it has no other"
        raise InputError(
            f"lm_eval:{spec}: the metric {metric!r} is no mean over the rows' scores, and trials are compared row by "
            f"row; {other}, or give metric= one of ours, such as sentence_bleu"
        )
    others = tuple(f"{m},{f}" for m in usable for f in filters if (m, f) != (metric, name))
    return Choice(metric, name, filters[name], others if not selected else ())


def _instances(task: Any, spec: str, *, limit: int | None, system: str | None, wraps: bool) -> list[Any]:
    """lm-eval's requests, one a document; where chat messages are wanted, these are kept as they are."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    try:
        with _without_progress_bar():
            task.build_all_requests(
                limit=limit,
                system_instruction=system,
                apply_chat_template=wraps,
                fewshot_as_multiturn=wraps,
                chat_template=_kept_messages if wraps else None,
            )
    except Exception as problem:
        raise InputError(f"lm-eval cannot make the prompts of {spec!r}: {describe_error(problem)}") from problem
    instances = list(task.instances)
    documents = {instance.doc_id for instance in instances}
    if len(documents) != len(instances):
        raise InputError(f"lm_eval:{spec} asks several questions for one document, which is not done here")
    return instances


def _kept_messages(messages: Sequence[Mapping[str, Any]], **_: Any) -> Any:
    """Stands in the place of a tokenizer's chat template, which is applied when the model is known."""
    return [dict(message) for message in messages]


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _content(context: Any) -> Any:
    if not isinstance(context, str | list):
        raise InputError(f"lm-eval made a prompt that is no text: {short(context)}")
    return context


def _generation(kwargs: Mapping[str, Any], spec: str) -> dict[str, Any]:
    """lm-eval's arguments under Hugging Face's names, read as its own Hugging Face model reads them."""
    from lm_eval.models.utils import normalize_gen_kwargs

    known = dict(normalize_gen_kwargs(dict(kwargs)))
    stops = known.pop("until", None) or []
    found = {
        "max_new_tokens": known.pop("max_gen_toks"),
        "stop_strings": [text for text in ([stops] if isinstance(stops, str) else stops) if text] or None,
        **known,
    }
    if not found.get("do_sample"):
        found = {name: value for name, value in found.items() if name != "temperature"}
    return checked_generation({n: v for n, v in found.items() if v is not None}, f"lm_eval:{spec}")


def _metric(task: Any, choice: Choice) -> Metric:
    has_own = callable(task.config.process_results)
    return library_metric(
        choice.metric if choice.filter == "none" else choice.key,
        functools.partial(_score, task, _filtering(task, choice), choice.metric),
        {
            "lm_eval": str(task.task_name),
            "version": str(task.VERSION),
            "metric": choice.metric,
            "filter": choice.filter,
            "config": content_hash([{k: v for k, v in task.dump_config().items() if k not in _SAYS_WHERE}]),
        },
        bounds=(0.0, 1.0) if choice.metric == "exact_match" and not has_own else None,
    )


def _filtering(task: Any, choice: Choice) -> Callable[[Mapping[str, Any], str], Any]:
    """What the chosen filter makes of an answer to a document."""
    from lm_eval.api.instance import Instance
    from lm_eval.filters import build_filter_ensemble

    ensemble = build_filter_ensemble(choice.filter, choice.steps)

    def filtered(doc: Mapping[str, Any], answer: str) -> Any:
        instance = Instance(
            request_type=GENERATES, doc=doc, arguments=("", {}), idx=0, metadata=(task.task_name, 0, 1), resps=[answer]
        )
        ensemble.apply([instance])
        return instance.filtered_resps[choice.filter]

    return filtered


def _score(
    task: Any, filtered: Callable[[Mapping[str, Any], str], Any], metric: str, row: Mapping[str, Any], answer: str
) -> float:
    results = task.process_results(row["doc"], [filtered(row["doc"], answer)])
    if metric not in results:
        raise InputError(f"the task {task.task_name} gives no {metric!r} for a row, but {', '.join(results)}")
    if not is_number(results[metric]):
        raise InputError(
            f"the task {task.task_name} gives {short(results[metric])} as {metric!r} of a row, which is no number: "
            "it scores all rows at once, and trials are compared row by row"
        )
    return float(results[metric])

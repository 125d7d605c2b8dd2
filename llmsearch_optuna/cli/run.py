"""`init`, `demo` and `run`: write a study file, search, and print what came out."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmsearch_optuna.cli import arguments
from llmsearch_optuna.cli.terminal import say
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.options import every_option
from llmsearch_optuna.redaction import redacted_values
from llmsearch_optuna.study_file.arguments import search_arguments
from llmsearch_optuna.study_file.changes import Changes
from llmsearch_optuna.study_file.model import DEMO_STUDY, study_file_text
from llmsearch_optuna.study_file.parse import parse_study_file

if TYPE_CHECKING:
    from llmsearch_optuna.progress import Callback
    from llmsearch_optuna.search_result import SearchResult
    from llmsearch_optuna.study_file.model import StudyFile

Trials = Annotated[int | None, arguments.flag("--n-trials", "n_trials")]
Storage = Annotated[str | None, arguments.flag("--storage", "storage")]
Name = Annotated[str | None, arguments.flag("--name", "study_name")]
Samples = Annotated[
    str | None,
    typer.Option(
        "--samples", metavar="N[,N…]", help=every_option()["samples"].help.replace("in a list", "with commas")
    ),
]
Constraint = Annotated[
    list[str] | None,
    typer.Option(
        "--constraint",
        metavar="'NAME >= X'",
        help="What the winner has to keep, such as 'terminates >= 0.95' or 'tokens <= 60'; may be given several times.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what the study would be and take; decodes a few rows.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Workers = Annotated[
    str,
    typer.Option(
        "--workers",
        metavar="N|auto",
        help="Processes that work on the study together, one GPU each; auto is as many as there are GPUs.",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Place the workers on a Ray cluster that runs: auto or host:port from one of its machines, "
        "ray://host:port from elsewhere. Every node has this package installed, sees the current folder "
        "under the same path, and reaches the study's PostgreSQL server.",
    ),
]
ReportPath = Annotated[
    Path | None, typer.Option("--report", help="Where the HTML report goes. Default: beside the database.")
]


def init(
    path: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The file to write.")] = Path("study.toml"),
    schema: Annotated[
        bool, typer.Option("--schema", help="Only print the JSON schema of study files; write nothing.")
    ] = False,
) -> None:
    """Write a study file to begin with, every key explained, and its schema for editors beside it."""
    from llmsearch_optuna.errors import InputError
    from llmsearch_optuna.study_file.schema import PUBLISHED, SCHEMA_NAME
    from llmsearch_optuna.study_file.template import write_new_study_file

    text = PUBLISHED.read_text(encoding="utf-8")
    if schema:
        typer.echo(text, nl=False)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_new_study_file(path)
        path.with_name(SCHEMA_NAME).write_text(text, encoding="utf-8")
    except FileExistsError:
        raise InputError(f"{path} is there already; give another name") from None
    except OSError as problem:
        raise InputError(f"{path} cannot be written: {problem.strerror}") from None
    say(f"{path}: change it, then: llmsearch-optuna run {path}")
    say(f"{path.with_name(SCHEMA_NAME)}: lets editors complete it")


def demo(
    n_trials: Trials = None,
    storage: Storage = None,
    name: Name = None,
    report: ReportPath = None,
    quiet: Quiet = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Tune a small chat model on bundled dialogues; needs no network and no GPU.

    Run it again to go on with the same study; give another --name for a new one.
    """
    text = DEMO_STUDY.read_text(encoding="utf-8")
    file = Changes(n_trials=n_trials, storage=storage, name=name).apply(parse_study_file(text, name=str(DEMO_STUDY)))
    _search_and_tell(file, text, report=report, quiet=quiet, as_json=as_json)


def run(
    study: arguments.StudyFileArgument,
    data: arguments.Data = None,
    rows: arguments.Rows = None,
    model: arguments.Model = None,
    server: arguments.Server = None,
    n_trials: Trials = None,
    storage: Storage = None,
    name: Name = None,
    samples: Samples = None,
    constraint: Constraint = None,
    report: ReportPath = None,
    workers: Workers = "1",
    ray: Ray = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Run a study file, or go on with it where it was stopped."""
    changes = Changes(
        data=data,
        rows=rows,
        model=model,
        server=server,
        n_trials=n_trials,
        storage=storage,
        name=name,
        samples=_numbers(samples),
        constraints=_limits(constraint),
    )
    file = arguments.resolved(study, changes)
    if ray is not None:
        from llmsearch_optuna.workers.ray_tasks import check_ray

        check_ray(file.study.storage, file.study.name, ray)
    if dry_run:
        _tell_beforehand(file, quiet=quiet, as_json=as_json)
        return
    # What the study remembers is what was run, so that it can be run again elsewhere.
    text = study.read_text(encoding="utf-8") if changes == Changes() else study_file_text(file)
    count = _count_of(workers, ray, file.model.device)
    _search_and_tell(file, text, workers=count, ray=ray, report=report, quiet=quiet, as_json=as_json)


def _search_and_tell(
    file: StudyFile,
    text: str,
    *,
    workers: int = 1,
    ray: str | None = None,
    report: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    from llmsearch_optuna.optimize.callbacks import StudyFileCallback
    from llmsearch_optuna.progress import CallbackList, Terminal
    from llmsearch_optuna.progress import Quiet as NoProgress

    if not quiet:
        _say_what_is_resolved(file)
        say(_what_begins(workers, ray), err=True)
    with contextlib.ExitStack() as stack:
        shown = NoProgress() if quiet else stack.enter_context(Terminal(show_summary=False))
        stored = StudyFileCallback(file.study.storage, file.study.name, text)
        result = _search(search_arguments(file), workers, ray, CallbackList([shown, stored]))
    path = result.save_report(report or arguments.beside(result, ".html"))
    if as_json:
        typer.echo(json.dumps(outcome(result, path), indent=2, default=str))
    else:
        from llmsearch_optuna.cli.output import print_outcome

        print_outcome(result, report=path)


def _numbers(given: str | None) -> int | list[int] | None:
    """What stands behind --samples: a number, or several with commas between."""
    if given is None:
        return None
    try:
        found = [int(part) for part in given.split(",")]
    except ValueError:
        raise InputError(f"--samples {given} must be a whole number, or several with commas between: 1,4,8") from None
    return found if len(found) > 1 else found[0]


def _limits(given: list[str] | None) -> dict[str, str] | None:
    """Name -> limit of what stands behind --constraint; raises InputError where there is no sign."""
    if not given:
        return None
    found = {}
    for text in given:
        sign = next((sign for sign in (">=", "<=") if sign in text), None)
        if sign is None:
            from llmsearch_optuna.errors import InputError

            raise InputError(f"--constraint {text!r} has no limit; write it as 'terminates >= 0.95' or 'tokens <= 60'")
        name, _, limit = text.partition(sign)
        found[name.strip()] = f"{sign}{limit}"
    return found


def _count_of(workers: str, ray: str | None, device: str | None) -> int:
    """How many workers a number or "auto" stands for; raises InputError where it stands for none."""
    from llmsearch_optuna.errors import InputError

    if workers == "auto" and ray is None:
        from llmsearch_optuna.workers.devices import visible_gpus

        return max(1, len(visible_gpus(device)))
    if workers == "auto":
        raise InputError("--workers auto counts this machine's GPUs; with --ray say how many")
    if not workers.isdecimal() or int(workers) < 1:
        raise InputError(f"--workers {workers} must be auto, or a number from 1 on")
    return int(workers)


def _what_begins(workers: int, ray: str | None) -> str:
    if ray is not None:
        return f"placing {workers} {'worker' if workers == 1 else 'workers'} on the Ray cluster at {ray}"
    return "loading the model" if workers == 1 else f"starting {workers} workers"


def _search(arguments: dict[str, Any], workers: int, ray: str | None, observer: Callback) -> SearchResult:
    if ray is not None:
        from llmsearch_optuna.workers.ray_tasks import search_on_ray

        return search_on_ray(arguments, workers, ray, observer)
    if workers > 1:
        from llmsearch_optuna.workers.processes import search_with_workers

        return search_with_workers(arguments, workers, observer)
    from llmsearch_optuna.api import search

    return search(**arguments, observer=observer)


def _tell_beforehand(file: StudyFile, *, quiet: bool, as_json: bool) -> None:
    from llmsearch_optuna.api import forecast
    from llmsearch_optuna.cli.output import wide_enough
    from llmsearch_optuna.declaration import part
    from llmsearch_optuna.options import ForecastOptions
    from llmsearch_optuna.study_file.arguments import search_arguments
    from llmsearch_optuna.study_file.changes import with_defaults

    if not quiet:
        _say_what_is_resolved(file)
        say("loading the model", err=True)
    given = search_arguments(file)
    found = forecast(
        given["model"], given["dataset"], given["space"], given.get("tokenizer"), **part(ForecastOptions, given)
    )
    if as_json:
        resolved = with_defaults(file).model_dump()
        typer.echo(json.dumps({"study": redacted_values(resolved), "forecast": found.to_json()}, indent=2, default=str))
    else:
        out = wide_enough()
        out.print(found.text)
        if found.split:
            out.print(f"\n{found.split}")
        if found.power is not None:
            out.print(f"\nJudged by the baseline's first rows: {found.power}")


def _say_what_is_resolved(file: StudyFile) -> None:
    from llmsearch_optuna.cli.dry_run import print_resolved
    from llmsearch_optuna.cli.output import wide_enough
    from llmsearch_optuna.study_file.changes import with_defaults

    print_resolved(with_defaults(file), wide_enough(stderr=True))


def outcome(result: SearchResult, report: Path | None = None) -> dict[str, Any]:
    """What `--json` prints; while no trial is complete, what one would have won is null and the summary says why."""
    verdict = result.verdict
    decided = result if result.has_best else None
    return {
        "study": result.study.study_name,
        "storage": result.opened.url,
        "report": None if report is None else str(report),
        "trials": len(result.trials),
        "best_trial": None if decided is None else decided.best_trial.number,
        "best_score": None if decided is None else decided.best_score,
        "best_score_error": result.best_score_error,
        "expected_score": result.expected_score,
        "best_params": None if decided is None else decided.best_params,
        "baseline_params": result.baseline_params,
        "recommended_params": None if decided is None else decided.recommended_params,
        "recommended_task_options": None if decided is None else decided.recommended_task_options,
        "verdict": None if verdict is None else verdict.to_json(),
        "failures": result.failures,
        "summary": result.summary,
    }

"""What `run` is about to do, in a few lines: the study file with the command line's values and all defaults."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmsearch_optuna.progress import describe_params, printable
from llmsearch_optuna.redaction import redacted

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from llmsearch_optuna.space.branch import Branch
    from llmsearch_optuna.study_file.model import PrunerSection, StudyFile, StudySection

_PROMPT_SHOWN = 120


def print_resolved(file: StudyFile, console: Console) -> None:
    """Print what a study file comes to."""
    from llmsearch_optuna.optimize.prepare import DEFAULT_TRIALS
    from llmsearch_optuna.storage.address import StorageAddress
    from llmsearch_optuna.study_file.checks import check_choices, check_space, metric_name

    study, model, data = file.study, file.model, file.data
    whole_grid = study.n_trials is None and study.sampler == "grid"
    budgets = ["the whole grid" if whole_grid else f"{study.n_trials or DEFAULT_TRIALS} trials"]
    budgets += [f"at most {study.timeout:g} s"] if study.timeout is not None else []
    budgets += [f"at most {study.max_tokens:,} tokens"] if study.max_tokens is not None else []
    budgets += [f"a cost of at most {study.max_cost:g}"] if study.max_cost is not None else []
    loading = [f"{name} {value}" for name, value in (("dtype", model.dtype), ("on", model.device)) if value]
    rows = [] if data.rows is None else [f"the first {data.rows} rows"]
    stored = StorageAddress.of(study.storage, study.name)
    lines = [
        ("study", f"{study.name}: {', '.join(budgets)}, stored in {stored}"),
        ("model", ", ".join([model.name or model.server, *loading, f"batch_size {model.batch_size}"])),
        ("data", ", ".join([str(data.path), *rows, f"{metric_name(file)} ({data.direction})"])),
        ("prompt", _prompt(data.model_dump()["prompt"])),
        *((choice.name, f"{{{', '.join(map(str, choice.labels))}}}") for choice in check_choices(file)),
        *(("space" if place == 0 else "", branch) for place, branch in enumerate(map(_branch, _branches(file)))),
        ("baseline", _baseline(file.baseline) if file.baseline else "the model's generation config"),
        (
            "search",
            f"sampler {study.sampler}, pruner {_pruner(study.pruner)}, holdout {study.holdout}, seed {study.seed}, "
            f"{study.trials_in_flight} trials in flight, {_rows(study)}",
        ),
    ]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(name, Text(printable(redacted(value))))
    console.print(table)
    check_space(file)


def _rows(study: StudySection) -> str:
    if study.holdout == "auto":
        return "which rows judge follows from how many there are (below)"
    if study.holdout == "cross":
        return "all rows searched in two halves that judge each other's winner"
    return f"at most {study.search_rows:,} rows searched and {study.holdout_rows:,} others held out in stages"


def _baseline(given: str | dict[str, Any]) -> str:
    return given if isinstance(given, str) else describe_params(given)


def _branches(file: StudyFile) -> list[Branch]:
    from llmsearch_optuna.study_file.checks import check_space

    return list(check_space(file).branches)


def _branch(branch: Branch) -> str:
    searched = " ".join(f"{name}={_values(found)}" for name, found in branch.distributions.items())
    return f"{branch.label}: {searched} {describe_params(branch.fixed)}".replace("  ", " ").strip()


def _values(distribution: BaseDistribution) -> str:
    facts: dict[str, Any] = json.loads(json.dumps(distribution._asdict(), default=str))
    if "choices" in facts:
        return "{" + ", ".join(map(str, facts["choices"])) + "}"
    return f"{facts['low']:g}…{facts['high']:g}" + (" (log)" if facts.get("log") else "")


def _pruner(given: str | PrunerSection | None) -> str:
    return f"paired ({given})" if given is not None and not isinstance(given, str) else str(given)


def _prompt(prompt: Any) -> str:
    text = "the column prompt" if prompt is None else prompt if isinstance(prompt, str) else json.dumps(prompt)
    return text if len(text) <= _PROMPT_SHOWN else f"{text[:_PROMPT_SHOWN]} …"

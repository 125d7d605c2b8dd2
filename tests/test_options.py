"""Every argument of search, score and forecast is declared once; all else is made from that."""

# No `from __future__ import annotations` here: an option is declared.

import ast
import doctest
import inspect
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import llmsearch_optuna
from llmsearch_optuna import api, options
from llmsearch_optuna.cli.arguments import flag
from llmsearch_optuna.declaration import Key, Limits, Option, completed, declared
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.options import (
    CheckOptions,
    ConfirmOptions,
    ForecastOptions,
    Inputs,
    ScoreOptions,
    SearchOptions,
    every_option,
    for_workers,
    keys_of,
    takes,
)
from llmsearch_optuna.study_file.model import Section, with_keys
from llmsearch_optuna.study_file.schema import plain
from llmsearch_optuna.study_file.template import table_text

PACKAGE = Path(llmsearch_optuna.__file__).parent
KINDS = (Inputs, SearchOptions, ForecastOptions, ScoreOptions, ConfirmOptions, CheckOptions)
FUNCTIONS = [
    (api.search, SearchOptions),
    (api.score, ScoreOptions),
    (api.forecast, ForecastOptions),
    (api.confirm, ConfirmOptions),
    (api.check, CheckOptions),
]


class More(SearchOptions, total=False):
    """One option more: one field in one place."""

    patience: Annotated[
        int | None,
        Option(
            "Trials without a better one after which the study ends.",
            limits=Limits(words="a whole number from 2 on", ge=2),
            key=Key("study", example=10),
        ),
    ]


@takes(More)
def search(model: Any, **options: Any) -> Any:
    """Search."""
    return options


def test_a_new_option_is_one_field_in_one_place() -> None:
    known = declared(More)
    assert "patience" in keys_of("study", known)
    assert "\n    patience: Trials without a better one" in (inspect.getdoc(search) or "")
    assert inspect.signature(search).parameters["patience"].default is None
    assert search("m")["patience"] is None
    with pytest.raises(InputError, match="patience=1 must be a whole number from 2 on"):
        search("m", patience=1)

    @with_keys("study", More)
    class Study(Section):
        """How to search."""

    assert plain(Study.model_json_schema())["properties"]["patience"] == {
        "type": "integer", "minimum": 2, "description": "Trials without a better one after which the study ends."
    }  # fmt: skip
    assert Study(name="x", patience=3).patience == 3
    assert "# Trials without a better one after which the study ends.\n# patience = 10" in table_text(
        "study", "", known
    )
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    def run(patience: Annotated[int | None, flag("--patience", "patience", known)] = None) -> None:
        """Run."""

    told = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    assert "Trials without a better one after which the study ends." in told
    assert for_workers({"patience": 3, "progress": True}, known) == {"patience": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_is_explained(kind: Any) -> None:
    for name, option in declared(kind).items():
        assert option.text.endswith("."), name
        assert len(option.text.split()) >= 3, name
        assert option.limits is None or option.limits.allow(option.default), name


@pytest.mark.parametrize(("function", "kind"), FUNCTIONS)
def test_signature_and_help_name_every_option(function: Any, kind: Any) -> None:
    parameters = inspect.signature(function).parameters
    explained = inspect.getdoc(function) or ""
    for name, option in declared(kind).items():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default == option.default
        assert parameters[name].annotation is not inspect.Parameter.empty
    for name in parameters:
        assert f"\n    {name}: " in explained
    assert "\nRaises:\n" in explained


@pytest.mark.parametrize(("function", "kind"), FUNCTIONS)
def test_a_wrong_name_is_answered_with_the_nearest(function: Any, kind: Any) -> None:
    with pytest.raises(TypeError, match="has no argument 'batchsize'; did you mean 'batch_size'"):
        function("m", [], {}, batchsize=3)
    with pytest.raises(TypeError, match="did you mean 'tokenizer'"):
        function("m", [], {}, tokeniser=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_trials": 0}, "n_trials=0 must be a whole number from 1 on"),
        ({"n_trials": True}, "n_trials=True must be"),
        ({"replicates": 1.5}, "replicates=1.5 must be a whole number"),
        ({"holdout": 1}, "holdout=1 must be a share from 0 to below 1"),
        ({"holdout": float("nan")}, "holdout=nan must be"),
        ({"timeout": -1}, "timeout=-1 must be a number of seconds from 0 on"),
        ({"margin": -0.1}, "margin=-0.1 must be a number from 0 on"),
        ({"seed": -1}, "seed=-1 must be an integer from 0"),
    ],
)
def test_numbers_that_an_option_does_not_take_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        completed(SearchOptions, given)
    assert message in str(caught.value)


def test_an_option_means_the_same_everywhere() -> None:
    for kind in (ForecastOptions, ScoreOptions):
        for name, option in declared(kind).items():
            assert name not in every_option() or every_option()[name] is option


def test_workers_are_handed_everything_but_what_belongs_to_this_process() -> None:
    assert {n for n, o in every_option().items() if not o.for_workers} == {"progress", "observer", "callbacks"}
    assert for_workers({"model": "m", "n_trials": 3, "observer": object()}) == {"model": "m", "n_trials": 3}


def test_the_task_takes_the_options_that_describe_it() -> None:
    from dataclasses import fields

    from llmsearch_optuna.task.task import Task

    of_task = {field.name: field.default for field in fields(Task)}
    assert set(of_task) - {"dataset", "name", "generation"} == set(declared(options.TaskOptions))
    for name, option in declared(options.TaskOptions).items():
        assert of_task[name] in (option.default, option.left_out)


ELSEWHERE = {"api.py", "options.py", "task/task.py", "engine/engine.py", "models/loader.py", "models/quantized.py"}
"""Where options are declared, and the functions and classes that they are the arguments of."""


def test_no_other_page_lists_options() -> None:
    """A signature, a call or a dict with five options of one kind would be a second list to keep up to date."""
    kinds = [options.TaskOptions, options.EngineOptions, options.LoadOptions]
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).as_posix() in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[Any] = []
            if isinstance(node, ast.FunctionDef):
                names = [a.arg for a in node.args.args + node.args.kwonlyargs]
            elif isinstance(node, ast.Call):
                names = [keyword.arg for keyword in node.keywords]
            elif isinstance(node, ast.Dict):
                names = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            elif isinstance(node, ast.Tuple | ast.List | ast.Set):
                names = [item.value for item in node.elts if isinstance(item, ast.Constant)]
            found = Counter(number for number, kind in enumerate(kinds) for name in names if name in declared(kind))
            assert max(found.values(), default=0) < 5, f"{path}:{getattr(node, 'lineno', 0)} lists {names}"


def test_the_worked_examples_hold() -> None:
    assert doctest.testmod(options).failed == 0


@pytest.mark.parametrize("name", ["batch_size", "replicates", "holdout_replicates", "trials_in_flight"])
def test_what_is_held_at_once_has_a_limit_within_reason(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}=1000000000 must be a whole number from 1 to 65,536"):
        api.search(None, None, None, **{name: 10**9})

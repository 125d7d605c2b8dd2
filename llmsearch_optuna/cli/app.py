"""All commands under one name, and what becomes of errors: one message, and an exit code that scripts can use.

Exit codes: 0 done, 1 cannot be done, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from llmsearch_optuna import __version__
from llmsearch_optuna.cli import inspect, locked, run, score, share
from llmsearch_optuna.cli.salvage import salvage
from llmsearch_optuna.cli.terminal import printable_lines
from llmsearch_optuna.errors import LlmsearchError
from llmsearch_optuna.redaction import redacted

PROGRAM = "llmsearch-optuna"
DEBUG_VARIABLE = "LLMSEARCH_DEBUG"

# typer has a copy of click for itself, and names this class of it nowhere.
_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name=PROGRAM,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,  # an address with its password is among them
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find the generation parameters with which a model scores best on your data."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code; `arguments` defaults to those of the process."""
    _quiet_libraries()
    _show_warnings()
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except _USAGE_ERROR as problem:  # told here, since it shows what was typed
        problem.message = printable_lines(redacted(problem.message))
        problem.show()
        sys.exit(problem.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _told(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with every error told in words; usage errors are told by the parser, with code 2."""

    @functools.wraps(command)
    def telling(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(_say("interrupted; run the same command again to go on", 130)) from None
        except LlmsearchError as problem:
            raise typer.Exit(_say(str(problem), 130 if _is_interruption(problem) else 1)) from None
        except (BrokenPipeError, typer.Exit):
            raise
        except OSError as problem:
            if os.environ.get(DEBUG_VARIABLE):
                raise
            if problem.filename is None:
                raise typer.Exit(_say(_unexpected(problem), 1)) from None
            raise typer.Exit(_say(f"{problem.filename} cannot be used: {problem.strerror}", 1)) from None
        except BaseException as problem:  # SystemExit too: code of models and metrics may call exit()
            if os.environ.get(DEBUG_VARIABLE):
                raise
            raise typer.Exit(_say(_of_database(problem) or _unexpected(problem), 1)) from None

    return telling


for _command, _short_help in (
    (run.init, "Write a study file to begin with."),
    (run.demo, "Tune a small chat model on bundled dialogues."),
    (run.run, None),
    (score.score, None),
    (inspect.status, None),
    (inspect.report, None),
    (inspect.compare, "Compare studies of the same data, row by row."),
    (inspect.dashboard, "Open the study in optuna-dashboard."),
    (locked.confirm, "Give the verdict with the engine that will serve."),
    (locked.check, "Exit with 1 when the settings in use have got worse."),
    (share.export, "Write the recommended parameters, or the study as a zip."),
    (share.import_, "Open a study that was exported as a zip."),
    (share.push, "Write parameters and evidence to a model's repository."),
    (salvage, "Read what is left of a damaged database."),
):
    app.command(_command.__name__.rstrip("_"), short_help=_short_help)(_told(_command))


def _of_database(problem: BaseException) -> str | None:
    """What a database says where a study is read; None of other errors."""
    if type(problem).__module__.partition(".")[0] not in ("sqlalchemy", "optuna", "sqlite3"):
        return None
    from llmsearch_optuna.storage.errors import storage_problem

    return storage_problem("the study's database", problem)


def _unexpected(problem: BaseException) -> str:
    return (
        f"this should not have happened: {type(problem).__name__}: {problem}\n"
        f"Please report it, with the traceback that {DEBUG_VARIABLE}=1 shows."
    )


def _is_interruption(problem: LlmsearchError) -> bool:
    return type(problem).__name__ == "StudyInterrupted"


def _say(message: str, code: int) -> int:
    lines = printable_lines(redacted(message))
    print(lines if code == 130 else f"error: {lines}", file=sys.stderr)  # noqa: T201 - the command line's own output
    return code


def _quiet_libraries() -> None:
    """Progress bars and notes of the libraries below would tear the live view apart."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _show_warnings() -> None:
    from llmsearch_optuna.verbosity import StderrHandler

    logger = logging.getLogger("llmsearch_optuna")
    if not logger.handlers:
        handler = StderrHandler(logging.WARNING)
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logging.captureWarnings(capture=True)
    logging.getLogger("py.warnings").setLevel(logging.CRITICAL)

"""`export`, `import` and `push`: hand a study, or what it recommends, to somebody else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmsearch_optuna.cli import arguments
from llmsearch_optuna.cli.terminal import say
from llmsearch_optuna.errors import InputError

if TYPE_CHECKING:
    from llmsearch_optuna.search_result import SearchResult


def export(
    study: arguments.StudyArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The folder to write into.")] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Write the whole study into this zip; `import` opens it.")
    ] = None,
    program: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="PROGRAM",
            help="vllm, sglang, llama.cpp, ollama, openai, lm-eval, inspect or transformers.",
        ),
    ] = None,
    study_name: arguments.StudyName = None,
) -> None:
    """Write the recommended parameters as a program reads them, or with --bundle the whole study as one zip."""
    if program is not None and bundle is None and output is None:
        output = Path(program)
    if (output is None) == (bundle is None):
        raise InputError("give either --output FOLDER or --bundle FILE.zip")
    result = arguments.load(study, study_name)
    if bundle is not None:
        from llmsearch_optuna.cli.bundle import write_bundle

        say(f"{write_bundle(result, bundle)}: study, report and parameters; open it with `import`")
    elif output is not None:
        _export_parameters(result, output, program or "transformers")


def import_(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE.zip", help="What `export --bundle` wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="An empty folder, or one to make. Default: the study's name.")
    ] = None,
) -> None:
    """Unpack a bundle, so that its study can be read, or gone on with."""
    from llmsearch_optuna.cli.bundle import STUDY_FILE, open_bundle, warnings_of

    result = open_bundle(bundle, output)
    database = result.opened.path
    assert database is not None
    say(f"{result.study.study_name}: {result.summary}")
    say(f"read it:    llmsearch-optuna status {database}")
    study_file = database.with_name(STUDY_FILE)
    # `check` and `confirm` read the one that the study remembers, and nobody says that it is the same.
    texts = [study_file.read_text(encoding="utf-8", errors="replace")] if study_file.is_file() else []
    texts += [text for text in (result.opened.study_file,) if text is not None]
    for warning in dict.fromkeys(warning for text in texts for warning in warnings_of(text)):
        say(f"WARNING: {warning}")
    if study_file.is_file():
        say(f"go on with: llmsearch-optuna run {study_file} --storage {database}")


def push(
    study: arguments.StudyArgument,
    repo: Annotated[str, typer.Option("--repo", metavar="USER/MODEL", help="The model's repository.")],
    to: Annotated[str, typer.Option("--to", help="Where to: hub (the Hugging Face Hub).")] = "hub",
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of a commit.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, and send nothing.")] = False,
    study_name: arguments.StudyName = None,
) -> None:
    """Write the recommended parameters and their evidence into a model's repository on the Hugging Face Hub.

    generation_config.json is replaced; on the model card a section of its own is written, and nothing else is touched.
    The access token is the one of `hf auth login`, or HF_TOKEN.
    """
    from llmsearch_optuna.analysis.model_card import push as push_files

    if to != "hub":
        raise InputError(f"--to {to!r} is unknown; there is hub")
    done = push_files(arguments.load(study, study_name), repo, dry_run=dry_run, create_pr=create_pr)
    for path, text in done.files.items():
        say(f"{done.repo}/{path}{' would be:' if done.url is None else ' is written'}")
        if done.url is None:
            say(text)
    if done.url is not None:
        say(done.url)


def _export_parameters(result: SearchResult, output: Path, program: str) -> None:
    from llmsearch_optuna.analysis.export import save_for

    paths = save_for(result, program, output)
    verdict = result.verdict
    origin = "the winner's" if verdict is not None and verdict.recommends_winner else "the baseline's"
    for path in paths:
        say(f"{path}: {result.summary if path.name == 'evidence.json' else f'{origin} parameters'}")

"""What a study found, as a section of a model card, and both of these put on a hub.

The section stands between two marks, so that a later study takes the place of an earlier one and nothing else on the
card is touched. Only `push` speaks to a hub, and only to the one that huggingface_hub is set up for.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmsearch_optuna.analysis.export import save_generation_config
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import EngineUnavailableError, InputError

if TYPE_CHECKING:
    from llmsearch_optuna.analysis.view import StudyView

BEGIN = "<!-- llmsearch-optuna: begin -->"
END = "<!-- llmsearch-optuna: end -->"
TITLE = "## Recommended generation parameters"


@dataclass(frozen=True)
class Push:
    """Files for a model's repository.

    Attributes:
        repo: The repository, such as ``"user/model"``.
        files: Path in the repository -> text.
        url: Of the commit; None where nothing was sent.
    """

    repo: str
    files: dict[str, str]
    url: str | None = None


def card_section(result: StudyView) -> str:
    """Return the section of a model card that says what the study recommends, and on what evidence."""
    verdict = result.verdict
    params = GenerationParams.of(result.recommended_params)
    settings = result.settings
    rows = settings.get("rows", {})
    judged = "judged in two halves, each by the other's winner" if settings.get("halves") else rows.get("holdout")
    facts = [
        ("metric", settings.get("metric")),
        ("data", settings.get("data")),
        ("trials", len(result.trials)),
        ("rows searched / held out", f"{rows.get('search')} / {judged}"),
        ("verdict", "none yet" if verdict is None else verdict.headline),
    ]
    task_options = result.recommended_task_options
    asked = f"With this of the task:\n\n```json\n{json.dumps(task_options, indent=2)}\n```\n\n" if task_options else ""
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts)
    return (
        f"{BEGIN}\n{TITLE}\n\n"
        f"```json\n{json.dumps(params.canonical, indent=2)}\n```\n\n{asked}"
        f"| | |\n|---|---|\n{table}\n\n"
        f"Found with [llmsearch-optuna](https://pypi.org/project/llmsearch-optuna/).\n{END}\n"
    )


def with_section(card: str, section: str) -> str:
    """Return a card with the section: in the place of an earlier one, else at its end.

    >>> print(with_section("# Model", f"{BEGIN}\\nnew\\n{END}\\n"), end="")
    # Model
    <BLANKLINE>
    <!-- llmsearch-optuna: begin -->
    new
    <!-- llmsearch-optuna: end -->
    """
    earlier = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END) + r"\n?", re.DOTALL)
    if earlier.search(card):
        return earlier.sub(lambda _: section, card, count=1)
    return section if not card.strip() else f"{card.rstrip()}\n\n{section}"


def push(result: StudyView, repo: str, *, dry_run: bool = False, create_pr: bool = False) -> Push:
    """Write generation_config.json and the card's section into a model's repository, in one commit.

    Args:
        result: A study with a verdict.
        repo: The repository; it must be there.
        dry_run: Read the card and say what would be written; send nothing.
        create_pr: As a pull request.

    Raises:
        InputError: The repository cannot be read or written: no such one, no right to, or no access token.
        EngineUnavailableError: The hub does not answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        with tempfile.TemporaryDirectory() as folder:
            config = save_generation_config(result, folder).read_text(encoding="utf-8")
            try:
                path = hf_hub_download(repo, "README.md", local_dir=folder)  # not from a cache that may be old
                card = Path(path).read_text(encoding="utf-8")
            except EntryNotFoundError:
                card = ""
        files = {"generation_config.json": config, "README.md": with_section(card, card_section(result))}
        if dry_run:
            return Push(repo, files)
        commit = HfApi().create_commit(
            repo_id=repo,
            operations=[CommitOperationAdd(path, text.encode("utf-8")) for path, text in files.items()],
            commit_message="Recommend generation parameters",
            commit_description=result.summary,
            create_pr=create_pr,
        )
    except HFValidationError as problem:
        raise InputError(f"{repo!r} is no name of a repository, such as user/model: {problem}") from None
    except OfflineModeIsEnabled:
        raise InputError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it") from None
    except HfHubHTTPError as problem:
        status = getattr(problem.response, "status_code", None)
        if status is not None and status >= 500:
            raise EngineUnavailableError(f"the hub does not answer for now (HTTP {status}); try again") from None
        raise InputError(
            f"{repo} cannot be read or written (HTTP {status}): it must be there, and `hf auth login` or HF_TOKEN must "
            "give the right to write to it"
        ) from None
    return Push(repo, files, str(commit.pr_url or commit.commit_url))


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")

"""A trial's rows as one `.jsonl` artifact, which optuna-dashboard shows as a table.

Stored before the trial is stored as ended, since a finished trial takes no artifacts. Twice gives one artifact:
a crash between its entry in the study and its file is healed by writing the file again under the same id.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.artifacts import get_all_artifact_meta, upload_artifact

from llmsearch_optuna.metrics.aggregates import votes_in_words
from llmsearch_optuna.storage.row_record import RowRecord

if TYPE_CHECKING:
    from llmsearch_optuna.storage.study import OpenedStudy
    from llmsearch_optuna.task.prepared_task import PreparedTask

_PROMPT_SHOWN = 300


def save_rows(
    opened: OpenedStudy, trial: optuna.Trial, records: Sequence[RowRecord], task: PreparedTask, *, replicates: int
) -> None:
    """Write the rows of a trial; a trial without rows gets no artifact."""
    if not records:
        return
    name = f"trial-{trial.number:04d}.jsonl"
    text = "".join(_line(record, task, replicates) for record in records)
    opened.artifacts_folder.mkdir(parents=True, exist_ok=True)
    for known in get_all_artifact_meta(trial, storage=opened.rdb):
        if known.filename == name:
            opened.artifacts.write(known.artifact_id, io.BytesIO(text.encode()))
            return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8")
        upload_artifact(
            artifact_store=opened.artifacts,
            file_path=str(path),
            study_or_trial=trial,
            storage=opened.rdb,
            mimetype="application/jsonl",
        )


def _line(record: RowRecord, task: PreparedTask, replicates: int) -> str:
    prompt = task.prompts[record.row]
    shown: dict[str, Any] = {
        "row": record.row,
        "score": record.score,
        "completion": record.text,
        "reference": task.references[record.row],
        "finish_reason": record.finish_reason,
        "tokens": record.tokens,
        "prompt": prompt if len(prompt) <= _PROMPT_SHOWN else f"…{prompt[-_PROMPT_SHOWN:]}",
    }
    if record.reasoning is not None:
        shown |= {"reasoning": record.reasoning, "reasoning_tokens": record.reasoning_tokens}
    if record.further:
        shown["samples"] = [sample.text for sample in record.samples]
        shown["votes"] = votes_in_words(task.metric, record.completions)
    if replicates > 1:
        shown["replicate"] = record.replicate
    if record.error is not None:
        shown["error"] = record.error
    return json.dumps(shown, ensure_ascii=False, default=str) + "\n"

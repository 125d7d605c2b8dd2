"""A study's trials and completions as pandas tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial

from llmsearch_optuna.storage.records import Item
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.storage.trials import half_of, is_feasible, score_of


def completions_table(records: Sequence[RowRecord], prompts: Sequence[str], items: Mapping[int, Item]) -> pd.DataFrame:
    """One line a record; see `StudyView.completions`.

    Args:
        records: Of one trial.
        prompts: What each of them answers.
        items: Row number -> the row of the task.
    """
    found = pd.DataFrame(
        [
            {
                "row": r.row,
                "replicate": r.replicate,
                "prompt": prompt,
                "reference": items[r.row].reference,
                "completion": r.text,
                "score": r.score,
                "finish_reason": r.finish_reason,
                "tokens": r.tokens,
                "error": r.error,
            }
            for r, prompt in zip(records, prompts, strict=True)
        ],
        columns=["row", "replicate", "prompt", "reference", "completion", "score", "finish_reason", "tokens", "error"],
    )
    if any(r.reasoning is not None for r in records):
        found["reasoning"] = [r.reasoning for r in records]
        found["reasoning_tokens"] = [r.reasoning_tokens for r in records]
    if any(r.further for r in records):
        found["samples"] = [[sample.text for sample in r.samples] for r in records]
    return found


def trials_table(trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """One line a trial; see `StudyView.trials_dataframe`."""
    return pd.DataFrame([_line(trial) for trial in trials])


def _line(trial: FrozenTrial) -> dict[str, Any]:
    attributes = trial.user_attrs
    line = {
        "number": trial.number,
        "role": attributes.get("role", ""),
        "state": trial.state.name.lower(),
        "value": score_of(trial),
        "kind": attributes.get("kind", ""),
        "rows": attributes.get("rows", ""),
        "tokens": attributes.get("tokens"),
        "seconds": attributes.get("seconds"),
        "reason": attributes.get("prune_reason") or attributes.get("fail_reason") or "",
    }
    line |= {f"part_{name}": score for name, score in attributes.get("metric_parts", {}).items()}
    line |= {f"condition_{name}": value for name, value in attributes.get("conditions", {}).items()}
    if (half := half_of(trial)) is not None:
        line["half"] = half
    if trial.constraints:
        line["feasible"] = is_feasible(trial)
    line |= {f"fold_{fold}": score for fold, score in enumerate(attributes.get("fold_scores", ()))}
    return line | {f"params_{k}": v for k, v in attributes.get("params", {}).items()}

"""Are the settings in use as good as when they were tuned? A gate for continuous integration.

The model, its quantisation, a library or a prompt may have changed since. The recommended parameters are decoded on the
study's locked rows again, and compared with what they scored there when the study was made.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.errors import DecodingError, InputError, StudyError
from llmsearch_optuna.optimize.decode import decode_all
from llmsearch_optuna.optimize.locked_rows import LockedRows, lock
from llmsearch_optuna.options import CheckOptions
from llmsearch_optuna.stats.regression import Regression, regression
from llmsearch_optuna.storage.row_record import RowRecord, gathered, score_table
from llmsearch_optuna.storage.study import OpenedStudy


@dataclass(frozen=True)
class Check:
    """What the locked rows say about the settings in use.

    Attributes:
        engine: The name of what decoded.
        params: The settings: what the study recommends.
        found: The comparison of then and now.
    """

    engine: str
    params: dict[str, Any]
    found: Regression

    @property
    def is_worse(self) -> bool:
        """Whether a loss above the margin is shown."""
        return self.found.is_worse

    @property
    def sentence(self) -> str:
        """What was found, and what it is worth, in three sentences."""
        f = self.found
        head = "Worse" if f.is_worse else "No evidence of a loss"
        beyond = f" above the margin of {f.margin:g}" if f.margin else ""
        return (
            f"{head}{beyond}: {f.now:.4g} now, {f.then:.4g} when it was tuned, on {f.rows} held-out rows "
            f"({f.changed} changed, one-sided p = {f.p_value:.2g}). "
            f"If nothing had changed, this check would raise a false alarm in {f.false_alarm_rate:.1%} of cases "
            "(measured with signs drawn for these rows' differences)."
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"engine": self.engine, "params": self.params, **asdict(self.found), "sentence": self.sentence}


def check_study(opened: OpenedStudy, model: Any, dataset: Any, tokenizer: Any, options: CheckOptions) -> Check:
    """Decode the recommended parameters on the locked rows again, and compare them with the study's own scores.

    Nothing is stored, and nothing that was decoded before is used again but as what it is compared with.

    Args:
        opened: A study with a verdict.
        model: Decodes; see `search`.
        dataset: The study's own data.
        tokenizer: See `search`.
        options: Those with defaults, too.

    Raises:
        InputError: An argument cannot be used, data and metric are not the study's, or the rows are too few.
        StudyError: The study has no verdict.
        DecodingError: More rows than not could not be decoded or scored.
    """
    locked = lock(opened, model, dataset, tokenizer, options)
    study, task = locked.study, locked.rows.task
    if task.metric.per_row is False:
        raise InputError(f"{task.metric.name} scores all rows at once; check needs a metric with a score for each row")
    number = study.winner if study.verdict.recommends_winner else 0
    now = locked.scored(_decoded(locked, locked.requests(number, ("check", number))))
    known = {r.row for r in now}
    order = [row for row in study.rows if row in known]
    if 2 * len(order) < len(study.rows):
        raise DecodingError(f"only {len(order)} of {len(study.rows)} rows could be decoded and scored; nothing is said")
    then = [r for r in study.records[number] if r.row in known]
    if any(r.score is None for r in then):
        raise StudyError(f"the study {opened.name!r} holds no scores of its held-out rows to compare with")
    found = regression(
        score_table(then, order),
        score_table([r for r in now if r.row in known], order),
        prompts=[task.distinct[row] for row in order],
        bounds=task.metric.bounds,
        direction=locked.rows.direction,
        margin=options["margin"],
        seed=study.seed,
    )
    return Check(locked.served.name, locked.params(number).canonical, found)


def _decoded(locked: LockedRows, requests: list[Request]) -> list[RowRecord]:
    draws: list[RowRecord] = []
    decode_all(locked.served.backend, requests, lambda finished: draws.extend(map(RowRecord.of, finished)))
    return gathered(sorted(draws, key=lambda r: (r.row, r.replicate, r.sample)))

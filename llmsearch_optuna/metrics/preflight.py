"""Tries a metric before anything is decoded: on the first rows, with the references as predictions."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from llmsearch_optuna.errors import EngineUnavailableError, InputError, describe_error
from llmsearch_optuna.metrics import text_scores
from llmsearch_optuna.metrics.checks import is_number, listed, short
from llmsearch_optuna.metrics.factories import BUILT_IN
from llmsearch_optuna.metrics.references import plain_reference, problems_of, reference_texts
from llmsearch_optuna.metrics.scoring import Scorer
from llmsearch_optuna.transient_errors import ask_patiently, is_stopped
from llmsearch_optuna.types import Direction

if TYPE_CHECKING:
    from llmsearch_optuna.engine.request import Completion

_log = logging.getLogger("llmsearch_optuna.metrics.preflight")

_EXACT = ("exact_match", "contains", "f1")

TRIED_REFERENCES = 64
"""So many references of a built-in metric are scored against themselves before a study."""

S = TypeVar("S", bound=Scorer)


@dataclass(frozen=True)
class Preflight:
    """What a metric is tried on.

    Attributes:
        references: What it is to compare with, one a row; those of a built-in metric are all looked at.
        rows: The rows themselves.
        direction: Whether a higher score is better; None where nobody said.
    """

    references: Sequence[Any]
    rows: Sequence[Mapping[str, Any]]
    direction: Direction | None = "maximize"

    def check(self, scorer: S) -> S:
        """Return the metric with its form known; errors are those of `Metric.check`."""
        references, rows = self.references, self.rows
        if not references:
            raise InputError(f"metric {scorer.name!r} has no rows to be tried on; give at least one row")
        _check_references(scorer, references)
        tried = [references[0], references[min(1, len(references) - 1)]]
        tried_rows = [rows[0], rows[min(1, len(rows) - 1)]]
        predictions = [_as_prediction(reference) for reference in tried]
        _check_rows(scorer, references, rows)
        try:
            answer = ask_patiently(
                lambda: scorer.function(predictions, tried, tried_rows, made_up_completions(predictions)),
                lambda error: None if is_stopped(error) else scorer.away(error),
            )
        except (InputError, EngineUnavailableError):  # what was wrong is said already
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise InputError(
                f"metric {scorer.name!r} fails on the first two rows: {describe_error(error)}\n"
                f"  predictions: {short(predictions)}\n  references: {short(tried)}\n"
                "Mend the metric, or give it references it can read (reference=...)."
            ) from error
        checked = scorer if scorer.per_row is not None else replace(scorer, per_row=not is_number(answer))
        problem = checked.problem(answer, 2)
        if problem:
            raise InputError(
                f"metric {scorer.name!r} cannot be used: on the first two rows it {problem}. "
                "It must return a list with one finite number a row, or one finite number for all rows."
            )
        of_empty = _try_empty_text(checked, tried, tried_rows)
        is_foreign = "built_in" not in scorer.description
        if self.direction is None and is_foreign and of_empty is not None and any(r is not None for r in tried):
            _refuse_to_guess(checked, _mean(answer), of_empty)
        _warn_of_lost_scripts(checked, references, rows)
        _warn_of_floats(checked, references)
        return checked


def made_up_completions(texts: Sequence[str]) -> list[Completion]:
    """Return completions to try a metric with: a token for each word, and one that ends the text."""
    from llmsearch_optuna.engine.request import Completion

    lengths = [1 + len(text.split()) for text in texts]
    return [
        Completion(text, tuple(range(length)), prompt_tokens=1, cumulative_logprob=-float(length))
        for text, length in zip(texts, lengths, strict=True)
    ]


def _check_references(scorer: Scorer, references: Sequence[Any]) -> None:
    if scorer.check_text is None:
        return
    problems = problems_of(references, scorer.check_text)
    if len(problems) == len(references) and len(set(problems.values())) == 1:
        raise InputError(f"metric {scorer.name!r} cannot use the references: {next(iter(problems.values()))}")
    if problems:
        places = list(problems)
        shown = "; ".join(f"row {place}: {problems[place]}" for place in places[:4])
        others = f"; and row {', '.join(map(str, places[4:24]))}" if len(places) > 4 else ""
        more = f" and {len(places) - 24} more" if len(places) > 24 else ""
        raise InputError(
            f"metric {scorer.name!r} cannot use the references of {len(places)} of {len(references)} rows: "
            f"{shown}{others}{more}. Leave these rows out, or let a function mend them (reference=lambda row: ...)."
        )


def _refuse_to_guess(scorer: Scorer, of_references: float, of_empty: float) -> None:
    if of_references < of_empty:
        raise InputError(
            f"metric {scorer.name!r} gives the references themselves {of_references:g} and empty texts {of_empty:g}, "
            "so a lower score seems to be better: say direction='minimize', or direction='maximize' if it is not"
        )


def _warn_of_floats(scorer: Scorer, references: Sequence[Any]) -> None:
    """Say where whole numbers became floats, as pandas makes them: texts such as 42 equal none of them."""
    values = [value for reference in references for value in _several(reference)]
    whole = [value for value in values if isinstance(value, float) and value.is_integer()]
    if scorer.description.get("built_in") in _EXACT and whole and len(whole) == len(values):
        _log.warning(
            "metric %r compares texts with references such as %r, which are floats; a text that says %d is not equal. "
            "Make them whole numbers or texts (reference=lambda row: str(int(row[...])))",
            scorer.name, whole[0], int(whole[0]),
        )  # fmt: skip


def _several(reference: Any) -> list[Any]:
    """The references of a row; one where it has one."""
    plain = plain_reference(reference)
    return plain if isinstance(plain, list) else [plain]


def _warn_of_lost_scripts(scorer: Scorer, references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Say where a built-in metric reads so little of the references that no text can score."""
    if not scorer.is_built_in:
        return
    step = max(1, len(references) // TRIED_REFERENCES)
    places = list(range(0, len(references), step))[:TRIED_REFERENCES]
    keeps_latin_only = f"{scorer.name}_multilingual" in BUILT_IN
    if keeps_latin_only:
        lost = [p for p in places if not any(map(text_scores.is_latin, reference_texts(references[p])))]
        reason, other = "keeps the letters a-z and digits only", f"{scorer.name}_multilingual"
    elif scorer.per_row is False:
        score = _own_score(scorer, [references[p] for p in places], [rows[p] for p in places])
        lost = places if score == 0.0 else []
        reason, other = "counts four words in a row, told apart by spaces", "chrf"
    else:
        lost = [p for p in places if _own_score(scorer, [references[p]], [rows[p]]) == 0.0]
        reason, other = "finds no words in them", text_scores.WITHOUT_WORDS
    if lost:
        _log.warning(
            "metric %r cannot read %d of %d references (row %s): it %s, so that not even the reference itself "
            "would score as it should; use %s",
            scorer.name,
            len(lost),
            len(places),
            ", ".join(map(str, lost[:8])) + (", …" if len(lost) > 8 else ""),
            reason,
            other,
        )


def _own_score(scorer: Scorer, references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The score of references against themselves; None where a postprocess takes no such text."""
    try:
        texts = [_as_prediction(reference) for reference in references]
        return _mean(scorer.function(texts, references, rows, made_up_completions(texts)))
    except KeyboardInterrupt:
        raise
    except BaseException:
        return None


def _check_rows(scorer: Scorer, references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rows that a built-in metric could not judge, before anything is decoded."""
    if scorer.check_row is None:
        return
    for number, (reference, row) in enumerate(zip(references, rows, strict=True)):
        try:
            scorer.check_row(reference, row)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise InputError(f"metric {scorer.name!r} cannot judge row {number}: {error}") from error


def _try_empty_text(scorer: Scorer, references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean score of empty texts; None, and a warning, where there is none."""
    try:
        answer = scorer.function(["", ""], references, rows, made_up_completions(["", ""]))
        problem = scorer.problem(answer, 2)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        answer, problem = None, f"raises {describe_error(error)}"
    if problem is None:
        return _mean(answer)
    _log.warning(
        "metric %r %s when predictions are empty; a trial whose model answers nothing will fail on such rows",
        scorer.name,
        problem,
    )
    return None


def _mean(answer: Any) -> float:
    scores = [float(answer)] if is_number(answer) else [float(score) for score in listed(answer)]
    return math.fsum(scores) / len(scores)


def _as_prediction(reference: Any) -> str:
    reference = plain_reference(reference)
    if isinstance(reference, Mapping):
        return " ".join(str(value) for value in reference.values())
    if isinstance(reference, list) and reference:
        return str(reference[0])
    return "a text" if reference is None else str(reference)

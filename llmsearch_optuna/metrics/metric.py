"""Metrics: predictions and references in, one score a row or one score of all rows out.

A metric is a built-in name, a user's function in one of three forms, or an object of the ``evaluate`` library; all
become one ``Metric``. It is tried before anything is decoded, and what it answers is checked every time. Datasets,
trials and models must not enter.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from llmsearch_optuna.errors import FOREIGN_ERRORS, DecodingError, InputError, describe_error
from llmsearch_optuna.fingerprint.functions import callable_name, describe_callable
from llmsearch_optuna.metrics import text_scores as text_scores
from llmsearch_optuna.metrics.adapters import ScoreFunction, adapted, computing
from llmsearch_optuna.metrics.checks import bad_places, count_of, is_number, listed, score_problem, short
from llmsearch_optuna.metrics.references import plain_reference, problems_of, reference_texts
from llmsearch_optuna.types import Direction

_log = logging.getLogger("llmsearch_optuna.metrics.metric")

TRIED_REFERENCES = 64
"""So many references of a built-in metric are scored against themselves before a study."""


class MetricError(DecodingError):
    """A metric that worked before the study failed on rows of it; the trial fails, the study goes on.

    Attributes:
        rows: The numbers of the rows on which it failed (dataset numbers, where the caller gave them).
    """

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One way to score predictions.

    Attributes:
        name: For tables and messages.
        function: ``(predictions, references, rows)`` to one score a row, or to one score of all.
        bounds: Lowest and highest possible score, where known: lets a search stop hopeless trials exactly.
        per_row: True for one score a row, False for a corpus metric, None for a function that was not tried yet
            (``check`` settles it).
        description: JSON-able, stable: how the metric counts in a study's fingerprint.
        check_text: Raises ValueError for the text of a reference that it cannot use; None for a user's function, of
            whose references nothing is known.
    """

    name: str
    function: ScoreFunction = field(repr=False, compare=False)
    bounds: tuple[float, float] | None = None
    per_row: bool | None = None
    description: Mapping[str, Any] = field(default_factory=dict, repr=False)
    check_text: Callable[[str], None] | None = field(default=None, repr=False, compare=False)

    @property
    def is_built_in(self) -> bool:
        """Whether it compares texts, and therefore knows what a reference must be."""
        return self.check_text is not None

    @staticmethod
    def of(
        metric: object,
        *,
        name: str | None = None,
        bounds: tuple[float, float] | None = None,
        per_row: bool | None = None,
        key: str | None = None,
    ) -> Metric:
        """Return the metric that ``metric`` stands for.

        Args:
            metric: A built-in name (see ``BUILT_IN``); a function ``fn(predictions, references)`` that returns one
                score a row (best: it can be compared row by row) or one score of all rows;
                ``scorer(y_true, y_pred)``, whose ``y_true`` is a dict a row: the reference where it names several
                columns, else the whole row; a loaded ``evaluate`` module or anything with its ``compute``.
            name: What to call it; a function's own name otherwise.
            bounds: Lowest and highest possible score. A function may carry them as an attribute ``bounds``.
            per_row: For objects with ``compute``: True calls it once a row, which gives row scores to a measure
                that means something on one row.
            key: For objects with ``compute``: which of the results counts (``"rouge1"``).

        Raises:
            InputError: An unknown name, bounds that are none, or an object that is no metric.
        """
        made = _resolve(metric, name, per_row, key)
        if bounds is None:
            bounds = made.bounds
        return replace(made, bounds=_checked_bounds(bounds, made.name))

    def after(self, postprocess: Callable[[str], str]) -> Metric:
        """Return the metric that scores what ``postprocess`` makes of a prediction."""

        def function(predictions: Sequence[str], references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> Any:
            return self.function([_processed(postprocess, text) for text in predictions], references, rows)

        described = {**self.description, "postprocess": describe_callable(postprocess)}
        return replace(self, function=function, description=described)

    def check(
        self,
        references: Sequence[Any],
        rows: Sequence[Mapping[str, Any]],
        *,
        direction: Direction | None = "maximize",
    ) -> Metric:
        """Try the metric on the first two rows, with the references as predictions, and return it with its form known.

        Args:
            references: What it is to compare with, one a row; those of a built-in metric are all looked at.
            rows: The rows themselves.
            direction: Whether a higher score is better; None where nobody said.

        Raises:
            InputError: It raised, returned a wrong number of scores, or something that is no finite number; it cannot
                use the references of some rows; or a lower score seems to be better, and nobody said so.
        """
        if not references:
            raise InputError(f"metric {self.name!r} has no rows to be tried on; give at least one row")
        self._check_references(references)
        tried = [references[0], references[min(1, len(references) - 1)]]
        tried_rows = [rows[0], rows[min(1, len(rows) - 1)]]
        predictions = [_as_prediction(reference) for reference in tried]
        try:
            answer = self.function(predictions, tried, tried_rows)
        except InputError:  # what was wrong is said already
            raise
        except FOREIGN_ERRORS as error:
            raise InputError(
                f"metric {self.name!r} fails on the first two rows: {describe_error(error)}\n"
                f"  predictions: {short(predictions)}\n  references: {short(tried)}\n"
                "Mend the metric, or give it references it can read (reference=...)."
            ) from error
        checked = self if self.per_row is not None else replace(self, per_row=not is_number(answer))
        problem = checked._problem(answer, 2)
        if problem:
            raise InputError(
                f"metric {self.name!r} cannot be used: on the first two rows it {problem}. "
                "It must return a list with one finite number a row, or one finite number for all rows."
            )
        of_empty = checked._try_empty_text(tried, tried_rows)
        if direction is None and of_empty is not None and any(reference is not None for reference in tried):
            checked._refuse_to_guess(_mean(answer), of_empty)
        checked._warn_of_lost_scripts(references, rows)
        return checked

    def _check_references(self, references: Sequence[Any]) -> None:
        if self.check_text is None:
            return
        problems = problems_of(references, self.check_text)
        if len(problems) == len(references) and len(set(problems.values())) == 1:
            raise InputError(f"metric {self.name!r} cannot use the references: {next(iter(problems.values()))}")
        if problems:
            places = list(problems)
            shown = "; ".join(f"row {place}: {problems[place]}" for place in places[:4])
            others = f"; and row {', '.join(map(str, places[4:24]))}" if len(places) > 4 else ""
            more = f" and {len(places) - 24} more" if len(places) > 24 else ""
            raise InputError(
                f"metric {self.name!r} cannot use the references of {len(places)} of {len(references)} rows: "
                f"{shown}{others}{more}. Leave these rows out, or let a function mend them (reference=lambda row: ...)."
            )

    def _refuse_to_guess(self, of_references: float, of_empty: float) -> None:
        if of_references < of_empty:
            raise InputError(
                f"metric {self.name!r} gives the references themselves {of_references:g} and empty texts {of_empty:g}, "
                "so a lower score seems to be better: say direction='minimize', or direction='maximize' if it is not"
            )

    def _warn_of_lost_scripts(self, references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Say where a built-in metric reads so little of the references that no text can score."""
        if not self.is_built_in:
            return
        step = max(1, len(references) // TRIED_REFERENCES)
        places = list(range(0, len(references), step))[:TRIED_REFERENCES]
        keeps_latin_only = f"{self.name}_multilingual" in BUILT_IN
        if keeps_latin_only:
            lost = [p for p in places if not any(map(text_scores.is_latin, reference_texts(references[p])))]
            reason, other = "keeps the letters a-z and digits only", f"{self.name}_multilingual"
        elif self.per_row is False:
            score = self._own_score([references[p] for p in places], [rows[p] for p in places])
            lost = places if score == 0.0 else []
            reason, other = "counts four words in a row, told apart by spaces", "chrf"
        else:
            lost = [p for p in places if self._own_score([references[p]], [rows[p]]) == 0.0]
            reason, other = "finds no words in them", "sentence_chrf"
        if lost:
            _log.warning(
                "metric %r cannot read %d of %d references (row %s): it %s, so that not even the reference itself "
                "would score as it should; use %s",
                self.name,
                len(lost),
                len(places),
                ", ".join(map(str, lost[:8])) + (", …" if len(lost) > 8 else ""),
                reason,
                other,
            )

    def _own_score(self, references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
        """The score of references against themselves; None where a postprocess takes no such text."""
        try:
            return _mean(self.function([_as_prediction(reference) for reference in references], references, rows))
        except FOREIGN_ERRORS:
            return None

    def score_rows(
        self,
        predictions: Sequence[str],
        references: Sequence[Any],
        rows: Sequence[Mapping[str, Any]],
        *,
        numbers: Sequence[int] | None = None,
    ) -> list[float]:
        """Return one score a row, in the order of the predictions.

        Args:
            predictions: One text a row.
            references: What the metric compares with, one a row.
            rows: The rows themselves.
            numbers: The rows' numbers for messages; their places here otherwise.

        Raises:
            MetricError: The function raised, returned a wrong number of scores, or no finite number within bounds.
        """
        if self.per_row is False:
            raise InputError(f"metric {self.name!r} scores all rows at once; it has no scores by row")
        if not predictions:
            return []
        answer = self._ask(predictions, references, rows, numbers)
        problem = self._problem(answer, len(predictions))
        if problem:
            places = (
                bad_places(answer, self.bounds) if count_of(answer) == len(predictions) else range(len(predictions))
            )
            raise self._failure(problem, list(places), numbers, predictions)
        return [float(score) for score in listed(answer)]

    def score_corpus(
        self,
        predictions: Sequence[str],
        references: Sequence[Any],
        rows: Sequence[Mapping[str, Any]],
        *,
        numbers: Sequence[int] | None = None,
    ) -> float:
        """Return one score of all rows: the mean for a metric by row, the metric's own answer otherwise.

        Raises:
            MetricError: As ``score_rows``.
        """
        if self.per_row is not False:
            scores = self.score_rows(predictions, references, rows, numbers=numbers)
            return math.fsum(scores) / len(scores)
        answer = self._ask(predictions, references, rows, numbers)
        problem = self._problem(answer, len(predictions))
        if problem:
            raise self._failure(problem, list(range(len(predictions))), numbers, predictions)
        return float(answer)

    def _ask(
        self,
        predictions: Sequence[str],
        references: Sequence[Any],
        rows: Sequence[Mapping[str, Any]],
        numbers: Sequence[int] | None,
    ) -> Any:
        try:
            return self.function(predictions, references, rows)
        except FOREIGN_ERRORS as error:
            culprits = self._culprits(predictions, references, rows)
            problem = f"raised {describe_error(error)}"
            raise self._failure(problem, culprits, numbers, predictions) from error

    def _culprits(
        self, predictions: Sequence[str], references: Sequence[Any], rows: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """Return the places on which the function fails alone; all of them when it fails only on the whole."""
        guilty = []
        for place, (prediction, reference, row) in enumerate(zip(predictions, references, rows, strict=True)):
            try:
                self.function([prediction], [reference], [row])
            except FOREIGN_ERRORS:
                guilty.append(place)
        return guilty or list(range(len(predictions)))

    def _problem(self, answer: Any, expected: int) -> str | None:
        """Say what is wrong with an answer for ``expected`` rows, or return None."""
        if self.per_row is False:
            if not is_number(answer):
                return f"returned {short(answer)} where one number was expected"
        else:
            count = count_of(answer)
            if count is None:
                return f"returned {short(answer)} where {expected} scores were expected"
            if count != expected:
                return f"returned {count} scores for {expected} rows"
        for score in [answer] if self.per_row is False else listed(answer):
            problem = score_problem(score, self.bounds)
            if problem:
                return f"returned {problem}"
        return None

    def _failure(
        self, problem: str, places: Sequence[int], numbers: Sequence[int] | None, predictions: Sequence[str]
    ) -> MetricError:
        named = [numbers[place] if numbers is not None else place for place in places]
        where = f"row {named[0]}" if len(named) == 1 else f"rows {', '.join(map(str, named[:8]))}"
        more = f" and {len(named) - 8} more" if len(named) > 8 else ""
        shown = f" (its prediction: {short(predictions[places[0]])})" if len(named) == 1 else ""
        return MetricError(f"metric {self.name!r} {problem} on {where}{more}{shown}", named)

    def _try_empty_text(self, references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
        """The mean score of empty texts; None, and a warning, where there is none."""
        try:
            answer = self.function(["", ""], references, rows)
            problem = self._problem(answer, 2)
        except FOREIGN_ERRORS as error:
            answer, problem = None, f"raises {describe_error(error)}"
        if problem is None:
            return _mean(answer)
        _log.warning(
            "metric %r %s when predictions are empty; a trial whose model answers nothing will fail on such rows",
            self.name,
            problem,
        )
        return None


def _mean(answer: Any) -> float:
    scores = [float(answer)] if is_number(answer) else [float(score) for score in listed(answer)]
    return math.fsum(scores) / len(scores)


def _processed(postprocess: Callable[[str], str], text: str) -> str:
    try:
        processed = postprocess(text)
    except FOREIGN_ERRORS as error:
        raise RuntimeError(f"postprocess raised {describe_error(error)}") from error
    if not isinstance(processed, str):
        raise TypeError(f"postprocess must return a text, but returned {short(processed)}")
    return processed


def _any_text(_: str) -> None:
    """Most metrics can use any text."""


def _by_row(
    name: str,
    score: Callable[[str, str], float],
    upper: float,
    *,
    check_text: Callable[[str], None] = _any_text,
    **options: Any,
) -> Metric:
    """Make a built-in metric by row; where a row has several references the best counts."""

    def function(predictions: Sequence[str], references: Sequence[Any], rows: object) -> list[float]:
        return [
            max(score(prediction, text) for text in reference_texts(reference))
            for prediction, reference in zip(predictions, references, strict=True)
        ]

    return _built_in(name, function, upper, per_row=True, check_text=check_text, **options)


def _built_in(
    name: str,
    function: ScoreFunction,
    upper: float,
    *,
    per_row: bool,
    check_text: Callable[[str], None] = _any_text,
    **options: Any,
) -> Metric:
    return Metric(
        name=name,
        function=function,
        bounds=(0.0, upper),
        per_row=per_row,
        description={"built_in": name, **options},
        check_text=check_text,
    )


def rouge(kind: str, *, use_stemmer: bool = True, multilingual: bool = False) -> Metric:
    """Return ``rouge1``, ``rouge2`` or ``rougeL`` by row.

    Args:
        kind: Which of the three.
        use_stemmer: Stem English words (the built-in names do).
        multilingual: Split texts into the words of any script, instead of keeping the letters a-z only; nothing is
            stemmed then (``rouge1_multilingual`` and so on).
    """
    if kind not in ("rouge1", "rouge2", "rougeL"):
        raise InputError(f"unknown ROUGE {kind!r}; give rouge1, rouge2 or rougeL")

    def score(prediction: str, reference: str) -> float:
        return text_scores.rouge(kind, use_stemmer=use_stemmer, multilingual=multilingual)(prediction, reference)

    if multilingual:
        return _by_row(f"{kind}_multilingual", score, 1.0)
    return _by_row(kind, score, 1.0, use_stemmer=use_stemmer)


def _last_number() -> Metric:
    def check_text(reference: str) -> None:
        if text_scores.find_last_number(reference) is None:
            raise ValueError(f"the reference {short(reference)} has no number")

    def score(prediction: str, reference: str) -> float:
        check_text(reference)
        return text_scores.last_number(prediction, reference)

    return _by_row("last_number", score, 1.0, check_text=check_text)


def _sentence(name: str, score: Callable[[str, Sequence[str]], float]) -> Metric:
    def function(predictions: Sequence[str], references: Sequence[Any], rows: object) -> list[float]:
        pairs = zip(predictions, references, strict=True)
        return [score(prediction, reference_texts(reference)) for prediction, reference in pairs]

    return _built_in(name, function, 100.0, per_row=True)


def _corpus(name: str, score: Callable[[Sequence[str], Sequence[Sequence[str]]], float]) -> Metric:
    def function(predictions: Sequence[str], references: Sequence[Any], rows: object) -> float:
        return score(predictions, [reference_texts(reference) for reference in references])

    return _built_in(name, function, 100.0, per_row=False)


BUILT_IN: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            rouge("rouge1"),
            rouge("rouge2"),
            rouge("rougeL"),
            rouge("rouge1", multilingual=True),
            rouge("rouge2", multilingual=True),
            rouge("rougeL", multilingual=True),
            _corpus("bleu", text_scores.corpus_bleu),
            _corpus("chrf", text_scores.corpus_chrf),
            _sentence("sentence_bleu", text_scores.sentence_bleu),
            _sentence("sentence_chrf", text_scores.sentence_chrf),
            _by_row("exact_match", text_scores.exact_match, 1.0),
            _by_row("contains", text_scores.contains, 1.0),
            _last_number(),
            _by_row("f1", text_scores.f1, 1.0),
        )
    }
)
"""The metrics known by name: 0..1, but sacrebleu's ``bleu`` and ``chrf`` (of the corpus) and their ``sentence_``
forms (by row, so that trials can be compared row by row) 0..100. Where a row has several references the best counts."""


def _resolve(metric: object, name: str | None, per_row: bool | None, key: str | None) -> Metric:
    if isinstance(metric, Metric):
        return replace(metric, name=name or metric.name)
    if isinstance(metric, str):
        return _by_name(metric)
    if callable(getattr(metric, "compute", None)):
        return _from_compute(metric, name, per_row, key)
    if callable(metric):
        return _from_function(metric, name, per_row)
    raise InputError(
        f"metric={metric!r} is no metric: give one of {', '.join(BUILT_IN)}, a function(predictions, references), "
        "or a loaded evaluate module"
    )


def _by_name(name: str) -> Metric:
    if name in BUILT_IN:
        return BUILT_IN[name]
    near = difflib.get_close_matches(name.lower(), BUILT_IN, n=1, cutoff=0.5)
    folded = {known.lower(): known for known in BUILT_IN}
    suggestion = folded.get(name.lower()) or (near[0] if near else None)
    hint = f"did you mean {suggestion!r}? " if suggestion else ""
    raise InputError(
        f"unknown metric {name!r}: {hint}Built in are {', '.join(BUILT_IN)}. "
        "Others: pass a function(predictions, references), or evaluate.load(name)."
    )


def _from_function(function: Callable[..., Any], name: str | None, per_row: bool | None) -> Metric:
    called = name or callable_name(function, "metric")
    bounds = getattr(function, "bounds", None)
    description = {"name": name} if name else describe_callable(function)
    return Metric(
        name=called,
        function=adapted(function),
        bounds=_checked_bounds(bounds, called),
        per_row=per_row,
        description=description,
    )


def _from_compute(module: Any, name: str | None, per_row: bool | None, key: str | None) -> Metric:
    module_name = str(getattr(module, "name", None) or type(module).__name__)
    called = name or key or module_name
    version = getattr(module, "_hash", None) or getattr(module, "hash", None)
    return Metric(
        name=called,
        function=computing(module, key=key, per_row=per_row, name=module_name),
        bounds=_checked_bounds(getattr(module, "bounds", None), called),
        per_row=per_row,
        description={"compute": module_name, "key": key, "per_row": per_row, "version": version and str(version)},
    )


def _as_prediction(reference: Any) -> str:
    reference = plain_reference(reference)
    if isinstance(reference, Mapping):
        return " ".join(str(value) for value in reference.values())
    if isinstance(reference, list) and reference:
        return str(reference[0])
    return "a text" if reference is None else str(reference)


def _checked_bounds(bounds: Any, name: str) -> tuple[float, float] | None:
    if bounds is None:
        return None
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        raise InputError(f"bounds={bounds!r} of metric {name!r} must be two numbers, such as (0, 1)") from None
    if not low < high:
        raise InputError(f"bounds={bounds!r} of metric {name!r}: the lower bound must be below the upper one")
    return low, high

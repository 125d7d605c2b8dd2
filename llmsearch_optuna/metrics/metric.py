"""Metrics: predictions and references in, one score a row or one score of all rows out.

A metric is a built-in name, a user's function in one of three forms, or an object of the ``evaluate`` library; all
become one ``Metric``. It is tried before anything is decoded, and what it answers is checked every time. Datasets,
trials and models must not enter.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmsearch_optuna.errors import FOREIGN_ERRORS, DecodingError, InputError, describe_error
from llmsearch_optuna.fingerprint.functions import callable_name, describe_callable
from llmsearch_optuna.metrics import text_scores as text_scores
from llmsearch_optuna.metrics.adapters import ScoreFunction, adapted, asks_for_completions, computing
from llmsearch_optuna.metrics.checks import bad_places, count_of, is_number, listed, score_problem, short
from llmsearch_optuna.metrics.factories import COMBINING, FACTORIES, made, unknown
from llmsearch_optuna.metrics.references import plain_reference, problems_of, reference_texts
from llmsearch_optuna.types import Direction

if TYPE_CHECKING:
    from llmsearch_optuna.engine.request import Completion

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
        function: ``(predictions, references, rows, completions)`` to one score a row, or to one score of all.
        bounds: Lowest and highest possible score, where known: lets a search stop hopeless trials exactly.
        per_row: True for one score a row, False for a corpus metric, None for a function that was not tried yet
            (``check`` settles it).
        description: JSON-able, stable: how the metric counts in a study's fingerprint.
        check_text: Raises ValueError for the text of a reference that it cannot use; None for a user's function, of
            whose references nothing is known.
        reads_completions: Whether the function looks at the completions; where it does not, it may be given none.
        check_row: Raises for a reference and its row that the metric cannot use; None for a function that may use any.
        columns: The columns of the rows that a built-in metric looks at, beside the reference.
    """

    name: str
    function: ScoreFunction = field(repr=False, compare=False)
    bounds: tuple[float, float] | None = None
    per_row: bool | None = None
    description: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    reads_completions: bool = field(default=False, repr=False)
    check_row: Callable[[Any, Mapping[str, Any]], object] | None = field(default=None, repr=False, compare=False)
    columns: tuple[str, ...] = field(default=(), repr=False)
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
        options: Mapping[str, Any] | None = None,
    ) -> Metric:
        """Return the metric that ``metric`` stands for.

        Args:
            metric: A built-in name (see `metric_names`); a function ``fn(predictions, references)`` that returns one
                score a row (best: it can be compared row by row) or one score of all rows;
                ``scorer(y_true, y_pred)``, whose ``y_true`` is a dict a row: the reference where it names several
                columns, else the whole row; a loaded ``evaluate`` module or anything with its ``compute``.
                A function that names ``completions`` beside ``predictions`` and ``references`` (or ``y_true`` and
                ``y_pred``) is given the `Completion` of each row too: its text as it was decoded, its tokens, and
                why it ended. A dict of such metrics and their weights is the weighted mean of their scores a row.
            name: What to call it; a function's own name otherwise.
            bounds: Lowest and highest possible score. A function may carry them as an attribute ``bounds``.
            per_row: For objects with ``compute``: True calls it once a row, which gives row scores to a measure
                that means something on one row.
            key: For objects with ``compute``: which of the results counts (``"rouge1"``).
            options: Of a built-in metric, such as ``{"schema": "schema.json"}`` of ``json_schema``; of several, by
                their names.

        Raises:
            InputError: An unknown name, bounds that are none, or an object that is no metric.
        """
        found = _resolve(metric, name, per_row, key, options)
        if bounds is None:
            bounds = found.bounds
        return replace(found, bounds=_checked_bounds(bounds, found.name))

    def after(self, postprocess: Callable[[str], str]) -> Metric:
        """Return the metric that scores what ``postprocess`` makes of a prediction; completions stay as they are."""

        def function(
            predictions: Sequence[str],
            references: Sequence[Any],
            rows: Sequence[Mapping[str, Any]],
            completions: Sequence[Completion],
        ) -> Any:
            return self.function([_processed(postprocess, text) for text in predictions], references, rows, completions)

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
        self._check_rows(references, rows)
        try:
            answer = self.function(predictions, tried, tried_rows, made_up_completions(predictions))
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
        is_foreign = "built_in" not in self.description
        if direction is None and is_foreign and of_empty is not None and any(r is not None for r in tried):
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
            texts = [_as_prediction(reference) for reference in references]
            return _mean(self.function(texts, references, rows, made_up_completions(texts)))
        except FOREIGN_ERRORS:
            return None

    def _check_rows(self, references: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuse rows that a built-in metric could not judge, before anything is decoded."""
        if self.check_row is None:
            return
        for number, (reference, row) in enumerate(zip(references, rows, strict=True)):
            try:
                self.check_row(reference, row)
            except FOREIGN_ERRORS as error:
                raise InputError(f"metric {self.name!r} cannot judge row {number}: {error}") from error

    def score_rows(
        self,
        predictions: Sequence[str],
        references: Sequence[Any],
        rows: Sequence[Mapping[str, Any]],
        *,
        completions: Sequence[Completion] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[float]:
        """Return one score a row, in the order of the predictions.

        Args:
            predictions: One text a row.
            references: What the metric compares with, one a row.
            rows: The rows themselves.
            completions: As they were decoded, one a row; only a metric that reads them needs them.
            numbers: The rows' numbers for messages; their places here otherwise.

        Raises:
            InputError: It scores all rows at once, or reads completions, and there are none.
            MetricError: The function raised, returned a wrong number of scores, or no finite number within bounds.
        """
        if self.per_row is False:
            raise InputError(f"metric {self.name!r} scores all rows at once; it has no scores by row")
        if not predictions:
            return []
        answer = self._ask(predictions, references, rows, completions, numbers)
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
        completions: Sequence[Completion] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> float:
        """Return one score of all rows: the mean for a metric by row, the metric's own answer otherwise.

        Raises:
            MetricError: As ``score_rows``.
        """
        if self.per_row is not False:
            scores = self.score_rows(predictions, references, rows, completions=completions, numbers=numbers)
            return math.fsum(scores) / len(scores)
        answer = self._ask(predictions, references, rows, completions, numbers)
        problem = self._problem(answer, len(predictions))
        if problem:
            raise self._failure(problem, list(range(len(predictions))), numbers, predictions)
        return float(answer)

    def _ask(
        self,
        predictions: Sequence[str],
        references: Sequence[Any],
        rows: Sequence[Mapping[str, Any]],
        completions: Sequence[Completion] | None,
        numbers: Sequence[int] | None,
    ) -> Any:
        if completions is None and self.reads_completions:
            raise InputError(f"metric {self.name!r} reads how the texts were decoded; give completions=")
        decoded: Sequence[Any] = (None,) * len(predictions) if completions is None else completions
        try:
            return self.function(predictions, references, rows, decoded)
        except FOREIGN_ERRORS as error:
            culprits = self._culprits(predictions, references, rows, decoded)
            problem = f"raised {describe_error(error)}"
            raise self._failure(problem, culprits, numbers, predictions) from error

    def _culprits(
        self,
        predictions: Sequence[str],
        references: Sequence[Any],
        rows: Sequence[Mapping[str, Any]],
        completions: Sequence[Any],
    ) -> list[int]:
        """Return the places on which the function fails alone; all of them when it fails only on the whole."""
        guilty = []
        for place in range(len(predictions)):
            one = slice(place, place + 1)
            try:
                self.function(predictions[one], references[one], rows[one], completions[one])
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
            answer = self.function(["", ""], references, rows, made_up_completions(["", ""]))
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


def made_up_completions(texts: Sequence[str]) -> list[Completion]:
    """Return completions to try a metric with: a token for each word, and one that ends the text."""
    from llmsearch_optuna.engine.request import Completion

    return [Completion(text, tuple(range(1 + len(text.split()))), prompt_tokens=1) for text in texts]


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

    def function(
        predictions: Sequence[str], references: Sequence[Any], rows: object, completions: object
    ) -> list[float]:
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
    def function(
        predictions: Sequence[str], references: Sequence[Any], rows: object, completions: object
    ) -> list[float]:
        pairs = zip(predictions, references, strict=True)
        return [score(prediction, reference_texts(reference)) for prediction, reference in pairs]

    return _built_in(name, function, 100.0, per_row=True)


def _corpus(name: str, score: Callable[[Sequence[str], Sequence[Sequence[str]]], float]) -> Metric:
    def function(predictions: Sequence[str], references: Sequence[Any], rows: object, completions: object) -> float:
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


def _resolve(
    metric: object, name: str | None, per_row: bool | None, key: str | None, options: Mapping[str, Any] | None
) -> Metric:
    if isinstance(metric, Mapping):
        several: Metric = COMBINING[0](metric, options)
        return several if name is None else replace(several, name=name)
    if isinstance(metric, str):
        known = _by_name(metric, options or {})
        return known if name is None else replace(known, name=name)
    if options:
        raise InputError(f"options {', '.join(options)} are for a metric that is given by its name")
    if isinstance(metric, Metric):
        return replace(metric, name=name or metric.name)
    if callable(getattr(metric, "compute", None)):
        return _from_compute(metric, name, per_row, key)
    if callable(metric):
        return _from_function(metric, name, per_row)
    raise InputError(
        f"metric={metric!r} is no metric: give one of {', '.join(metric_names())}, "
        "a function(predictions, references), "
        "or a loaded evaluate module"
    )


def _by_name(name: str, options: Mapping[str, Any]) -> Metric:
    if name in FACTORIES:
        found: Metric = made(name, options)
        return found
    if name not in BUILT_IN:
        raise unknown(name, metric_names())
    if options:
        raise InputError(f"metric {name!r} takes no options, and was given {', '.join(options)}")
    return BUILT_IN[name]


def metric_names() -> tuple[str, ...]:
    """Return the names of all metrics that are known by one."""
    return (*BUILT_IN, *FACTORIES)


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
        reads_completions=asks_for_completions(function),
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

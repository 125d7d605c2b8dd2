"""The metrics that compare texts and are known by a name alone.

Scores are 0..1, but sacrebleu's ``bleu`` and ``chrf`` (of the corpus) and their ``sentence_`` forms (by row, so that
trials can be compared row by row) 0..100. Where a row has several references the best counts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics import text_scores
from llmsearch_optuna.metrics.adapters import ScoreFunction
from llmsearch_optuna.metrics.checks import short
from llmsearch_optuna.metrics.factories import BUILT_IN
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.references import reference_texts


def _any_text(_: str) -> None:
    """Most metrics can use any text."""


def _by_row(
    name: str,
    score: Callable[[str, str], float],
    upper: float,
    *,
    check_text: Callable[[str], None] = _any_text,
    answer: Callable[[str], Hashable | None] | None = None,
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

    return _built_in(name, function, upper, per_row=True, check_text=check_text, answer=answer, **options)


def _built_in(
    name: str,
    function: ScoreFunction,
    upper: float,
    *,
    per_row: bool,
    check_text: Callable[[str], None] = _any_text,
    answer: Callable[[str], Hashable | None] | None = None,
    **options: Any,
) -> Metric:
    return Metric(
        name=name,
        function=function,
        bounds=(0.0, upper),
        per_row=per_row,
        description={"built_in": name, **options},
        check_text=check_text,
        answer=answer,
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

    return _by_row("last_number", score, 1.0, check_text=check_text, answer=text_scores.find_last_number)


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


BUILT_IN.update(
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
            _by_row("exact_match", text_scores.exact_match, 1.0, answer=text_scores.exact_answer),
            _by_row("contains", text_scores.contains, 1.0),
            _last_number(),
            _by_row("f1", text_scores.f1, 1.0, answer=text_scores.f1_answer),
        )
    }
)

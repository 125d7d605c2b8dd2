"""Several studies of the same data side by side: what each recommends, compared row by row.

Two models, two prompts, two spaces. Nothing is decoded: the rows that both have are paired. Rows of the holdout are
taken where every study has them for what it recommends. Where studies of two halves recommend winners of different
ones, each row counts with the winner that was not chosen on it. Where a study has no such rows, the best trials are
compared on the search rows, whose scores are biased upwards, since they were searched on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llmsearch_optuna.analysis.view import StudyView
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.stats.comparison import compare
from llmsearch_optuna.stats.paired_tests import FEWEST_CLUSTERS
from llmsearch_optuna.stats.verdict import Verdict
from llmsearch_optuna.storage.records import Part, as_stored
from llmsearch_optuna.storage.row_record import score_table

FEWEST_ROWS = 2

ComparedPart = Part | Literal["halves"]
"""Which rows are compared; ``"halves"``: all that judge, each with the winner that was not chosen on it."""


@dataclass(frozen=True)
class Compared:
    """One study among others.

    Attributes:
        name: Its name, told apart from equal ones.
        result: The study.
        trial: The number of the trial that is compared: on the holdout the one that it recommends, on search rows its
            best one, which need not be the same.
        scores: Row number -> score of that trial, or of the winner that judges the row.
        winners: Where each row counts with the winner that was not chosen on it: their numbers.
    """

    name: str
    result: StudyView
    trial: int
    scores: Mapping[int, float]
    winners: tuple[int, ...] = ()

    def table(self, rows: Sequence[int], part: ComparedPart) -> list[list[float]]:
        """Scores [rows][replicates] of what is compared; one that was decoded once stands for each replicate."""
        kept: Part = "search" if part == "search" else "holdout"
        numbers = self.winners or (self.trial,)
        found = score_table([record for number in numbers for record in self.result.records(number, kept)], rows)
        most = max(map(len, found))
        return [scores * most if len(scores) == 1 else scores for scores in found]


@dataclass(frozen=True)
class Comparison:
    """Studies on the same rows.

    Attributes:
        metric: What all are scored by.
        minimize: Whether a lower score is better.
        part: Which rows were compared: the holdout's, those of both halves, or those of the search.
        rows: Their numbers.
        studies: The first one is what the others are compared with.
        pairs: Each later study against the first: differences are its scores minus the first one's.
    """

    metric: str
    minimize: bool
    part: ComparedPart
    rows: tuple[int, ...]
    studies: tuple[Compared, ...]
    pairs: tuple[Verdict, ...]

    def mean(self, study: Compared) -> float:
        """A study's score on the common rows."""
        return sum(study.scores[row] for row in self.rows) / len(self.rows)

    @property
    def caution(self) -> str | None:
        """What to know before anything is read into the differences; None where there are rows enough."""
        prompts = self.pairs[0].prompts
        if prompts >= FEWEST_CLUSTERS:
            return None
        return (
            f"{prompts} different prompts are too few to show anything ({FEWEST_CLUSTERS} are the least): give the "
            "studies the same seed and holdout, so that they hold out the same rows"
        )


def compare_studies(results: Sequence[StudyView]) -> Comparison:
    """Pair what studies recommend by row; their best trials where only search rows are common to them.

    Args:
        results: Two or more, with at least one complete trial each.

    Raises:
        InputError: They have other data, metrics or directions, or no rows in common.
        StudyError: One of them has no complete trial.
    """
    if len(results) < 2:
        raise InputError("give at least two studies to compare")
    _check_alike(results)
    parts: tuple[ComparedPart, ...] = ("holdout", "halves", "search")
    for part in parts:
        studies = [_compared(result, name, part) for result, name in zip(results, _names(results), strict=True)]
        rows = sorted(set.intersection(*(set(study.scores) for study in studies)))
        if len(rows) >= FEWEST_ROWS:
            return _comparison(studies, rows, part)
    raise InputError(
        f"the studies have no {FEWEST_ROWS} scored rows in common: they were split with other seeds or shares, or "
        "their metric scores all rows at once"
    )


def _comparison(studies: Sequence[Compared], rows: Sequence[int], part: ComparedPart) -> Comparison:
    first = studies[0].result
    items, bounds = first.items, first.settings.get("metric_bounds")
    minimize = first.direction == "minimize"
    pairs = [
        compare(
            studies[0].table(rows, part),
            study.table(rows, part),
            prompts=[as_stored(items[row].columns) for row in rows],
            bounds=None if bounds is None else (float(bounds[0]), float(bounds[1])),
            direction="minimize" if minimize else "maximize",
        )
        for study in studies[1:]
    ]
    return Comparison(str(first.settings["metric"]), minimize, part, tuple(rows), tuple(studies), tuple(pairs))


def _compared(result: StudyView, name: str, part: ComparedPart) -> Compared:
    winner = result.best_trial.number
    verdict = result.verdict
    recommends_winner = verdict is not None and verdict.recommends_winner
    compared = winner if part == "search" or recommends_winner else 0
    if part == "halves" and result.halves and recommends_winner:
        winners = tuple(dict.fromkeys(result.looks[-1].winners))
        scores = {row: score for number in winners for row, score in result.row_scores(number, "holdout").items()}
        return Compared(name, result, compared, scores, winners)
    return Compared(name, result, compared, result.row_scores(compared, "search" if part == "search" else "holdout"))


def _check_alike(results: Sequence[StudyView]) -> None:
    first, *others = results
    for other in others:
        for what in ("metric", "direction"):
            mine, theirs = first.settings.get(what), other.settings.get(what)
            if mine != theirs:
                raise InputError(
                    f"{_name(first)} has {what} {mine!r} and {_name(other)} {theirs!r}: their scores cannot be compared"
                )
        _check_data(first, other)


def _check_data(first: StudyView, other: StudyView) -> None:
    ours, theirs = first.items, other.items
    for row in sorted(ours.keys() & theirs.keys()):
        mine, their = ours[row], theirs[row]
        if as_stored([mine.columns, mine.reference]) != as_stored([their.columns, their.reference]):
            raise InputError(
                f"{_name(first)} and {_name(other)} have other data: row {row} differs. Compare studies of the same "
                "dataset, with the same references"
            )


def _name(result: StudyView) -> str:
    return repr(result.study.study_name)


def _names(results: Sequence[StudyView]) -> list[str]:
    names = [result.study.study_name for result in results]
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, start=1)]

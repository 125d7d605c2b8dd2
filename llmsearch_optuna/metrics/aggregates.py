"""What the score of a row is made of where it has several samples: pass@k, a majority vote, the best of n, or the mean.

An aggregate is a metric over the samples of a row, so that whatever compares rows knows nothing of samples. Where
nothing is sampled a row has one text, which stands for as many equal ones.
"""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from llmsearch_optuna.errors import InputError, describe_error, is_one_of, short
from llmsearch_optuna.fingerprint.functions import callable_name, describe_callable
from llmsearch_optuna.metrics.metric import Metric, answer_of
from llmsearch_optuna.metrics.scoring import Answers, MetricError
from llmsearch_optuna.types import Direction

if TYPE_CHECKING:
    from llmsearch_optuna.engine.request import Completion

MEAN, PASS, MAJORITY, BEST = "mean", "pass", "majority", "best"

_TAKE_SILENCE_FOR_A_REFERENCE = ("tool_call",)
"""Metrics that a row without a reference tells something: that no call is right."""

_PASS = re.compile(r"pass(?:@([1-9][0-9]{0,3}))?")


@dataclass(frozen=True)
class Aggregate:
    """How samples become one score, as a user says it.

    Attributes:
        kind: ``"mean"``, ``"pass"``, ``"majority"`` or ``"best"``.
        tries: The k of pass@k; None for as many as there are samples.
        pass_score: The least score that passes.
        scorer: Tells which sample is the best, without the reference; None for any other kind.
    """

    kind: str = MEAN
    tries: int | None = None
    pass_score: float = 1.0
    scorer: Metric | None = None

    @classmethod
    def of(cls, aggregate: Any = None, *, scorer: Any = None, pass_score: float | None = None) -> Aggregate:
        """Check what a user gave.

        Args:
            aggregate: ``"mean"``, ``"pass"``, ``"pass@k"`` with a number, ``"majority"`` or ``"best"``.
            scorer: Of ``"best"``: a metric that needs no reference, or a function of a completion's text.
            pass_score: Of ``"pass"``: the least score that passes; 1 by default.

        Raises:
            InputError: There is no such aggregate, or it lacks its scorer, or is given what it has no use for.
        """
        given = MEAN if aggregate is None else aggregate
        passed = _PASS.fullmatch(given) if isinstance(given, str) else None
        kind = PASS if passed else given
        if not is_one_of(kind, MEAN, PASS, MAJORITY, BEST):
            raise InputError(
                f"aggregate={short(given)} must be 'mean', 'pass' (or 'pass@k', such as 'pass@1'), 'majority' or 'best'"
            )
        if (scorer is not None) != (kind == BEST):
            raise InputError(
                "aggregate='best' needs scorer=: a metric without a reference, such as 'json_valid', or a function of "
                "a completion's text"
                if kind == BEST
                else f"scorer={short(scorer)} has no effect with aggregate={given!r}: it tells which sample is 'best'"
            )
        if pass_score is not None and kind != PASS:
            raise InputError(f"pass_score={short(pass_score)} has no effect with aggregate={given!r}, only with 'pass'")
        tries = int(passed[1]) if passed and passed[1] else None
        return cls(kind, tries, 1.0 if pass_score is None else float(pass_score), _scorer(scorer))

    @property
    def name(self) -> str:
        """As users write it."""
        return self.kind if self.tries is None else f"{self.kind}@{self.tries}"

    def after(self, postprocess: Callable[[str], str]) -> Aggregate:
        """Return it with a scorer that sees what ``postprocess`` makes of a text."""
        scorer = None if self.scorer is None else self.scorer.after(postprocess)
        return Aggregate(self.kind, self.tries, self.pass_score, scorer)

    def over(
        self, metric: Metric, rows: Sequence[Mapping[str, Any]], *, direction: Direction, hidden: Sequence[str] | None
    ) -> Metric:
        """Return the metric that scores all samples of a row at once.

        Args:
            metric: Scores a completion; tried.
            rows: The rows of the task; the scorer is tried on them.
            direction: Of the score.
            hidden: The columns that the reference is made of, which the scorer does not see; None for all of them.

        Raises:
            InputError: The metric scores all rows at once, or the scorer cannot be used.
        """
        if self.kind == MEAN:
            return metric
        if metric.per_row is False:
            raise InputError(
                f"aggregate={self.name!r} makes one score of a row's samples, and {metric.name} scores all rows at once"
            )
        if self.kind == PASS and direction == "minimize":
            raise InputError("aggregate='pass' counts scores that are high enough, and here lower ones are better")
        scorer = None if self.scorer is None else self._tried_scorer(self.scorer, rows, hidden)
        return _aggregated(Aggregate(self.kind, self.tries, self.pass_score, scorer), metric, hidden)

    @staticmethod
    def _tried_scorer(scorer: Metric, rows: Sequence[Mapping[str, Any]], hidden: Sequence[str] | None) -> Metric:
        shown = [_without(row, hidden) for row in rows]
        try:
            if scorer.is_built_in or scorer.description.get("built_in") in _TAKE_SILENCE_FOR_A_REFERENCE:
                raise InputError("it compares a text with a reference")
            checked = scorer.check([None] * len(rows), shown, direction="maximize")
        except InputError as problem:
            raise InputError(
                f"scorer={scorer.name!r} chooses a sample without the reference, and cannot be used for that: {problem}"
            ) from None
        if checked.per_row is False:
            raise InputError(f"scorer={scorer.name!r} scores all rows at once; it must give each text a score")
        return checked

    @property
    def description(self) -> dict[str, Any]:
        """How it counts in a study's fingerprint."""
        described: dict[str, Any] = {"kind": self.name}
        if self.kind == PASS:
            described["pass_score"] = self.pass_score
        if self.scorer is not None:
            described["scorer"] = {"name": self.scorer.name, **self.scorer.description}
        return described


@dataclass(frozen=True, kw_only=True)
class AggregatedMetric(Metric):
    """A metric over all samples of a row.

    Attributes:
        single: Scores one completion.
        aggregate: What is made of the samples.
        hidden: The columns that the scorer does not see; None for all.
    """

    single: Metric
    aggregate: Aggregate
    hidden: tuple[str, ...] | None = field(default=None, repr=False)

    @property
    def is_built_in(self) -> bool:
        """Whether the metric of one completion compares texts."""
        return self.single.is_built_in

    @property
    def part_names(self) -> tuple[str, ...]:
        """Of the metric of one completion."""
        return self.single.part_names

    @property
    def fewest_samples(self) -> int:
        """How many samples it takes at least, where something is sampled."""
        return self.aggregate.tries or 1

    def scores_of(self, answers: Answers) -> list[float]:
        """Return one score a row."""
        return self.scores_and_parts(answers)[0]

    def scores_and_parts(self, answers: Answers) -> tuple[list[float], dict[str, list[float]]]:
        """Return one score a row, and those of a weighted metric's parts: of the chosen sample, or means over all."""
        if not answers.predictions:
            return [], {name: [] for name in self.part_names}
        if self.aggregate.kind != PASS:
            return self.single.scores_and_parts(answers.chosen(self.chosen(answers)))
        scores, parts = self.single.scores_and_parts(answers.by_sample())
        rates = [self._pass_rate(of_row) for of_row in answers.of_rows(scores)]
        means = {name: [math.fsum(of) / len(of) for of in answers.of_rows(found)] for name, found in parts.items()}
        return rates, means

    def chosen(self, answers: Answers) -> list[int]:
        """Return which sample of each row stands for the row, by its place; of pass@k that is the first.

        Raises:
            MetricError: The scorer, or what tells answers, failed; names the rows.
        """
        if self.aggregate.kind == MAJORITY:
            return [majority(votes) for votes in self.votes(answers)]
        if self.aggregate.kind == BEST:
            return self._best(answers)
        return [0] * len(answers)

    def votes(self, answers: Answers) -> list[list[Hashable | None]]:
        """Return what each sample of each row answers; None for one without an answer."""
        found, numbers = [], range(len(answers)) if answers.numbers is None else answers.numbers
        for number, samples in zip(numbers, answers.sampled, strict=True):
            try:
                votes = [answer_of(self.single, completion.text) for completion in samples]
                hash(tuple(votes))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise MetricError(
                    f"what samples answer cannot be told on row {number} ({self.single.name}): {describe_error(error)}",
                    [number],
                ) from error
            found.append(votes)
        return found

    def _best(self, answers: Answers) -> list[int]:
        assert self.aggregate.scorer is not None
        flat = answers.by_sample()
        scores = self.aggregate.scorer.scores_of(
            Answers(
                predictions=flat.predictions,
                references=[None] * len(flat),
                rows=[_without(row, self.hidden) for row in flat.rows],
                completions=flat.completions,
                numbers=flat.numbers,
            )
        )
        return [of_row.index(max(of_row)) for of_row in map(list, answers.of_rows(scores))]

    def _pass_rate(self, scores: Sequence[float]) -> float:
        passed = sum(score >= self.aggregate.pass_score for score in scores)
        if len(scores) == 1:  # nothing is sampled: all samples are this one
            return float(passed)
        return pass_at(self.aggregate.tries or len(scores), samples=len(scores), passed=passed)


def votes_in_words(metric: Metric | None, completions: Sequence[Completion]) -> str:
    """Return how many samples there are and, where they vote, for what, the most votes first; empty for one sample.

    Args:
        metric: The study's; None where it is not known.
        completions: The samples of a row.
    """
    if len(completions) == 1:
        return ""
    text = f"{len(completions)} samples"
    if not isinstance(metric, AggregatedMetric) or metric.aggregate.kind != MAJORITY:
        return text
    votes = [answer_of(metric.single, completion.text) for completion in completions]
    counts = Counter(vote for vote in votes if vote is not None)
    told = [f"{count} for {_label(vote, completions[votes.index(vote)])}" for vote, count in counts.most_common()]
    told += [f"{votes.count(None)} without an answer"] if None in votes else []
    return f"{text}: {', '.join(told)}"


def _label(vote: Hashable, completion: Completion) -> str:
    """An answer as people read it: itself where it is plain, else the first text that gives it."""
    plain = vote if isinstance(vote, str | bool | int | float | Decimal) else completion.text.strip()
    return short(plain if isinstance(plain, str) else str(plain), 60)


def pass_at(k: int, *, samples: int, passed: int) -> float:
    """Return the unbiased pass@k: the chance that k of the samples, drawn without putting back, hold one that passed.

    >>> pass_at(1, samples=4, passed=1), pass_at(2, samples=4, passed=1), pass_at(4, samples=4, passed=1)
    (0.25, 0.5, 1.0)

    Source: Chen et al. 2021, https://arxiv.org/abs/2107.03374, equation 1.

    Args:
        k: How many are drawn, at most as many as there are.
        samples: How many there are.
        passed: How many of them passed.
    """
    if not 1 <= k <= samples:
        raise InputError(f"pass@{k} takes at least {k} samples, and there are {samples}")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def majority(votes: Sequence[Hashable | None]) -> int:
    """Return the place of the first vote for the answer that most votes are for; of equals the one that comes first.

    None is no vote; where there is none, the first place stands.

    >>> majority(["a", "b", None, "b"]), majority(["a", "b"]), majority([None, None])
    (1, 0, 0)
    """
    counts = Counter(vote for vote in votes if vote is not None)
    return votes.index(counts.most_common(1)[0][0]) if counts else 0


def _aggregated(aggregate: Aggregate, metric: Metric, hidden: Sequence[str] | None) -> AggregatedMetric:
    described: dict[str, Any] = {**metric.description, "aggregate": aggregate.description}
    if aggregate.scorer is not None and "built_in" not in aggregate.scorer.description:
        described["single"] = described.pop("built_in", None)  # what a user's scorer reads of a row is not known

    def function(
        predictions: Sequence[str],
        references: Sequence[Any],
        rows: Sequence[Mapping[str, Any]],
        completions: Sequence[Completion],
    ) -> list[float]:
        return made.score_rows(predictions, references, rows, completions=completions)

    made = AggregatedMetric(
        name=f"{aggregate.name}({metric.name})",
        function=function,
        bounds=(0.0, 1.0) if aggregate.kind == PASS else metric.bounds,
        per_row=True,
        description=described,
        reads_completions=True,
        reads_logprobs=metric.reads_logprobs or (aggregate.scorer is not None and aggregate.scorer.reads_logprobs),
        check_row=metric.check_row,
        columns=metric.columns,
        check_text=metric.check_text,
        answer=metric.answer,
        single=metric,
        aggregate=aggregate,
        hidden=None if hidden is None else tuple(hidden),
    )
    return made


def _without(row: Mapping[str, Any], hidden: Sequence[str] | None) -> dict[str, Any]:
    return {} if hidden is None else {name: value for name, value in row.items() if name not in hidden}


def _scorer(given: Any) -> Metric | None:
    if given is None:
        return None
    if callable(given) and not isinstance(given, Metric) and _takes_one_text(given):
        return _of_text(given)
    try:
        return Metric.of(given)
    except InputError as problem:
        raise InputError(f"scorer={short(given)}: {problem}") from None


def _takes_one_text(function: Callable[..., Any]) -> bool:
    try:
        needed = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        return False
    return len(needed) == 1


def _of_text(function: Callable[[str], float]) -> Metric:
    def scores(predictions: Sequence[str], references: object, rows: object, completions: object) -> list[float]:
        return [function(text) for text in predictions]

    return Metric(
        name=callable_name(function, "scorer"),
        function=scores,
        per_row=True,
        description=dict(describe_callable(function)),
    )

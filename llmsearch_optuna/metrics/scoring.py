"""What scores texts: a function, what is known of its scores, and the check of everything that it answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmsearch_optuna.errors import DecodingError, EngineUnavailableError, InputError, describe_error
from llmsearch_optuna.metrics.adapters import ScoreFunction
from llmsearch_optuna.metrics.checks import bad_places, count_of, is_number, listed, score_problem, short
from llmsearch_optuna.transient_errors import ask_patiently, unavailable

if TYPE_CHECKING:
    from llmsearch_optuna.engine.request import Completion


class MetricError(DecodingError):
    """A metric that worked before the study failed on rows of it; the trial fails, the study goes on.

    Attributes:
        rows: The numbers of the rows on which it failed (dataset numbers, where the caller gave them).
    """

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """The rows that are to be scored together; all sequences are as long as the predictions.

    Attributes:
        predictions: One text a row.
        references: What a metric compares with, one a row.
        rows: The rows themselves.
        completions: As they were decoded, one a row; only a metric that reads them needs them.
        numbers: The rows' numbers for messages; their places here otherwise.
        samples: All completions of each row, where rows have several; the prediction is the first one's text.
    """

    predictions: Sequence[str]
    references: Sequence[Any]
    rows: Sequence[Mapping[str, Any]]
    completions: Sequence[Completion] | None = None
    numbers: Sequence[int] | None = None
    samples: Sequence[Sequence[Completion]] | None = None

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def sampled(self) -> Sequence[Sequence[Completion]]:
        """The completions of each row, one where there are no samples."""
        if self.samples is not None:
            return self.samples
        assert self.completions is not None
        return [(completion,) for completion in self.completions]

    def by_sample(self) -> Answers:
        """Every sample as a row of its own, those of a row together."""
        places = [place for place, samples in enumerate(self.sampled) for _ in samples]
        completions = [completion for samples in self.sampled for completion in samples]
        numbers = range(len(self)) if self.numbers is None else self.numbers
        return Answers(
            predictions=[completion.text for completion in completions],
            references=[self.references[place] for place in places],
            rows=[self.rows[place] for place in places],
            completions=completions,
            numbers=[numbers[place] for place in places],
        )

    def of_rows(self, values: Sequence[float]) -> list[Sequence[float]]:
        """The values of each row's samples, from one for each sample."""
        ends = [0, *itertools.accumulate(map(len, self.sampled))]
        return [values[begin:end] for begin, end in itertools.pairwise(ends)]

    def chosen(self, places: Sequence[int]) -> Answers:
        """One of the samples of each row, by its place among them."""
        completions = [samples[place] for samples, place in zip(self.sampled, places, strict=True)]
        return replace(self, predictions=[c.text for c in completions], completions=completions, samples=None)


@dataclass(frozen=True, kw_only=True)
class Scorer:
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
        reads_logprobs: Whether the function needs to know of the completions how likely their tokens are.
        check_row: Raises for a reference and its row that the metric cannot use; None for a function that may use any.
        columns: The columns of the rows that a built-in metric looks at, beside the reference.
        answer: What a text answers, so that samples can vote: equal for texts that say the same, None for one without
            an answer. Without it texts are compared, white space and case aside.
    """

    name: str
    function: ScoreFunction = field(repr=False, compare=False)
    bounds: tuple[float, float] | None = None
    per_row: bool | None = None
    description: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    reads_completions: bool = field(default=False, repr=False)
    reads_logprobs: bool = field(default=False, repr=False)
    check_row: Callable[[Any, Mapping[str, Any]], object] | None = field(default=None, repr=False, compare=False)
    columns: tuple[str, ...] = field(default=(), repr=False)
    check_text: Callable[[str], None] | None = field(default=None, repr=False, compare=False)
    answer: Callable[[str], Hashable | None] | None = field(default=None, repr=False, compare=False)

    @property
    def is_built_in(self) -> bool:
        """Whether it compares texts, and therefore knows what a reference must be."""
        return self.check_text is not None

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
            EngineUnavailableError: A service that it asks is away for now.
        """
        if self.per_row is False:
            raise InputError(f"metric {self.name!r} scores all rows at once; it has no scores by row")
        return self.scores_of(
            Answers(predictions=predictions, references=references, rows=rows, completions=completions, numbers=numbers)
        )

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
        answers = Answers(
            predictions=predictions, references=references, rows=rows, completions=completions, numbers=numbers
        )
        answer = self._ask(answers)
        problem = self.problem(answer, len(answers))
        if problem:
            raise self._failure(problem, range(len(answers)), answers)
        return float(answer)

    @property
    def part_names(self) -> tuple[str, ...]:
        """Of what it is made of; empty for one that has no parts."""
        return ()

    def scores_and_parts(self, answers: Answers) -> tuple[list[float], dict[str, list[float]]]:
        """Return one score a row, and those of each part by its name; errors are those of `score_rows`."""
        return self.scores_of(answers), {}

    def scores_of(self, answers: Answers) -> list[float]:
        """Return one score a row, the mean where it has samples; errors are those of `score_rows`."""
        if not answers.predictions:
            return []
        if answers.samples is not None:
            found = answers.of_rows(self.scores_of(answers.by_sample()))
            return [math.fsum(scores) / len(scores) for scores in found]
        answer = self._ask(answers)
        problem = self.problem(answer, len(answers))
        if problem:
            is_counted = count_of(answer) == len(answers)
            places = bad_places(answer, self.bounds) if is_counted else range(len(answers))
            raise self._failure(problem, places, answers)
        return [float(score) for score in listed(answer)]

    def problem(self, answer: Any, expected: int) -> str | None:
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

    def _ask(self, answers: Answers) -> Any:
        if answers.completions is None and self.reads_completions:
            raise InputError(f"metric {self.name!r} reads how the texts were decoded; give completions=")
        decoded: Sequence[Any] = (None,) * len(answers) if answers.completions is None else answers.completions
        try:
            return ask_patiently(
                lambda: self.function(answers.predictions, answers.references, answers.rows, decoded), self.away
            )
        except (EngineUnavailableError, KeyboardInterrupt):
            raise
        except BaseException as error:
            culprits = self._culprits(answers, decoded)
            raise self._failure(f"raised {describe_error(error)}", culprits, answers) from error

    def away(self, error: BaseException) -> EngineUnavailableError | None:
        """Whether an error says that a service which the metric asks is away."""
        if type(error) is TimeoutError:  # so end the metrics that run a row's code, and there the row is at fault
            return None
        return unavailable(error, f"what metric {self.name!r} asks")

    def _culprits(self, answers: Answers, completions: Sequence[Any]) -> list[int]:
        """Return the places on which the function fails alone; all of them when it fails only on the whole."""
        guilty = []
        for place in range(len(answers)):
            one = slice(place, place + 1)
            try:
                self.function(answers.predictions[one], answers.references[one], answers.rows[one], completions[one])
            except KeyboardInterrupt:
                raise
            except BaseException:
                guilty.append(place)
        return guilty or list(range(len(answers)))

    def _failure(self, problem: str, places: Sequence[int], answers: Answers) -> MetricError:
        named = [answers.numbers[place] if answers.numbers is not None else place for place in places]
        where = f"row {named[0]}" if len(named) == 1 else f"rows {', '.join(map(str, named[:8]))}"
        more = f" and {len(named) - 8} more" if len(named) > 8 else ""
        shown = f" (its prediction: {short(answers.predictions[places[0]])})" if len(named) == 1 else ""
        return MetricError(f"metric {self.name!r} {problem} on {where}{more}{shown}", named)

"""What a report is made from: plain frozen values, no study, no model, no database.

Figures and pages are functions of these, so they can be made and tested without decoding anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

TrialState = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPoint:
    """One trial as the figures see it.

    Attributes:
        value: The mean score over the rows it did; None when it failed.
        params: The searched values only, under their Optuna names.
        rows: How many rows were scored before it ended.
        tokens: Generated tokens a row, on average; None when unknown.
        cut: Share of the rows that were cut by the limit of tokens; None when unknown.
        curve: (rows seen, running mean) at every pruning step.
        role: ``"baseline"``, ``"greedy"`` or empty.
        means: Means of a weighted metric's parts and of conditions over the rows it did, by name.
        objectives: The values beside the score, by what people call them; empty where the score is alone.
    """

    number: int
    state: TrialState
    value: float | None
    params: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""
    rows: int = 0
    seconds: float = 0.0
    tokens: float | None = None
    cut: float | None = None
    reason: str | None = None
    curve: tuple[tuple[int, float], ...] = ()
    role: str = ""
    means: Mapping[str, float] = field(default_factory=dict)
    objectives: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout:
    """Baseline and winner on rows that no trial saw.

    Attributes:
        differences: Best minus baseline, one value a row (means over the replicates), in the metric's own unit;
            empty for a corpus metric.
        decoded: How often each side was decoded, in a sentence.
        low: Lower end of the interval of the mean difference at `confidence`; None where the data set no limit.
        high: Its upper end.
    """

    baseline_mean: float
    best_mean: float
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    decoded: str = ""
    confidence: float = 0.95
    differences: tuple[float, ...] = ()

    def outcomes(self, *, minimize: bool = False) -> tuple[int, int, int]:
        """Rows on which the best setting (wins, ties, loses)."""
        sign = -1.0 if minimize else 1.0
        wins = sum(sign * d > 1e-9 for d in self.differences)
        losses = sum(sign * d < -1e-9 for d in self.differences)
        return wins, len(self.differences) - wins - losses, losses


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row, decoded with the defaults and with the best parameters. All texts are raw, as the model gave them.

    Attributes:
        baseline_reasoning: What the model thought before it answered; None where it did not.
        best_reasoning: The same with the best parameters.
        baseline_samples: The texts of all samples of the row, where it has several; else empty.
        best_samples: The same with the best parameters.
    """

    row: int
    prompt: str
    reference: str
    baseline_text: str
    best_text: str
    baseline_score: float | None
    best_score: float | None
    baseline_prompt: str | None = None
    """Where it differs from the prompt that the best parameters answer."""
    baseline_reasoning: str | None = None
    best_reasoning: str | None = None
    baseline_samples: tuple[str, ...] = ()
    best_samples: tuple[str, ...] = ()
    baseline_votes: str = ""
    """How many samples there are and, where they vote, for what."""
    best_votes: str = ""

    @property
    def difference(self) -> float:
        """Best minus baseline; 0 where a score is missing."""
        if self.baseline_score is None or self.best_score is None:
            return 0.0
        return self.best_score - self.baseline_score


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescored:
    """The stored completions by another metric.

    Attributes:
        metric: Its name.
        search: Trial number -> its value on the search rows, of the trials that did all of them.
        holdout: The same on the holdout, of the trials that were decoded there.
    """

    metric: str
    search: Mapping[int, float]
    holdout: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything that a report shows.

    Attributes:
        verdict_sentence: The outcome in one short sentence, for the top of the page.
        verdict_notes: What has to be known beside it.
        verdict: Its short form: better, worse, no evidence …
        recommends_best: Whether the best parameters are recommended, and not the baseline.
        best_score_error: Standard error of the winner's mean on fresh replicates, rows included; None where it is not
            known.
        advice: Whether more rows or more replicates would sharpen the winner's score; None where nothing is sampled.
        baseline_note: What the baseline is, in words; empty where the study does not say.
        split_note: Which rows were searched and which judge, and why, in words; empty where the study does not say.
        power: What a comparison on so many rows can find at all, in sentences; None where nothing tells.
        importances: Share of the score's variation by parameter; sums to 1 or is empty.
        costs: (label, value) lines of the cost panel, ready to be shown.
        failures: Reason -> numbers of the trials that failed for it.
        examples_from: Where the examples come from, as people say it: "the holdout" or "the search rows".
        front: Trial numbers of the front, worst score first; empty where the score is the only objective.
        objectives: What people call the objectives beside the score.
        halves: Whether two halves of the rows were searched apart and judged each other's winner.
        first_prompt: A prompt as the model got it.
        recommended_task_options: What of the task is recommended, where it was searched: prompts and the like in full.
        rescored: The same completions by other metrics, where that was asked for.
        study_file: The study as TOML; None when it cannot be written as one.
    """

    study_name: str
    metric: str
    verdict_sentence: str
    trials: tuple[TrialPoint, ...]
    verdict_notes: str = ""
    verdict: str = "no verdict yet"
    recommends_best: bool = False
    direction: str = "maximize"
    best_number: int | None = None
    model: str = ""
    dataset: str = ""
    rows: int = 0
    best_params: Mapping[str, Any] = field(default_factory=dict)
    baseline_params: Mapping[str, Any] = field(default_factory=dict)
    recommended_params: Mapping[str, Any] = field(default_factory=dict)
    holdout: Holdout | None = None
    halves: bool = False
    best_score_error: float | None = None
    advice: str | None = None
    baseline_note: str = ""
    split_note: str = ""
    power: str | None = None
    importances: Mapping[str, float] = field(default_factory=dict)
    costs: tuple[tuple[str, str], ...] = ()
    failures: Mapping[str, Sequence[int]] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    examples_from: str = "the search rows"
    fingerprint: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    storage: str = ""
    front: tuple[int, ...] = ()
    objectives: tuple[str, ...] = ()
    first_prompt: str = ""
    recommended_task_options: Mapping[str, Any] = field(default_factory=dict)
    rescored: tuple[Rescored, ...] = ()
    study_file: str | None = None

    @property
    def minimize(self) -> bool:
        """Whether a lower score is better."""
        return self.direction == "minimize"

    @property
    def complete(self) -> tuple[TrialPoint, ...]:
        """Trials that did all their rows."""
        return tuple(t for t in self.trials if t.state == "complete" and t.value is not None)

    @property
    def best(self) -> TrialPoint | None:
        """The best complete trial; None when nothing is complete."""
        return next((t for t in self.trials if t.number == self.best_number), None)

    @property
    def front_points(self) -> tuple[TrialPoint, ...]:
        """The trials of the front, worst score first."""
        by_number = {t.number: t for t in self.trials}
        return tuple(by_number[number] for number in self.front)

    def trial_of(self, role: str) -> TrialPoint | None:
        """The trial with this role (``"baseline"``, ``"greedy"``)."""
        return next((t for t in self.trials if t.role == role), None)

"""Which trial is worked on next: a dead worker's first, else a new one, as soon as it may start.

Trial n may start once all trials up to n - trials_in_flight have ended, whoever ran them; what it tries and what it
is compared with follows from those alone. So the study is the same for any number of workers, and after any crash.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.baselines import ROLE
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.optimize.halves import HalfScores
from llmsearch_optuna.optimize.samplers import Candidate, CandidateMaker, GridSuggester, Suggester, same_point, visible
from llmsearch_optuna.optimize.space_points import sample_problem
from llmsearch_optuna.optimize.trial import Role, TrialJob
from llmsearch_optuna.space.space import Space, Suggestion
from llmsearch_optuna.storage.leases import Claim, Session
from llmsearch_optuna.storage.row_record import by_row
from llmsearch_optuna.storage.study import OpenedStudy
from llmsearch_optuna.storage.trials import HALF, best_complete, params_of

logger = logging.getLogger("llmsearch_optuna.optimize.trial_queue")


@dataclass
class TrialQueue:
    """The trials of a study that this worker may work on.

    Attributes:
        opened: The study.
        session: This worker.
        rows: The search rows.
        space: Where configurations come from.
        defaults: The model's generation configuration.
        baseline: What trial 0 decodes with.
        greedy: What trial 1 decodes with; None where that is the baseline.
        try_first: What the trials after these decode with, see `search`.
        suggester: Suggests the others; None where the study has a user's own sampler, which is asked then.
        n_trials: The study's total.
        in_flight: How many trials may be under way at once in the whole study.
        max_tokens: Generated tokens that the trials may take together, see `search`; None for no limit.
        max_cost: What the trials may cost together, see `search`; None for no limit.
        exhausted: Set when the space holds no configuration that is not known.
        halves: Where two halves of the rows are searched apart: what the trials of each may know. None where all trials
            are run on the same rows.
    """

    opened: OpenedStudy
    session: Session
    rows: SearchRows
    space: Space
    defaults: Mapping[str, Any]
    baseline: GenerationParams
    greedy: GenerationParams | None
    suggester: Suggester | None
    n_trials: int
    in_flight: int
    max_tokens: int | None = None
    max_cost: float | None = None
    try_first: Sequence[Candidate] = ()
    exhausted: bool = False
    halves: HalfScores | None = None
    _taken: set[int] = field(default_factory=set)
    _seen: dict[int, FrozenTrial] = field(default_factory=dict)
    _scores: dict[tuple[int, int | None], tuple[float, ...]] = field(default_factory=dict)

    def next(self, *, may_create: bool = True) -> tuple[TrialJob, Claim] | None:
        """The next trial that this worker may work on now, with its claim; None when there is none at the moment.

        Args:
            may_create: False lets only trials be finished that have begun (the time is up).
        """
        trials = self.trials()
        adopted = self._adopt(trials)
        if adopted is not None or not may_create or self.exhausted or not self._may_create(trials):
            return adopted
        with self.opened.creating():
            trials = self.trials()
            if not self._may_create(trials):
                return None
            return self._create(trials)

    def trials(self) -> list[FrozenTrial]:
        """All trials of the study, in the order of their numbers."""
        return self.opened.study.get_trials(deepcopy=False)

    def all_ended(self) -> bool:
        """Whether no trial is under way anywhere."""
        return all(t.state.is_finished() for t in self.trials())

    def is_over(self) -> bool:
        """Whether no trial will be begun any more: all are there, or space or budget has no room for another."""
        trials = self.trials()
        return len(trials) >= self.n_trials or self.exhausted or (self._is_settled(trials) and self._is_spent(trials))

    def is_spent(self) -> bool:
        """Whether it was a budget that ended the search."""
        trials = self.trials()
        return len(trials) < self.n_trials and self._is_spent(trials)

    def spent_budget(self) -> str:
        """The budget that leaves no room for another trial, as the call says it."""
        is_cost = self.max_cost is not None and self._is_over(self.max_cost, "cost", self.trials())
        return f"max_cost={self.max_cost}" if is_cost else f"max_tokens={self.max_tokens}"

    def untried(self) -> int:
        """How many configurations of a grid no trial has; 0 where the sampler is another one."""
        if not isinstance(self.suggester, GridSuggester):
            return 0
        trials = self.trials()
        ends = [len(trials)] if self.halves is None else [len(trials), len(trials) + 1]  # one in each half
        return sum(self.suggester.untried(self._fingerprints(trials, number)) for number in ends)

    def room(self) -> int:
        """How many trials this worker may have under way: its share of what the study may have."""
        return -(-self.in_flight // len(self.session.live_owners()))

    def _adopt(self, trials: list[FrozenTrial]) -> tuple[TrialJob, Claim] | None:
        for trial in trials:
            if trial.state is TrialState.RUNNING and trial.number not in self._taken:
                claim = self.session.claim(trial.number)
                if claim is not None:
                    self._taken.add(trial.number)
                    return self._job(trials, trial.number), claim
        return None

    def _may_create(self, trials: Sequence[FrozenTrial]) -> bool:
        return len(trials) < self.n_trials and self._is_settled(trials) and not self._is_spent(trials)

    def _is_settled(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether all trials have ended from which the next one follows."""
        return all(t.state.is_finished() for t in self._settled(trials))

    def _settled(self, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
        return trials[: max(0, len(trials) - self.in_flight + 1)]

    def _is_spent(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether one more trial would not fit: it and those under way are expected to take what settled ones did.

        Only settled trials and the rows that count for them are looked at: where the study ends must not depend on
        which row ends first, nor on a crash. So the first trials, as many as may be under way, begin in any case.
        """
        return self._is_over(self.max_tokens, "tokens", trials) or self._is_over(self.max_cost, "cost", trials)

    def _is_over(self, budget: float | None, attribute: str, trials: Sequence[FrozenTrial]) -> bool:
        settled = self._settled(trials)
        if budget is None or not settled:
            return False
        taken = math.fsum(t.user_attrs.get(attribute, 0) for t in settled)
        return taken * (len(trials) + 1) > budget * len(settled)

    def _create(self, trials: list[FrozenTrial]) -> tuple[TrialJob, Claim] | None:
        number = len(trials)
        candidate, role = first_candidate(
            number, self.baseline, self.greedy, self.space, self.defaults, try_first=self.try_first
        )
        if candidate is None and self.suggester is not None:
            seen = visible(trials, number, self.in_flight, self._seen)
            known = self._fingerprints(trials, number)
            if self.halves is not None and (half := self.halves.halves.of_trial(number)) is not None:
                seen = self.halves.shown(dict(enumerate(seen)), half)
            candidate = self.suggester.suggest(number, seen, known)
            if candidate is None:
                self.exhausted = True
                return None
        claim = self.session.claim(number)
        if claim is None:
            return None
        self._taken.add(number)
        if candidate is None:
            self.opened.study.ask()
            return self._job(self.trials(), number), claim
        created = create_trial(
            state=TrialState.RUNNING,
            params=dict(candidate.params),
            distributions=dict(candidate.distributions),
            user_attrs=_attributes(candidate, role, self._half(number)),
        )
        self.opened.study.add_trial(created)
        return self._job([*trials, created], number), claim

    def _job(self, trials: list[FrozenTrial], number: int) -> TrialJob:
        if "params" not in trials[number].user_attrs:
            self._describe(number)
            trials = self.trials()
        attributes = trials[number].user_attrs
        refusal = attributes.get("refusal")
        params = None if refusal is not None else params_of(trials[number])
        if params is not None and (refusal := sample_problem(self.rows.task.metric, params)) is not None:
            params = None
        half, settled = self._half(number), trials[: max(0, number - self.in_flight + 1)]
        incumbent = self._incumbent(settled, half)
        same = (
            t.number
            for t in trials[:number]
            if t.user_attrs.get("fingerprint") == attributes["fingerprint"] and self._half(t.number) == half
        )
        return TrialJob(
            number=number,
            params=params,
            role=attributes["role"],
            refusal=refusal,
            incumbent=None if incumbent is None else incumbent.number,
            incumbent_scores=() if incumbent is None else self._row_scores(incumbent.number, half),
            incumbent_running=() if incumbent is None else self._running(incumbent, half),
            known_as=next(same, None),
            nested_with=_nested(settled, attributes["params"]),
            reported=frozenset(trials[number].intermediate_values),
        )

    def _describe(self, number: int) -> None:
        """Write down what a user's own sampler has chosen; after a crash in between, what it chose stays."""
        trial = self.opened.trial(number)
        try:
            values = self.space.suggest(trial)
        except InputError as refusal:
            candidate = Candidate({}, {}, {}, None, str(refusal))
        else:
            candidate = CandidateMaker(self.defaults).of(Suggestion({}, {}, values))
        # "params" comes last: it says that the others are there.
        for name, value in sorted(_attributes(candidate, "searched").items(), key=lambda item: item[0] == "params"):
            trial.set_user_attr(name, value)

    def _half(self, number: int) -> int | None:
        return None if self.halves is None else self.halves.halves.of_trial(number)

    def _fingerprints(self, trials: Sequence[FrozenTrial], number: int) -> set[str]:
        """Those of the trials before this one that are run on its rows."""
        half = self._half(number)
        return {
            str(t.user_attrs.get("fingerprint"))
            for t in trials
            if half is None or self.halves is None or self.halves.halves.shows(t.number, half)
        }

    def _incumbent(self, settled: Sequence[FrozenTrial], half: int | None) -> FrozenTrial | None:
        if half is None or self.halves is None:
            return best_complete(settled, self.rows.direction)
        values = self.halves.values(settled, half)
        sign = -1.0 if self.rows.direction == "maximize" else 1.0
        best = min(values, key=lambda number: (sign * values[number], number), default=None)
        return None if best is None else settled[best]

    def _row_scores(self, number: int, half: int | None) -> tuple[float, ...]:
        if (number, half) not in self._scores:
            rows = self.rows if half is None or self.halves is None else self.halves.halves.parts[half]
            self._scores[number, half] = tuple(by_row(self.opened.records.rows("search", number), rows.order))
        return self._scores[number, half]

    def _running(self, trial: FrozenTrial, half: int | None) -> tuple[float, ...]:
        if half is None or self.halves is None or self._half(trial.number) == half:
            return tuple(value for _, value in sorted(trial.intermediate_values.items()))
        return self.halves.running(trial.number, half)


def first_candidate(
    number: int,
    baseline: GenerationParams,
    greedy: GenerationParams | None,
    space: Space,
    defaults: Mapping[str, Any],
    *,
    try_first: Sequence[Candidate] = (),
) -> tuple[Candidate | None, Role]:
    """What a trial tries that is not suggested: baseline, greedy, and what is to be tried first, in this order."""
    roles: list[tuple[GenerationParams, Role]] = [(baseline, "baseline")]
    if greedy is not None:
        roles.append((greedy, "greedy"))
    if number >= len(roles) + len(try_first):
        return None, "searched"
    if number >= len(roles):
        named = try_first[number - len(roles)]
        return named, f"{ROLE}{named.baseline}" if named.baseline else "try_first"
    params, role = roles[number]
    point = same_point(space, params, CandidateMaker(defaults))
    return point or Candidate({}, {}, params.canonical, params), role


def _nested(trials: Sequence[FrozenTrial], params: Mapping[str, Any]) -> tuple[int, ...]:
    """The trials that differ from these parameters in the number of samples alone."""
    tried = {t.number: t.user_attrs.get("params", {}) for t in trials}
    differing = {number: other for number, other in tried.items() if other.get("samples") != params.get("samples")}
    return tuple(number for number, other in differing.items() if _but_samples(other) == _but_samples(params))


def _but_samples(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != "samples"}


def _attributes(candidate: Candidate, role: Role, half: int | None = None) -> dict[str, Any]:
    """What a trial's page in the dashboard says about its configuration."""
    params = candidate.generation
    shown = dict(candidate.values) if params is None else params.canonical
    found: dict[str, Any] = {
        "params": json.loads(json.dumps(shown, default=str)),
        "kind": "refused" if params is None else params.kind,
        "fingerprint": candidate.fingerprint,
        "role": role,
    }
    if half is not None:
        found[HALF] = half
    if candidate.refusal is not None:
        found["refusal"] = candidate.refusal
    if params is not None and params.inert:
        found["inert"] = list(params.inert)
    return found

"""What a study will take, from what a probe took: ranges, since pruning and reuse depend on what trials turn out.

Plain arithmetic on a probe and a plan; nothing is decoded here. The upper ends are those of a study that prunes
nothing and goes on sharing as little as its first trials do.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from scipy.optimize import nnls

from llmsearch_optuna.engine.memory import bytes_in_use
from llmsearch_optuna.engine.sampling.params import GenerationParams, is_random
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.optimize.plan import Plan
from llmsearch_optuna.optimize.planned_power import power_of
from llmsearch_optuna.optimize.prepare import Prepared, prepare
from llmsearch_optuna.optimize.probe import Probe, probe
from llmsearch_optuna.optimize.resolve_engine import ResolvedEngine
from llmsearch_optuna.optimize.samplers import CandidateMaker
from llmsearch_optuna.options import ForecastOptions
from llmsearch_optuna.space.space import Space

LEAST_ROWS = 0.5
"""Share of a searched trial's rows at the lower end. Measured: 0.84 in the demo, 0.33 in simulations of 40 trials."""

LEAST_GROWTH = 0.55
"""Distinct prefixes grow with this power of the trials at the lower end. Measured: 0.58 over the demo's 20 trials,
where beams share nearly everything; wide spaces of sampling stay near 0.8."""

_POINTS = 256


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the most that is to be expected."""

    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        """End by end."""
        return Range(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Range:
        """Both ends times a factor."""
        return Range(self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a study will take on this machine, as busy as it was during the probe.

    Attributes:
        n_trials: The study's trials.
        probed_rows: How many decoded rows this rests on.
        rows: Rows that are decoded, those of the verdict included (replicates and samples count).
        tokens: Generated tokens of these.
        seconds: Wall-clock time with what earlier trials computed used again.
        seconds_without_reuse: The same if every trial computed everything itself.
        memory: Bytes that the process takes at its end, model and cache included.
        memory_without_reuse: Bytes that it takes without a cache.
        power: What the verdict will be able to find, seen from the probe's rows of the baseline: sentences for people;
            None where they do not tell.
        cost: What the tokens cost, no prompt being cached; None where no price is known.
        split: Which rows are searched and which judge, and why, in words.
    """

    n_trials: int
    probed_rows: int
    rows: Range
    tokens: Range
    seconds: Range
    seconds_without_reuse: Range
    memory: Range
    memory_without_reuse: float
    power: str | None = None
    cost: Range | None = None
    split: str = ""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Forecast:
        """Read what to_json gave."""
        ranges = {name: Range(**value) for name, value in values.items() if isinstance(value, Mapping)}
        return cls(**{**values, **ranges})

    @property
    def text(self) -> str:
        """Two lines for people."""
        cost = "" if self.cost is None else f", cost {_in_unit(self.cost, ((0.0, 1.0, ''),)).strip()}"
        without = Range(self.memory_without_reuse, self.memory_without_reuse)
        return (
            f"forecast for {self.n_trials} trials: {_counts(self.rows)} rows, {_counts(self.tokens)} tokens,\n"
            f"{_in_unit(self.seconds, _TIMES)} ({_in_unit(self.seconds_without_reuse, _TIMES)} without reuse), "
            f"{_in_unit(self.memory, _SIZES)} memory ({_in_unit(without, _SIZES)} without){cost}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; seconds and bytes."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Volume:
    """Decoded rows, and what they hold: generated tokens, and picks (tokens of all beams)."""

    rows: Range
    tokens: Range
    picks: Range

    def __add__(self, other: _Volume) -> _Volume:
        return _Volume(self.rows + other.rows, self.tokens + other.tokens, self.picks + other.picks)


def make_forecast(
    probe: Probe, prepared: Prepared, *, n_trials: int, holdout_replicates: int, finalists: int, memory_in_use: int
) -> Forecast:
    """Extrapolate a probe to a whole study.

    Args:
        probe: What the first rows gave and took.
        prepared: The study.
        n_trials: Its total.
        holdout_replicates: See `search`.
        finalists: See `search`.
        memory_in_use: Bytes that the process takes after the probe.
    """
    plan, lengths = prepared.plan, _Lengths(probe)
    searched = _points(prepared.space, prepared.served.defaults) or list(probe.records)
    trials = _trials(plan, lengths, searched, n_trials, prunes=prepared.pruner is not None)
    whole = trials + _verdict(plan, lengths, searched, holdout_replicates, finalists)
    prompt = _mean(r.prompt_tokens for records in probe.records.values() for r in records)
    prompts_once = _prompts_once(plan, n_trials).times(prompt)
    shares = _computed_shares(probe, n_trials)
    computed = Range(whole.picks.low * shares.low, whole.picks.high * shares.high)
    costs = _costs(probe)
    known = sum(span.computed for span in probe.spans) or 1.0
    memory_before = memory_in_use - probe.cache_bytes
    budget = prepared.served.backend.cache_budget
    cache = [min(budget, probe.cache_bytes * max(1.0, end / known)) for end in (computed.low, computed.high)]
    return Forecast(
        n_trials=n_trials,
        probed_rows=sum(map(len, probe.records.values())),
        rows=whole.rows,
        tokens=whole.tokens,
        seconds=_seconds(costs, prompts_once, computed, whole.picks),
        seconds_without_reuse=_seconds(costs, whole.rows.times(prompt), whole.picks, whole.picks),
        memory=Range(memory_before + cache[0], memory_before + cache[1]),
        memory_without_reuse=float(memory_before),
        cost=_cost(prepared.served, whole, prompt),
    )


def _prompts_once(plan: Plan, n_trials: int) -> Range:
    """How many prompts go through the model that are kept then: one a row, or one for every way to ask that is tried.

    Winner and baseline are asked in two ways at most.
    """
    ways = max(1, min(len(plan.task.variants), n_trials))
    rows, held_out = len(plan.rows.order), len(plan.holdout)
    return Range(rows + held_out, ways * rows + min(ways, 2) * held_out)


def _cost(served: ResolvedEngine, whole: _Volume, prompt: float) -> Range | None:
    ends = ((whole.rows.low, whole.tokens.low), (whole.rows.high, whole.tokens.high))
    found = [served.backend.cost(rows * prompt, 0, tokens) for rows, tokens in ends]
    low, high = found
    return None if low is None or high is None else Range(low, high)


class _Lengths:
    """How many tokens a completion has, by kind of decoding where the probe had that kind."""

    def __init__(self, probe: Probe) -> None:
        found: dict[str, list[int]] = defaultdict(list)
        for params, records in probe.records.items():
            found[params.kind] += [max(1, len(sample.token_ids)) for r in records for sample in r.samples]
        self._by_kind = {kind: fmean(counts) for kind, counts in found.items() if counts}
        self._anything = _mean(count for counts in found.values() for count in counts)

    def of(self, params: GenerationParams) -> float:
        """Expected tokens of one completion."""
        return min(float(params.max_new_tokens), self._by_kind.get(params.kind, self._anything))


def _points(space: Space, defaults: Mapping[str, Any]) -> list[GenerationParams]:
    """Configurations drawn evenly from the space: what its trials are like on average."""
    rng, make = np.random.default_rng(0), CandidateMaker(defaults)
    found = []
    for _ in range(_POINTS):
        try:
            candidate = make.of(space.at_random(rng))
        except InputError:
            continue
        if candidate.generation is not None:
            found.append(candidate.generation)
    return found


def _trials(
    plan: Plan, lengths: _Lengths, searched: Sequence[GenerationParams], n_trials: int, *, prunes: bool
) -> _Volume:
    tried = [c.generation for c in plan.try_first] if plan.halves is not None else []
    always = [params for params in (plan.baseline, plan.greedy, *tried) if params is not None][:n_trials]
    rows = len(plan.rows.order)
    volume = _nothing()
    for params in always:
        volume += _volume([params], lengths, Range(rows, rows), plan.rows.replicates)
    left = (n_trials - len(always)) * (rows if plan.halves is None else rows / 2)
    return volume + _volume(
        searched, lengths, Range(left * (LEAST_ROWS if prunes else 1.0), left), plan.rows.replicates
    )


def _verdict(
    plan: Plan, lengths: _Lengths, searched: Sequence[GenerationParams], replicates: int, finalists: int
) -> _Volume:
    """Finalists that sample are decoded again, winner and baseline on the holdout; nothing where the baseline wins."""
    sampling = [params for params in searched if is_random(params)]
    if plan.halves is not None:
        return _crossed_verdict(plan, lengths, searched, replicates, finalists)
    held, held_replicates = Range(0, len(plan.holdout)), plan.most_replicates(replicates)
    again = Range(0, finalists * len(plan.rows.order) if sampling else 0)
    return (
        _volume(sampling or searched, lengths, again, replicates)
        + _volume(searched, lengths, held, held_replicates)
        + _volume([plan.baseline], lengths, held, held_replicates)
    )


def _crossed_verdict(
    plan: Plan, lengths: _Lengths, searched: Sequence[GenerationParams], replicates: int, finalists: int
) -> _Volume:
    """Finalists of each half that sample, and trials of all rows that do, once more; winners on the other half."""
    rows = len(plan.rows.order)
    sampling = [params for params in searched if is_random(params)]
    volume = _volume(sampling or searched, lengths, Range(0, finalists * rows if sampling else 0), replicates)
    for params in (plan.baseline, plan.greedy):
        if params is not None and is_random(params):
            volume += _volume([params], lengths, Range(rows, rows), replicates)
    return volume + _volume(searched, lengths, Range(0, rows), replicates)


def _volume(mix: Sequence[GenerationParams], lengths: _Lengths, rows: Range, replicates: int) -> _Volume:
    """What so many rows hold when their configurations are these, in equal parts."""
    repeats = [replicates * params.samples if is_random(params) else 1 for params in mix]
    tokens = [n * lengths.of(params) for n, params in zip(repeats, mix, strict=True)]
    picks = [n * int(params.get("num_beams") or 1) for n, params in zip(tokens, mix, strict=True)]
    return _Volume(rows.times(_mean(repeats)), rows.times(_mean(tokens)), rows.times(_mean(picks)))


def _nothing() -> _Volume:
    return _Volume(Range(0, 0), Range(0, 0), Range(0, 0))


def _computed_shares(probe: Probe, n_trials: int) -> Range:
    """The share of the picked tokens whose scores are computed and not known from before.

    Distinct prefixes grow with a power of the number of trials. The probe gives that power for trials that know
    nothing of each other; a search concentrates, and later trials share more.
    """
    if not probe.cache_bytes:
        return Range(1.0, 1.0)
    picked = sum(span.picked for span in probe.spans)
    computed = min(picked, sum(span.computed for span in probe.spans))
    begun = len(probe.records)
    growth = 1.0
    if begun > 1 and computed > 0:
        growth = max(0.0, 1.0 + math.log(computed / picked) / math.log(begun))
    return Range(float(n_trials ** (min(growth, LEAST_GROWTH) - 1.0)), float(n_trials ** (growth - 1.0)))


def _costs(probe: Probe) -> tuple[float, float, float]:
    """Seconds for a prompt token, a computed and a picked one: least squares over the probe's spans."""
    work = np.array([[s.prompt_tokens, s.computed, s.picked] for s in probe.spans], dtype=np.float64).reshape(-1, 3)
    seconds = np.array([s.seconds for s in probe.spans], dtype=np.float64)
    if not len(seconds) or not work.any():
        return 0.0, 0.0, 0.0
    scale = np.maximum(work.sum(axis=0), 1.0)
    found, _ = nnls(work / scale, seconds)
    # The spans were measured, so their sum is right whatever the fit says about its parts.
    explained = float(found.sum())
    found *= float(seconds.sum()) / explained if explained > 0 else 0.0
    return tuple(float(cost) for cost in found / scale)  # type: ignore[return-value]


def _seconds(costs: tuple[float, float, float], prompts: Range, computed: Range, picked: Range) -> Range:
    return prompts.times(costs[0]) + computed.times(costs[1]) + picked.times(costs[2])


def _mean(values: Any) -> float:
    found = list(values)
    return fmean(found) if found else 1.0


_TIMES = ((7200.0, 3600.0, "h"), (120.0, 60.0, "min"), (0.0, 1.0, "s"))
_SIZES = ((1e8, 1e9, "GB"), (0.0, 1e6, "MB"))


def _counts(counts: Range) -> str:
    low, high = _rounded(counts.low), _rounded(counts.high)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _in_unit(found: Range, units: Sequence[tuple[float, float, str]]) -> str:
    """``8–43 min``: both ends in the unit that suits the higher one (threshold, size, name), two digits each."""
    _, size, name = next(unit for unit in units if found.high >= unit[0])
    low, high = (_two_digits(end / size) for end in (found.low, found.high))
    return f"{low} {name}" if low == high else f"{low}–{high} {name}"


def _rounded(value: float) -> int:
    """Two significant digits: more would claim too much."""
    if value < 1:
        return 0
    unit = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return int(round(value / unit) * unit)


def _two_digits(value: float) -> str:
    return f"{value:.2g}" if value < 9.95 else str(_rounded(value))


def forecast_study(model: Any, dataset: Any, space: Any, tokenizer: Any, options: ForecastOptions) -> Forecast:
    """Say what a search would take; see `forecast`, whose arguments these are.

    Raises:
        InputError: An argument cannot be used; says which and why.
    """
    prepared = prepare(model, dataset, space, tokenizer, options)
    total, holdout_replicates = prepared.total_trials(options["n_trials"]), options["holdout_replicates"]
    found = probe(prepared, n_trials=total, in_flight=options["trials_in_flight"])
    made = make_forecast(
        found,
        prepared,
        n_trials=total,
        holdout_replicates=holdout_replicates,
        finalists=options["finalists"],
        memory_in_use=bytes_in_use(),
    )
    power = power_of(prepared.plan, found.records[prepared.plan.baseline], replicates=holdout_replicates)
    return replace(made, power=None if power is None else power.text, split=prepared.plan.split_note)

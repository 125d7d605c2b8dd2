"""Makes a `ReportData` from a study in its database; nothing is decoded, scored or written.

Works on a study that still runs, too: what is not there yet is left out.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import sqlalchemy as sa
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from llmsearch_optuna.analysis.pareto import front_of
from llmsearch_optuna.fingerprint.diff import digest
from llmsearch_optuna.metrics.aggregates import votes_in_words
from llmsearch_optuna.optimize.draws import stored_draws
from llmsearch_optuna.optimize.judged_study import judge_notes
from llmsearch_optuna.optimize.objectives import label, tokens_a_row
from llmsearch_optuna.optimize.set_aside import set_aside_sentence
from llmsearch_optuna.optimize.throughput import engine_work
from llmsearch_optuna.progress import short_time, with_error
from llmsearch_optuna.report.data import Example, Holdout, ReportData, Rescored, TrialPoint
from llmsearch_optuna.storage import schema
from llmsearch_optuna.storage.optuna_logging import quiet_optuna
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.storage.trials import half_of, rows_counted, score_of

if TYPE_CHECKING:
    from llmsearch_optuna.analysis.view import StudyView
    from llmsearch_optuna.stats.verdict import Verdict
    from llmsearch_optuna.storage.study import OpenedStudy

"""Study attribute with the study file's text, where the study was started from one."""

_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
_MIN_TRIALS_FOR_IMPORTANCE = 8


def collect(result: StudyView) -> ReportData:
    """Return everything that a report on this result shows."""
    settings = result.settings
    metric = str(settings.get("metric", "score"))
    finished = [t for t in result.trials if t.state.is_finished()]
    best = result.best_trial if any(t.state is TrialState.COMPLETE for t in finished) else None
    verdict = result.verdict
    trials = tuple(_point(t, result.records(t.number), result.objective_names) for t in finished)
    return ReportData(
        study_name=result.study.study_name,
        metric=metric,
        direction=result.direction,
        verdict_sentence=_sentence(result, best, metric),
        verdict_notes="" if verdict is None or best is None else verdict.notes,
        verdict="no verdict yet" if verdict is None else verdict.answer,
        recommends_best=verdict is not None and verdict.recommends_winner,
        trials=trials,
        best_number=None if best is None else best.number,
        model=", served by ".join(str(settings[name]) for name in ("model", "server") if settings.get(name)),
        dataset=str(settings.get("data", "")),
        rows=sum(item.part == "search" for item in result.items.values()),
        best_params={} if best is None else result.best_params,
        baseline_params=result.baseline_params,
        recommended_params={} if best is None else result.recommended_params,
        holdout=holdout_of(verdict),
        halves=bool(result.halves),
        best_score_error=result.best_score_error,
        advice=None if best is None else result.advice,
        split_note=str(settings.get("split_note", "")),
        baseline_note=_notes(result, str(settings.get("baseline_note", ""))),
        power=result.power,
        importances=_importances(finished, result),
        failures=result.failures,
        costs=_costs(engine_work(result.study.user_attrs), trials),
        objectives=tuple(map(label, result.objective_names[1:])),
        front=tuple(p.trial for p in front_of(result)) if len(result.study.directions) > 1 else (),
        first_prompt=next((item.prompt for item in result.items.values()), ""),
        recommended_task_options={} if best is None else result.recommended_task_options,
        **_examples(result, best),
        **_reproduction(result.opened),
    )


def _notes(result: StudyView, baseline_note: str) -> str:
    total = sum(item.part == "search" for item in result.items.values())
    told = [
        baseline_note,
        *stored_draws(result.opened).notes,
        *judge_notes(result.opened),
        set_aside_sentence(result.set_aside, total),
    ]
    return " ".join(filter(None, told))


def rescored(result: StudyView, metric: Any) -> Rescored:
    """Return what another metric says of the stored completions; nothing is decoded.

    Raises:
        InputError: The metric cannot be used.
    """
    search, holdout = result.rescore(metric), result.rescore(metric, part="holdout")
    name = str(search.columns[-1])
    return Rescored(
        metric=name,
        search=dict(zip(search["number"].tolist(), search[name].tolist(), strict=True)),
        holdout=dict(zip(holdout["number"].tolist(), holdout[name].tolist(), strict=True)),
    )


def _point(trial: FrozenTrial, rows: Sequence[RowRecord], objectives: Sequence[str]) -> TrialPoint:
    curve = tuple(sorted((step, value) for step, value in trial.intermediate_values.items() if math.isfinite(value)))
    attributes = trial.user_attrs
    value = score_of(trial) if trial.state is TrialState.COMPLETE else curve[-1][1] if curve else None
    seconds = 0.0
    if trial.datetime_start is not None and trial.datetime_complete is not None:
        seconds = (trial.datetime_complete - trial.datetime_start).total_seconds()
    reason = attributes.get("prune_reason") or attributes.get("fail_reason") or attributes.get("refusal")
    return TrialPoint(
        number=trial.number,
        state=_STATES[trial.state],  # type: ignore[arg-type]
        value=None if trial.state is TrialState.FAIL else value,
        params=trial.params,
        kind=str(attributes.get("kind", "")),
        rows=rows_counted(trial),
        seconds=float(attributes.get("seconds", seconds)),
        tokens=tokens_a_row(rows) if rows else None,
        cut=sum(r.finish_reason == "length" for r in rows) / len(rows) if rows else None,
        reason=None if reason is None else str(reason),
        curve=curve,
        role=str(attributes.get("role", "")).replace("searched", ""),
        objectives=_beside_the_score(trial, objectives),
        means={**attributes.get("metric_parts", {}), **attributes.get("conditions", {})},
    )


def _beside_the_score(trial: FrozenTrial, objectives: Sequence[str]) -> dict[str, float]:
    if trial.state is not TrialState.COMPLETE or len(trial.values or ()) != len(objectives):
        return {}
    return {label(name): value for name, value in zip(objectives[1:], trial.values[1:], strict=True)}


def holdout_of(verdict: Verdict | None) -> Holdout | None:
    """Return what a page shows of a verdict; None where nothing was compared."""
    if verdict is None or verdict.difference is None or verdict.baseline_mean is None or verdict.winner_mean is None:
        return None
    return Holdout(
        baseline_mean=verdict.baseline_mean,
        best_mean=verdict.winner_mean,
        difference=verdict.difference,
        low=verdict.low,
        high=verdict.high,
        p_value=verdict.p_value,
        decoded=verdict.decoded,
        confidence=verdict.confidence,
        differences=verdict.differences,
    )


def _sentence(result: StudyView, best: FrozenTrial | None, metric: str) -> str:
    if best is None:
        return "No trial is complete yet."
    if result.verdict is not None:
        return result.verdict.headline
    score = with_error(result.best_score, result.best_score_error)
    return f"Trial {best.number} is the best so far, with {score} in {metric}; there is no verdict yet."


def _importances(trials: Sequence[FrozenTrial], result: StudyView) -> dict[str, float]:
    """PED-ANOVA by parameter, each among the trials that have it; Optuna's own way drops those of branches.

    Most trials of a search are pruned, so they count as well, with their lead over the baseline on the rows they did.
    """
    judged = _judged_against_baseline(trials, result)
    compared = judged.get_trials(deepcopy=False)
    found: dict[str, float] = {}
    for name in sorted({name for t in compared for name in t.params}):
        having = [t for t in compared if name in t.params]
        if len(having) < _MIN_TRIALS_FOR_IMPORTANCE or len({repr(t.params[name]) for t in having}) < 2:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measured = PedAnovaImportanceEvaluator().evaluate(judged, params=[name])[name]
        if math.isfinite(measured) and measured > 0:
            found[name] = measured
    total = sum(found.values())
    return {name: value / total for name, value in sorted(found.items(), key=lambda item: -item[1])}


def _judged_against_baseline(trials: Sequence[FrozenTrial], result: StudyView) -> optuna.Study:
    """A study in memory whose values are leads over the baseline on the same rows; without a baseline, means."""
    on_all = next((_means(t) for t in trials if t.number == 0), {})
    on_halves = _baseline_on_halves(result)
    with quiet_optuna():
        study = optuna.create_study(direction=result.direction)
    for trial in trials:
        means, half = _means(trial), half_of(trial)
        baseline = on_all if half is None else on_halves[half]
        if not means or trial.state is TrialState.FAIL:
            continue
        step = max(means)
        lead = means[step] - baseline.get(step, 0.0)
        if math.isfinite(lead):
            study.add_trial(optuna.create_trial(params=trial.params, distributions=trial.distributions, value=lead))
    return study


def _baseline_on_halves(result: StudyView) -> list[dict[int, float]]:
    """Rows seen of each half -> the baseline's mean over them."""
    if not result.halves or not result.trials:
        return []
    scores = result.row_scores(0)
    found = []
    for half in result.halves:
        known = np.array([scores.get(row, math.nan) for row in half])
        counted = np.cumsum(~np.isnan(known))
        sums = np.cumsum(np.nan_to_num(known))
        places = np.flatnonzero(counted).tolist()
        found.append({place + 1: float(sums[place] / counted[place]) for place in places})
    return found


def _means(trial: FrozenTrial) -> dict[int, float]:
    """Rows seen -> mean over them; trials with several objectives report nothing on their way."""
    score = score_of(trial)
    return trial.intermediate_values or ({} if score is None else {rows_counted(trial): score})


def _costs(engine: Mapping[str, Any], trials: Sequence[TrialPoint]) -> tuple[tuple[str, str], ...]:
    done = sum(t.rows for t in trials)
    full = max((t.rows for t in trials), default=0) * len(trials)
    lines = [("rows scored", f"{done:,}")]
    if full > done:
        lines.append(("rows spared by pruning", f"{full - done:,} of {full:,}"))
    if engine.get("seconds"):
        lines.append(("time in the engine", short_time(float(engine["seconds"]))))
    tokens, replayed = engine.get("tokens") or 0, engine.get("replayed_tokens") or 0
    if tokens:
        lines.append(("tokens generated", f"{tokens:,}"))
        if "cached_prompt_tokens" not in engine:  # a server replays nothing
            lines.append(("of these replayed, not computed", f"{replayed:,} ({replayed / tokens:.0%})"))
    if engine.get("forward_tokens"):
        lines.append(("tokens through the model", f"{engine['forward_tokens']:,}"))
    if engine.get("distinct_prefixes") and engine.get("forward_tokens"):
        floor = engine["forward_tokens"] / engine["distinct_prefixes"]
        lines.append(("distance from the floor", f"{floor:.2f} forwards for each distinct prefix (1 is the least)"))
    if engine.get("prefill_tokens"):
        saved = engine.get("prefill_tokens_saved", 0) + engine.get("cached_prompt_tokens", 0)
        asked = engine["prefill_tokens"] + saved
        lines.append(("prompt tokens through the model", f"{engine['prefill_tokens']:,} of {asked:,} asked for"))
    if "cost" in engine:
        lines.append(("cost of the tokens", f"{engine['cost']:.6g}"))
    if engine.get("plain_requests"):
        lines.append(("rows through model.generate", f"{engine['plain_requests']:,}"))
    if engine.get("steps"):
        lines.append(("rows per decoding step", f"{engine['step_rows'] / engine['steps']:.1f}"))
    if engine.get("seconds") and engine.get("forward_seconds"):
        lines.append(("time outside the model", f"{1 - engine['forward_seconds'] / engine['seconds']:.0%}"))
    if engine.get("cache_bytes"):
        given_up = f", {engine['evictions']:,} pieces given up" if engine.get("evictions") else ""
        lines.append(("kept for later trials", f"{engine['cache_bytes'] / 1e6:,.0f} MB{given_up}"))
    if engine.get("out_of_memory"):
        lines.append(("times that memory ran out", str(engine["out_of_memory"])))
    return tuple(lines)


def _examples(result: StudyView, best: FrozenTrial | None) -> dict[str, Any]:
    """Rows that both the baseline (trial 0) and the best trial have: of the holdout when it was decoded."""
    if best is None or best.number == 0:
        return {}
    ours, theirs, source = result.records(best.number, "holdout"), result.records(0, "holdout"), "the holdout"
    source = "the rows that it was not chosen on" if result.halves else source
    if not ours or not theirs:
        ours, theirs, source = result.records(best.number), result.records(0), "the search rows"
    first, base = _first_replicates(ours), _first_replicates(theirs)
    metric = None if result.task is None else result.task.metric
    examples = tuple(
        Example(
            row=row,
            prompt=(prompt := result.prompt(row, best.number)),
            baseline_prompt=None if (before := result.prompt(row, 0)) == prompt else before,
            reference=_text(result.items[row].reference),
            baseline_text=base[row].text or "",
            best_text=first[row].text or "",
            baseline_score=base[row].score,
            best_score=first[row].score,
            baseline_reasoning=base[row].reasoning,
            best_reasoning=first[row].reasoning,
            baseline_samples=_samples(base[row]),
            best_samples=_samples(first[row]),
            baseline_votes=votes_in_words(metric, base[row].completions),
            best_votes=votes_in_words(metric, first[row].completions),
        )
        for row in sorted(first.keys() & base.keys())
    )
    return {"examples": examples, "examples_from": source}


def _first_replicates(records: Sequence[RowRecord]) -> dict[int, RowRecord]:
    return {r.row: r for r in sorted(records, key=lambda r: -r.replicate) if r.error is None}


def _samples(record: RowRecord) -> tuple[str, ...]:
    return tuple(sample.text or "" for sample in record.samples) if record.further else ()


def _text(reference: Any) -> str:
    return reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False, default=str)


def _reproduction(opened: OpenedStudy) -> dict[str, Any]:
    with opened.database.connect() as connection:
        t = schema.meta
        fingerprint = connection.execute(sa.select(t.c.fingerprint).where(t.c.study == opened.key)).scalar_one()
    return {
        "fingerprint": digest(json.loads(fingerprint)),
        "versions": opened.versions,
        "storage": opened.url,
        "study_file": opened.study_file,
    }

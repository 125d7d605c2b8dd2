"""The verdict in words: what terminal, report, dashboard and evidence say of it, all from here.

Numbers come in, sentences go out. What is not known of a look (of one made by an earlier version, say) is not said.
"""

from __future__ import annotations

from llmsearch_optuna.stats.conditions import ConditionOutcome
from llmsearch_optuna.stats.crossed import HalfOutcome
from llmsearch_optuna.stats.holm import BaselineComparison
from llmsearch_optuna.stats.verdict_numbers import VerdictNumbers


def headline(v: VerdictNumbers) -> str:
    """Return the answer, the difference with its interval, and the rows: 20 words at most."""
    if v.difference is None:
        first, _, _ = v.sentence.partition(". ")
        return first.rstrip(".") + "."
    head = {
        "better": "Better",
        "worse": "Worse",
        "not worse than margin": f"Not worse by the margin of {v.margin}",
        "no evidence": "No evidence of a difference",
    }[v.answer]
    low, high = (f"{end:+.4g}" if end is not None else "no limit" for end in (v.low, v.high))
    interval = f"{v.confidence:.0%} interval {low} to {high}"
    unheld = ", ".join(f"{c.name} {c.limit}" for c in v.conditions if c.winner != "holds")
    conditions = f" Not shown to hold: {unheld}." if unheld else ""
    rows = f"{v.rows} rows, none seen by its winner" if v.halves else f"{v.rows} held-out rows"
    return f"{head}: {v.difference:+.4g} ({interval}) on {rows}.{conditions}"


def notes(v: VerdictNumbers) -> str:
    """Return what has to be known beside the headline, in a few sentences."""
    if v.difference is None:
        return v.sentence.partition(". ")[2]
    who = "winners score" if v.halves else "winner scores"
    text = [f"The {who} {v.winner_mean:.4g}, the baseline {v.baseline_mean:.4g} (p = {v.p_value:.2g})."]
    if v.halves:
        text.append(_halves(v.halves, v.recommends_winner))
    text += [_condition(condition) for condition in v.conditions]
    if v.conditions:
        text += _recommended(v)
    if v.baselines:
        text.append(_against_all(v.baselines))
    if v.unscored:
        rows = "rows" if v.halves else "held-out rows"
        text.append(f"{v.unscored} of {v.rows + v.unscored} {rows} could not be scored and do not count.")
    if v.stage is not None and v.stages is not None and v.stages > 1:
        text.append(_ended(v, v.stage, v.stages))
    if v.answer == "no evidence":
        text.append(
            _found(v.detectable, "All stages together find" if (v.stages or 1) > 1 else "A look like this finds")
        )
    if v.optimism is not None and v.optimism_low is not None and v.optimism_high is not None:
        text.append(_optimism(v.optimism, v.optimism_low, v.optimism_high, v.confidence))
    if v.look > 1:
        text.append(f"This was look number {v.look} at the same rows: chance had that many tries.")
    return " ".join(text)


def _halves(halves: tuple[HalfOutcome, ...], recommends_winner: bool) -> str:
    judged = ", ".join(f"trial {h.trial} {h.difference:+.4g} on {h.rows} rows" for h in halves)
    text = f"Each half of the rows was searched by itself, and its winner judged on the other half: {judged}."
    chosen = next((h for h in halves if h.is_chosen), None)
    if chosen is None or not recommends_winner:
        return text
    if len({h.trial for h in halves}) == 1:
        return f"{text} Both chose the same trial, and it is recommended."
    return (
        f"{text} Trial {chosen.trial} is recommended ({chosen.overall:+.4g} on all rows, those it was chosen on too)."
    )


def _against_all(baselines: tuple[BaselineComparison, ...]) -> str:
    words = {"better": "better than", "worse": "worse than", "no evidence": "no evidence against"}
    told = [f"{words[b.answer]} {b.name} ({b.difference:+.4g}, p = {b.adjusted_p_value:.2g})" for b in baselines]
    return f"Against all {len(baselines)} baselines together, p-values by Holm: {'; '.join(told)}."


def _condition(c: ConditionOutcome) -> str:
    state = {"holds": "holds", "broken": "is broken", "not shown": "is not shown to hold"}[c.winner]
    return (
        f"{c.name} {c.limit} {state} for the winner ({_mean(c, c.winner_mean, c.winner_bound)}); "
        f"the baseline has {_mean(c, c.baseline_mean, c.baseline_bound)}."
    )


def _mean(c: ConditionOutcome, mean: float | None, bound: float | None) -> str:
    if mean is None or bound is None:
        return "no value"
    return f"{mean:.4g}, {'at least' if c.limit.startswith('>=') else 'at most'} {bound:.4g} at {c.confidence:.0%}"


def _recommended(v: VerdictNumbers) -> list[str]:
    if not v.recommends_winner:
        return [] if all(c.winner == "holds" for c in v.conditions) else ["The baseline stays recommended."]
    if v.answer in ("better", "not worse than margin"):
        return []
    return ["The winner is recommended, since the baseline is not shown to keep all conditions."]


def decoded(v: VerdictNumbers) -> str:
    """Return how often each side was decoded on the held-out rows, in a sentence."""
    baseline, winner = v.baseline_replicates, v.winner_replicates
    if baseline is None or winner is None:
        return "Both were decoded once." if v.replicates == 1 else f"What is sampled was decoded {v.replicates} times."
    who = "winners" if v.halves else "winner"
    if baseline == winner:
        return f"Both were decoded {_times(baseline)}."
    return f"The baseline was decoded {_times(baseline)}, the {who} {_times(winner)}."


def _ended(v: VerdictNumbers, stage: int, stages: int) -> str:
    allowed = "p and interval allow for the stages."
    match v.stopped:
        case None:
            return f"Stage {stage} of {stages} is done; more rows follow."
        case "evidence" if stage < stages:
            return f"Stage {stage} of {stages} gave evidence enough, so no more rows were decoded; {allowed}"
        case "futility":
            return (
                f"It ended after stage {stage} of {stages}: more rows had less than 1 chance in 20 to show a gain; "
                f"{allowed}"
            )
        case _:
            return f"All {stages} stages were decoded; {allowed}"


def _found(detectable: float | None, found: str) -> str:
    if detectable is None:
        return "So few rows do not find even a large difference in 4 of 5 cases."
    return f"{found} a difference of {detectable:.2g} in 4 of 5 cases."


def _optimism(gap: float, low: float, high: float, confidence: float) -> str:
    """A difference of two differences of the same two settings, so that how hard the rows are drops out."""
    than = "larger" if gap >= 0 else "smaller"
    low, high = (low, high) if gap >= 0 else (-high, -low)
    return (
        f"On the search rows the winner's lead was {abs(gap):.2g} {than} than here "
        f"({confidence:.0%} interval {low:+.2g} to {high:+.2g})."
    )


def _times(replicates: int) -> str:
    return "once" if replicates == 1 else f"{replicates} times with fresh noise"

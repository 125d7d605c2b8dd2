"""What a study is, before anything is decoded: which rows, in which order, and what the first two trials are.

Everything here follows from the arguments, so a study that is resumed gets the same plan.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import optuna

from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.optimize.baselines import Baselines, same_as
from llmsearch_optuna.optimize.constraints import NO_CONSTRAINTS, Constraints
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.optimize.halves import Halves
from llmsearch_optuna.optimize.holdout_rule import CROSS, HoldoutRule, split_of
from llmsearch_optuna.optimize.objectives import Objectives
from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.optimize.resolve_engine import ResolvedEngine
from llmsearch_optuna.optimize.samplers import (
    Candidate,
    CandidateMaker,
    candidate_of,
)
from llmsearch_optuna.optimize.space_points import inert_by_branch, inert_warning
from llmsearch_optuna.options import PlanOptions
from llmsearch_optuna.space.space import Space
from llmsearch_optuna.stats.conditions import HOLDOUT_LEVEL
from llmsearch_optuna.stats.group_sequential import StageDesign
from llmsearch_optuna.storage.records import Item
from llmsearch_optuna.storage.study import OpenedStudy
from llmsearch_optuna.task.choices import TaskChoices
from llmsearch_optuna.task.prepared_task import PreparedTask
from llmsearch_optuna.task.prompts import chat_markers
from llmsearch_optuna.task.split import Split, assign_folds

logger = logging.getLogger("llmsearch_optuna.optimize.plan")

MANY_ROWS = 5_000
"""From so many rows on the prompts of all are stored, so that a study that goes on need not render them again."""


@dataclass(frozen=True)
class Plan:
    """What follows from the arguments alone.

    Attributes:
        task: With its prompts, references and metric.
        rows: The search rows, in the order in which every trial sees them.
        holdout: Row numbers that no trial sees.
        baseline: What trial 0 decodes with.
        greedy: What trial 1 decodes with; None where that is the baseline.
        baseline_note: What the baseline is, in words.
        try_first: What the trials after these decode with, named baselines first; none twice.
        reserve_budget: How many rows of one replicate may be decoded of the holdout, where it is a reserve that is
            decoded in stages; None where it is not.
        split_note: Which rows are searched and which judge, and why, in words; empty where there is no verdict.
        baselines: All baselines that have a name, the one in use too.
        halves: Where two halves of the rows are searched apart and judge each other's winner; None for a holdout.
        rule: What keeps rows from the search: a share, or halves.
    """

    task: PreparedTask
    rows: SearchRows
    holdout: tuple[int, ...]
    baseline: GenerationParams
    greedy: GenerationParams | None
    baseline_note: str = ""
    try_first: tuple[Candidate, ...] = ()
    reserve_budget: int | None = None
    split_note: str = ""
    baselines: Mapping[str, GenerationParams] = field(default_factory=dict)
    halves: Halves | None = None
    rule: HoldoutRule = field(default_factory=HoldoutRule)

    def rows_of(self, number: int) -> SearchRows:
        """The rows that a trial is run on."""
        half = None if self.halves is None else self.halves.of_trial(number)
        return self.rows if self.halves is None or half is None else self.halves.parts[half]

    @property
    def judged(self) -> tuple[int, ...]:
        """Row numbers on which the verdict is made: those held out, or where halves judge each other, all."""
        return self.holdout if self.halves is None else self.rows.order

    @property
    def stages(self) -> StageDesign | None:
        """In which stages the holdout is decoded at most; None where there is no reserve."""
        if self.reserve_budget is None:
            return None
        return StageDesign.of(self.holdout_prompts, most=self.rows.most_stages)

    @property
    def holdout_prompts(self) -> int:
        """Different prompts of the holdout."""
        return len({self.task.distinct[row] for row in self.holdout})

    def most_replicates(self, asked: int) -> int:
        """Return how often a row of the holdout is decoded at most: what a reserve's budget leaves of it.

        Args:
            asked: See `search`, ``holdout_replicates``.
        """
        return asked if self.reserve_budget is None else max(1, min(asked, self.reserve_budget // self.holdout_prompts))

    def write(self, opened: OpenedStudy, served: ResolvedEngine, *, n_trials: int, seed: int) -> None:
        """Store what reports want to show, and every row of the task."""
        opened.records.write_settings(
            {
                "model": served.name,
                **({"server": served.model.server} if served.model.server else {}),
                "data": self.task.name,
                "metric": self.task.metric.name,
                "metric_bounds": self.task.metric.bounds,
                "direction": self.task.direction,
                "objectives": self.rows.objectives.names,
                "n_trials": n_trials,
                "seed": seed,
                "rows": {"search": len(self.rows.order), "holdout": len(self.holdout)},
                **({} if self.halves is None else {"halves": [part.order for part in self.halves.parts]}),
                "replicates": self.rows.replicates,
                **({"samples": self.baseline.samples} if self.baseline.samples > 1 else {}),
                "baseline": self.baseline.canonical,
                "baseline_note": self.baseline_note,
                **({"baselines": {n: p.canonical for n, p in self.baselines.items()}} if self.baselines else {}),
                **({"constraints": self.rows.constraints.limits} if self.rows.constraints else {}),
                "split_note": self.split_note,
                **({"choices": self.task.choices.description} if self.task.choices else {}),
                **({"rendering": self.task.rendering} if self.task.rendering else {}),
                "model_defaults": {n: v for n, v in readable(served.defaults).items() if n != "samples"},
            }
        )
        self._write_other_prompts(opened)
        if opened.records.count_items() == len(self.task):  # they are stored together, and never change
            return
        parts: list[tuple[Literal["search", "holdout"], Sequence[int]]] = [
            ("search", self.rows.order),
            ("holdout", self.holdout),
        ]
        rows = [row for _, order in parts for row in order]
        for place, variant in enumerate(self.task.variants[1:], start=1):
            opened.records.write_prompts(place, {row: variant.prompts[row] for row in rows})
        opened.records.write_items(
            Item(
                row=row,
                part=part,
                position=position,
                prompt=self.task.prompts[row],
                reference=self.task.references[row],
                columns=self.task.rows[row],
                occurrence=self.task.occurrences[row],
            )
            for part, order in parts
            for position, row in enumerate(order)
        )

    def _write_other_prompts(self, opened: OpenedStudy) -> None:
        """Store the prompts of rows that are in no item, where making them anew would take seconds."""
        if not self.task.rendering or len(self.task) < MANY_ROWS:
            return
        stored = {*self.rows.order, *self.holdout}
        others = {row: text for row, text in enumerate(self.task.prompts) if row not in stored}
        if opened.records.count_prompts(0) < len(others):
            opened.records.write_prompts(0, others)


def make_plan(
    task: PreparedTask,
    served: ResolvedEngine,
    space: Space,
    pruner: PairedPruner | optuna.pruners.BasePruner | None,
    options: PlanOptions,
    algorithm: int,
    objectives: Objectives,
    constraints: Constraints = NO_CONSTRAINTS,
) -> Plan:
    """Split the rows and settle the first two trials.

    Raises:
        InputError: max_new_tokens is missing, a prompt is too long for the model, or a share is out of range.
    """
    baselines = Baselines.of(options["baseline"], options["baselines"]).labelled(task.choices)
    baseline, folds, seed = baselines.in_use, options["folds"], options["seed"]
    taken_over = space.comparable if algorithm >= 2 else space.fixed
    # what names no prompt has the first of several
    defaults = {**served.defaults, **task.choices.first}
    values = space.baseline_values(defaults, baseline, taken_over=taken_over)
    first = GenerationParams.of(values, defaults)
    useless = {
        branch and f"branch {branch}": names for branch, names in inert_by_branch(space, served.defaults).items()
    }
    if warning := inert_warning(
        {**useless, "the baseline": [name for name in first.inert if name in (baseline or {})]}
    ):
        logger.warning("%s", warning)
    # Only how tokens are picked changes; a penalty or a stop string of the baseline stays.
    greedy = GenerationParams.of({**values, "do_sample": False, "num_beams": 1}, defaults)
    beside = _named_params(space, defaults, baselines)
    if same := same_as(beside, {"the baseline": first, "greedy decoding": greedy}):
        told = "; ".join(f"{name!r} decodes as {other} does" for name, other in same.items())
        logger.warning("not run again, since it is there already: %s", told)
    named = tuple(
        replace(_candidate_of(space, defaults, params), baseline=name)
        for name, params in beside.items()
        if name not in same
    )
    known = (first, greedy, *(params for name, params in beside.items() if name not in same))
    named += tuple(_named_candidates(space, task.choices, defaults, options["try_first"], known=known))
    longest = max(p.max_new_tokens for p in (first, *(c.generation for c in named if c.generation is not None)))
    task.check_lengths(served.prompt_tokens, served.positions, longest)
    if warning := endless_warning(task, served.tokenizer, first):
        logger.warning("%s", warning)
    rule = HoldoutRule.of(options, task.distinct, objectives, constraints, algorithm)
    split = split_of(rule, options, task.distinct, algorithm)
    order, held_out = split.search, split.holdout
    rows = SearchRows(
        task=task,
        order=order,
        objectives=objectives,
        folds=() if folds is None else assign_folds([task.distinct[row] for row in order], folds, seed),
        replicates=options["replicates"],
        constraints=constraints,
        compares_all=options["verdict_against"] == "all",
        **({"first_step": pruner.min_rows, "step_size": pruner.step} if isinstance(pruner, PairedPruner) else {}),
    )
    halves = None
    if rule.kept == CROSS:
        halves = Halves.of(rows, shared=1 + (greedy != first) + len(named), seed=seed)
    elif rule.kept and not held_out:
        logger.warning("%d rows are too few to hold some out; there will be no verdict", len(task))
    constraints.refuse_what_cannot_be_shown(len({task.distinct[row] for row in order}))
    prompts = len({task.distinct[row] for row in held_out})
    for name, needed in constraints.rows_to_hold_out(HOLDOUT_LEVEL).items():
        if held_out and needed > prompts:
            logger.warning(
                "%d held-out prompts cannot show that %s %s holds, even where every answer is right; it takes %d",
                *(prompts, name, constraints.limits[name], needed),
            )
    note = baseline_note(
        space,
        first,
        served.defaults,
        is_given=baseline is not None,
        name=baselines.name,
        of_task=task.description.get("generation", {}),
    )
    all_named = {**({baselines.name: first} if baselines.name else {}), **beside}
    return Plan(
        task,
        rows,
        held_out,
        first,
        None if greedy == first else greedy,
        note,
        named,
        options["holdout_rows"] if split.is_reserve else None,
        " ".join(filter(None, [split_note(rows, split, halves), rule.why if halves or held_out else ""])),
        all_named,
        halves,
        rule,
    )


def split_note(rows: SearchRows, split: Split, halves: Halves | None) -> str:
    """Return which rows are searched and which judge, in words for people; empty where none do.

    Args:
        rows: The search rows.
        split: Which rows are held out.
        halves: Of the rows, where these judge each other.
    """
    task = rows.task
    if halves is not None:
        first, second = (len(part.order) for part in halves.parts)
        return (
            f"All {first + second:,} rows are searched and judged: in two halves of {first:,} and {second:,}, which "
            "share no prompt. Each trial belongs to one half; the winner of each is judged on the other, which it has "
            "not seen."
        )
    if not split.holdout:
        return ""
    if not split.is_reserve:
        return f"{len(split.holdout):,} of {len(task):,} rows are held out for the verdict: no trial sees them."
    stages = len(StageDesign.of(len({task.distinct[row] for row in split.holdout}), most=rows.most_stages))
    return (
        f"{len(split.search):,} of {len(task):,} rows are searched: every trial pays for each of them. "
        f"{len(split.holdout):,} others are the reserve, on which the winner is compared with the baseline"
        + (f", in up to {stages} stages." if stages > 1 else ".")
    )


def _named_params(space: Space, defaults: Mapping[str, Any], baselines: Baselines) -> dict[str, GenerationParams]:
    """What the baselines beside the one in use decode with, completed as that one is."""
    found = {}
    for name, given in baselines.beside().items():
        try:
            found[name] = GenerationParams.of(space.baseline_values(defaults, given), defaults)
        except InputError as problem:
            raise InputError(f"baselines[{name!r}]: {problem}") from None
        if warning := inert_warning({f"baselines[{name!r}]": [n for n in found[name].inert if n in given]}):
            logger.warning("%s", warning)
    return found


def _candidate_of(space: Space, defaults: Mapping[str, Any], params: GenerationParams) -> Candidate:
    return candidate_of(space, params.canonical, params, CandidateMaker(defaults))


def baseline_note(
    space: Space,
    baseline: GenerationParams,
    defaults: Mapping[str, Any],
    *,
    is_given: bool,
    name: str = "",
    of_task: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Return what the baseline is, and what the space fixes that it has not, in words for people.

    Args:
        space: What is searched.
        baseline: The first trial's parameters.
        defaults: The model's generation configuration.
        is_given: Whether the user gave a baseline.
        name: What it is called, where it has a name.
        of_task: What the task lays over the model's generation configuration.
    """
    given = f"{name!r} of baselines=" if name else "what baseline= says"
    origin = given if is_given else "the model's generation configuration"
    if of_task and not is_given:
        origin += f", with what the task says ({', '.join(f'{name}={value!r}' for name, value in of_task.items())})"
    drawn = f", {baseline.samples} samples a row" if baseline.samples > 1 else ""
    text = f"The baseline is {origin}, up to {baseline.max_new_tokens} new tokens{drawn}."
    try:
        fixed = GenerationParams.of({**baseline.canonical, **space.fixed}, defaults)
    except InputError:  # refused together: then each trial says why
        return text
    differing = [name for name in space.fixed if fixed.get(name) != baseline.get(name)]
    tested = [f"{name}={fixed.get(name, space.fixed[name])!r}" for name in differing]
    if not tested:
        return text
    verb = "is" if len(tested) == 1 else "are"
    return f"{text} The space fixes {', '.join(tested)} besides, which {verb} part of what is tested."


def _named_candidates(
    space: Space,
    choices: TaskChoices,
    defaults: Mapping[str, Any],
    given: Sequence[Mapping[str, Any]] | None,
    *,
    known: Sequence[GenerationParams],
) -> Iterator[Candidate]:
    """What is to be tried first, without what other trials try before."""
    if isinstance(given, Mapping | str) or (given is not None and not isinstance(given, Sequence)):
        raise InputError(f"try_first={short(given)} must be a list of dicts of generation parameters")
    seen = {params.fingerprint for params in known}
    for place, one in enumerate(given or ()):
        if not isinstance(one, Mapping):
            raise InputError(f"try_first[{place}]={short(one)} must be a dict of generation parameters")
        try:
            values = space.baseline_values(defaults, choices.labelled(one))
            params = GenerationParams.of(values, defaults)
            choices.place(params)
        except InputError as problem:
            raise InputError(f"try_first[{place}]: {problem}") from None
        if warning := inert_warning({f"try_first[{place}]": [name for name in params.inert if name in one]}):
            logger.warning("%s", warning)
        if params.fingerprint not in seen:
            yield candidate_of(space, values, params, CandidateMaker(defaults))
        seen.add(params.fingerprint)


def endless_warning(task: PreparedTask, tokenizer: Any, params: GenerationParams) -> str | None:
    """Return what is said where no answer can end by itself; None where answers can.

    Args:
        task: Its prompts may be wrapped in the chat template.
        tokenizer: Has the template.
        params: How the baseline decodes.
    """
    markers = None if all(task.under(params).add_special_tokens) else chat_markers(tokenizer)
    if markers is None or markers.last is None or markers.last in params.stop:
        return None
    token = tokenizer.convert_tokens_to_ids(markers.last)
    known = list(params.eos_token_ids)
    if token is None or token in known or [token] in [list(ids) for ids in params.stop_token_sequences]:
        return None
    return (
        f"the chat template ends an answer with {markers.last!r}, which is token {token} and not among the baseline's "
        f"eos_token_id ({', '.join(map(str, known)) or 'none'}): no answer ends by itself, and every row may run to "
        f"max_new_tokens. Add it to baseline and space: eos_token_id={[*known, token]}"
    )


def readable(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are set."""
    return {name: value for name, value in values.items() if value is not None}

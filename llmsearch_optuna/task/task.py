"""What is to be solved: rows, a prompt for each, a reference for each, and the metric that compares.

``Task`` is the user's description; it is prepared once (see `prepared_task`). Parameters, models and trials must not
enter; a tokenizer is used for its chat template and for counting tokens only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from llmsearch_optuna.engine.sampling.reasoning import ReasoningOption, check_reasoning, reasoning_span
from llmsearch_optuna.errors import InputError, is_one_of, short
from llmsearch_optuna.metrics.aggregates import Aggregate
from llmsearch_optuna.metrics.factories import metric_names
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.postprocess import postprocess_of
from llmsearch_optuna.metrics.references import plain_reference
from llmsearch_optuna.models.tokenization import PromptTokens, check_encode_args
from llmsearch_optuna.task.choice import PROMPT, SYSTEM
from llmsearch_optuna.task.choices import (
    TaskChoices,
    fixed_variables,
    naming,
    shown_labels,
    single_prompt,
    single_system,
)
from llmsearch_optuna.task.content_hash import content_hash
from llmsearch_optuna.task.dataset import Row, Table, dataset_name, read_table
from llmsearch_optuna.task.library_task import is_library_task, read_library_task
from llmsearch_optuna.task.prepared_task import PreparedTask
from llmsearch_optuna.task.preview import Preview, PreviewedRow
from llmsearch_optuna.task.prompt_length import check_limit
from llmsearch_optuna.task.prompt_maker import PromptMaker
from llmsearch_optuna.task.prompts import (
    ReadyPrompt,
    check_chat_template,
    depends_on_the_date,
    make_prompter,
)
from llmsearch_optuna.task.references import reference_columns, references_of
from llmsearch_optuna.task.rendering import RenderedPrompts
from llmsearch_optuna.task.split import same_in_any
from llmsearch_optuna.task.text_checks import check_encodable, check_rows_encodable
from llmsearch_optuna.task.variant import Variant, check_told_apart
from llmsearch_optuna.types import Direction

_log = logging.getLogger("llmsearch_optuna.task.task")


@dataclass(frozen=True)
class Task:
    """A dataset, how its rows become prompts and references, and how answers are scored.

    >>> rows = [{"question": "2 + 2 = ?", "answer": "4"}]
    >>> task = Task(rows, prompt="{question}", reference="answer", metric="exact_match")
    >>> task.prepare().prompts
    ('2 + 2 = ?',)

    Attributes:
        dataset: A datasets.Dataset, list of dicts, DataFrame, path to .jsonl/.json/.csv/.parquet, or hub name;
            or a task of another library, such as ``"lm_eval:gsm8k"``, which has prompts, references and a metric.
        prompt: A template such as ``"Summarize: {dialogue}"``; ``callable(row)`` that returns a text or chat messages;
            ``callable(tokenizer, **columns)``, whose text is taken as ready for the model; or a list of chat
            messages whose contents are templates. None: the column ``prompt``. A list of several of these, or a dict
            of names and prompts, is searched: each trial chooses one.
        reference: A column, several columns (the metric then gets a dict a row), or ``callable(row)``. None: the
            column ``reference`` where there is one, else no references.
        metric: A built-in name, a function, or an ``evaluate`` module, or a dict of several with their weights; see
            ``Metric.of``.
        direction: Whether a higher score is better (``"maximize"``, the default) or a lower one (``"minimize"``).
        postprocess: ``callable(text)`` applied to every completion before it is scored, or a name: ``"strip"``,
            ``"strip_reasoning"``, ``"first_line"``, ``"last_line"``, ``"extract_code"``, ``"json_only"``; or a list of
            names, applied in this order.
        system: A system message before the prompt (without a chat template: a first paragraph). A list of several, or
            a dict of names and messages, is searched; None in it stands for no message.
        chat_template: Wrap prompts in the tokenizer's chat template where it has one. A dict is passed to the
            template as its variables, such as ``{"enable_thinking": False}``. By default prompts are wrapped, but for
            those that are in the chat's format already.
        name: For the study's name; the data's own name otherwise.
        max_prompt_tokens: Cut rows whose prompt is longer: the longest text among their columns loses its
            beginning. A number between 0 and 1 is that quantile of the prompts' lengths. Default: nothing is cut.
        tokenizer_encode_args: What the tokenizer is called with, such as ``{"add_special_tokens": False}`` or
            ``{"truncation": True, "max_length": 512}``. Truncation cuts tokens wherever they are, a chat template's
            too; max_prompt_tokens does not. Default: nothing is cut.
        split: Which split of a dataset that has several.
        subset: Which configuration of a hub dataset that has several.
        limit: Use only the first so many rows.
        metric_options: Options of a built-in metric, such as ``{"schema": "schema.json"}`` of ``json_schema``; where
            several metrics are weighted, a dict of them for each metric, by its name.
        chat_template_kwargs: Variables of the chat template, such as ``{"enable_thinking": [True, False]}``: a list
            is searched, any other value is fixed, as one of ``chat_template`` is.
        reasoning: Between which two texts the model thinks, such as ``("<think>", "</think>")``; what stands there is
            kept apart and not scored. By default (``"auto"``) they are those of the tokenizer and its chat template;
            False is for none.
        generation: Generation parameters that the task is decoded with where nothing else is said, such as stop strings
            that belong to its prompts: they are laid over the model's generation configuration.
        aggregate: What the score of a row with several samples is: ``"mean"`` (the default), ``"pass"`` or
            ``"pass@k"``, ``"majority"``, or ``"best"``; see docs/samples.md.
        scorer: Which sample is the best, for ``aggregate="best"``: a metric that needs no reference, or a function of
            a completion's text; the highest score is the best.
        pass_score: The least score that passes, for ``aggregate="pass"``; 1 by default.
    """

    dataset: Any
    prompt: Any = None
    reference: Any = None
    metric: Any = None
    direction: Direction | None = None
    postprocess: Callable[[str], str] | str | Sequence[str] | None = None
    system: str | Sequence[str | None] | Mapping[str, str | None] | None = None
    chat_template: bool | Mapping[str, Any] | None = None
    name: str | None = None
    max_prompt_tokens: float | None = None
    tokenizer_encode_args: Mapping[str, Any] | None = None
    split: str | None = None
    subset: str | None = None
    limit: int | None = None
    metric_options: Mapping[str, Any] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    reasoning: ReasoningOption = None
    generation: Mapping[str, Any] | None = None
    aggregate: str | None = None
    scorer: Any = None
    pass_score: float | None = None

    def __post_init__(self) -> None:
        if self.direction is not None and not is_one_of(self.direction, "maximize", "minimize"):
            raise InputError(f"direction={short(self.direction)} must be 'maximize' or 'minimize'")
        for name in ("name", "split", "subset"):
            if not isinstance(given := getattr(self, name), str | None):
                raise InputError(f"{name}={short(given)} must be a text")
        if not isinstance(self.metric_options, Mapping | None) or not all(
            isinstance(name, str) for name in self.metric_options or {}
        ):
            raise InputError(f"metric_options={short(self.metric_options)} must be a dict of options")
        postprocess_of(self.postprocess)
        check_chat_template(self.chat_template)
        check_limit(self.max_prompt_tokens)
        check_reasoning(self.reasoning)
        check_encode_args({} if self.tokenizer_encode_args is None else self.tokenizer_encode_args)
        self._aggregate()
        if self.chat_template is False and self.chat_template_kwargs:
            raise InputError(
                "chat_template_kwargs are variables of the chat template, and chat_template=False switches it off"
            )
        TaskChoices.of(self.prompt, self.system, self.chat_template_kwargs)

    @property
    def choices(self) -> TaskChoices:
        """What of the task is searched; nothing where there is one prompt, system message and chat template."""
        return TaskChoices.of(self.prompt, self.system, self.chat_template_kwargs)

    def asked_with(self, labels: Mapping[str, Any]) -> Task:
        """Return the task with one prompt, one system message and one value of each variable of the chat template.

        Args:
            labels: What is chosen, one of the combinations of `choices`.
        """
        chosen = self.choices.options(labels)
        variables = {**fixed_variables(self.chat_template_kwargs), **chosen.get("chat_template_kwargs", {})}
        template = self.chat_template
        if variables:
            template = {**(template if isinstance(template, Mapping) else {}), **variables}
        return replace(
            self,
            prompt=chosen[PROMPT] if PROMPT in chosen else single_prompt(self.prompt),
            system=chosen[SYSTEM] if SYSTEM in chosen else single_system(self.system),
            chat_template=template,
            chat_template_kwargs=None,
        )

    def _variants(self) -> list[tuple[Mapping[str, Any], Task]]:
        """The task under each combination of what is chosen, with the labels of these."""
        return [(labels, self.asked_with(labels)) for labels in self.choices.combinations()]

    @staticmethod
    def of(dataset: Any, **described: Any) -> Task:
        """Return the task for a dataset and what describes it; a task is changed where a description is given.

        Descriptions that are None say nothing.
        """
        unknown = set(described) - {field.name for field in fields(Task)}
        if unknown:
            raise InputError(f"a task has no {', '.join(sorted(unknown))}")
        given = {name: value for name, value in described.items() if value is not None}
        return replace(dataset, **given) if isinstance(dataset, Task) else Task(dataset, **given)

    def read(self) -> Task:
        """Return the task with its rows in the place of where they are, so that a model need not be loaded in vain.

        Raises:
            InputError: Data, prompt, reference or metric cannot be used; the message says which row or column.
        """
        if is_library_task(self.dataset):
            return self._of_library().read()
        table = self._table()
        rows = table.rows
        columns = list(rows[0])
        self._warn_of_class_labels(self._metric(), table)
        next(references_of(self.reference, rows, columns))
        for labels, variant in self._variants():
            with naming(labels):
                make_prompter(variant.prompt, columns)
        return replace(self, dataset=list(rows), name=self.study_part, split=None, subset=None, limit=None)

    def _of_library(self) -> Task:
        """The task with what the library says; what the user says goes before it, but for the prompts."""
        for name, value in (("prompt", self.prompt), ("split", self.split), ("subset", self.subset)):
            if value is not None:
                raise InputError(f"{name}={value!r} has no effect here: the task {self.dataset!r} says that itself")
        if not isinstance(self.system, str | None):
            raise InputError(f"system={self.system!r}: the prompts of {self.dataset!r} are made once; give one text")
        says = self.chat_template_kwargs if self.chat_template is None else self.chat_template is not False
        wraps = None if says is None else bool(says)
        found = read_library_task(self.dataset, limit=self.limit, system=self.system, wraps=wraps)
        of_metric = found.direction if self.metric is None else None
        return replace(
            self,
            dataset=list(found.rows),
            metric=self.metric or found.metric,
            direction=self.direction or of_metric,
            name=self.name or found.name,
            system=None,
            chat_template=(self.chat_template or True) if found.wraps else False,
            generation={**found.generation, **(self.generation or {})},
            limit=None,
        )

    def prepare(
        self,
        tokenizer: Any = None,
        *,
        takes_messages: bool = False,
        tokens: PromptTokens | None = None,
        stored: RenderedPrompts | None = None,
    ) -> PreparedTask:
        """Read the data, make all prompts and references, and try the metric.

        Args:
            tokenizer: For its chat template and for max_prompt_tokens; None where an engine takes plain text.
            takes_messages: Whether the engine applies its model's chat template itself. A tokenizer takes precedence.
            tokens: Of this tokenizer, where prompts are to be tokenized by others as well.
            stored: The prompts of a study that goes on; they are the same with it and without.

        Raises:
            InputError: Data, prompt, reference or metric cannot be used; the message says which row or column.
        """
        if is_library_task(self.dataset):
            return self._of_library().prepare(tokenizer, takes_messages=takes_messages, tokens=tokens, stored=stored)
        rows = self._rows()
        columns = list(rows[0])
        check_rows_encodable(rows)
        metric = self._metric()
        references = tuple(references_of(self.reference, rows, columns))
        if metric.is_built_in:
            references = tuple(map(plain_reference, references))
        for number, reference in enumerate(references):
            check_encodable(reference, f"row {number}, reference")
        if self.chat_template in (True, None) and depends_on_the_date(tokenizer):
            _log.warning(
                "this tokenizer's chat template may write today's date into every prompt, and a study cannot go on "
                "with other prompts tomorrow; fix it with chat_template={'date_string': '26 Jul 2024'}"
            )
        made: list[Variant] = []
        rendering = ""
        for labels, variant in self._variants():
            with naming(labels):
                check_encodable(variant.system, "system=")
                maker = variant._prompt_maker(columns, tokenizer, takes_messages, tokens)
                contents = maker.contents(rows)
                rendering = "" if self.choices else maker.rendering(contents)  # a study stores those of one way to ask
                known = None if stored is None else stored.of(rendering, len(rows))
                prompts, cut = maker.prompts(rows, contents, known)
            made.append(Variant(labels, tuple(prompts), cut))
        checked = self._aggregate().over(
            metric.check(references, rows, direction=self.direction),
            rows,
            direction=self.direction or "maximize",
            hidden=reference_columns(self.reference),
        )
        span = reasoning_span(self.reasoning, tokenizer)
        first, choices = made[0], self.choices
        if choices:
            check_told_apart(made)
        prepared = PreparedTask(
            name=self.study_part,
            prompts=first.texts,
            add_special_tokens=first.add_special_tokens,
            references=references,
            rows=rows,
            metric=checked,
            direction=self.direction or "maximize",
            occurrences=first.occurrences,
            distinct=same_in_any([variant.texts for variant in made]),
            cut_rows=first.cut_rows,
            encode_args=check_encode_args(self.tokenizer_encode_args or {}),
            description={
                **self.asked_with(choices.first)._description(first.prompts, references, rows, checked),
                **({} if span is None else {"reasoning": span.description}),
            },
            chats=first.chats,
            reasoning=span,
            finds_reasoning=self.reasoning in (None, "auto"),
            rendering=rendering,
        )
        if not choices:
            return prepared
        prepared = replace(prepared, choices=choices)
        return replace(
            prepared,
            variants=tuple(variant.of(prepared) for variant in made),
            description={
                **prepared.description,
                "choices": choices.description,
                "chosen_prompts": [variant.content for variant in made],
            },
        )

    def preview(self, n: int = 3, tokenizer: Any = None) -> Preview:
        """Return the first ``n`` prepared prompts and references, to be printed or shown in a notebook.

        With a tokenizer the prompts are as the model will see them, and their tokens are counted.
        """
        if is_library_task(self.dataset):
            return self._of_library().preview(n, tokenizer)
        rows = self._rows()
        columns = list(rows[0])
        shown = rows[: max(n, 1)]
        # a quantile is one of all prompts
        needed = rows if isinstance(self.max_prompt_tokens, float) else shown
        found = []
        for labels, variant in self._variants():
            with naming(labels):
                maker = variant._prompt_maker(columns, tokenizer)
                prompts, cut = maker.prompts(needed, maker.contents(needed))
            references = references_of(self.reference, shown, columns)
            found += [
                PreviewedRow(
                    number=number,
                    prompt=prompt.text,
                    reference=reference,
                    tokens=None if tokenizer is None else maker.counter.of(prompt),
                    is_cut=number in cut,
                    variant=shown_labels(labels),
                )
                for number, (prompt, reference) in enumerate(zip(prompts, references, strict=False))
            ]
        return Preview(name=self.study_part, rows_total=len(rows), rows=tuple(found), rows_shown=len(shown))

    @property
    def study_part(self) -> str:
        """The task's name in a study's name: letters, digits, dots and dashes."""
        return re.sub(r"[^\w.-]+", "-", self.name or dataset_name(self.dataset)).strip("-") or "data"

    def _rows(self) -> tuple[Row, ...]:
        return self._table().rows

    def _table(self) -> Table:
        return read_table(self.dataset, split=self.split, subset=self.subset, limit=self.limit)

    def _warn_of_class_labels(self, metric: Metric, table: Table) -> None:
        """Say where references are the numbers of classes: a text with a class's name equals none of them."""
        column = "reference" if self.reference is None else self.reference
        names = table.class_names.get(column) if isinstance(column, str) else None
        if names and metric.is_built_in:
            _log.warning(
                "the references %r are class labels, the numbers 0 to %d of %s: a text that says %r equals none of "
                "them. Where prompts ask for the name: reference=lambda row: NAMES[row[%r]]",
                column, len(names) - 1, short(names, 80), names[0], column,
            )  # fmt: skip

    @property
    def metric_name(self) -> str:
        """What the metric is called.

        Raises:
            InputError: There is none, or it cannot be used.
        """
        return self._metric().name

    def _metric(self) -> Metric:
        if self.metric is None:
            raise InputError(
                f"metric= is missing: give one of {', '.join(metric_names())}, a function(predictions, references), "
                "or a loaded evaluate module"
            )
        metric = Metric.of(self.metric, options=self.metric_options)
        postprocess = postprocess_of(self.postprocess)
        return metric if postprocess is None else metric.after(postprocess)

    def _aggregate(self) -> Aggregate:
        found = Aggregate.of(self.aggregate, scorer=self.scorer, pass_score=self.pass_score)
        postprocess = postprocess_of(self.postprocess)
        return found if postprocess is None else found.after(postprocess)

    def _prompt_maker(
        self, columns: Sequence[str], tokenizer: Any, takes_messages: bool = False, tokens: PromptTokens | None = None
    ) -> PromptMaker:
        return PromptMaker(
            prompter=make_prompter(self.prompt, columns),
            system=single_system(self.system),
            chat_template=self.chat_template,
            max_prompt_tokens=self.max_prompt_tokens,
            encode_args=self.tokenizer_encode_args or {},
            tokenizer=tokenizer,
            takes_messages=takes_messages,
            tokens=tokens,
        )

    def _description(
        self,
        prompts: Sequence[ReadyPrompt],
        references: Sequence[Any],
        rows: Sequence[Row],
        metric: Metric,
    ) -> dict[str, Any]:
        """What counts in a fingerprint. A prompt function counts by the prompts it made, not by its source."""
        described = {
            "name": self.study_part,
            "rows": len(prompts),
            "prompts": content_hash([prompt.text for prompt in prompts]),
            "references": content_hash(references),
            "prompt": make_prompter(self.prompt, list(rows[0])).description,
            "system": self.system,
            "chat_template": dict(self.chat_template)
            if isinstance(self.chat_template, Mapping)
            else self.chat_template is not False,
            "metric": {"name": metric.name, "bounds": metric.bounds and list(metric.bounds), **metric.description},
            "direction": self.direction or "maximize",
        }
        if any(prompt.chat for prompt in prompts):
            described["messages"] = content_hash([prompt.chat and prompt.chat.messages for prompt in prompts])
        if self.generation:
            described["generation"] = dict(self.generation)
        if self.tokenizer_encode_args:
            described["tokenizer_encode_args"] = check_encode_args(self.tokenizer_encode_args)
        if "built_in" not in metric.description:  # a user's scorer may read any column
            described["columns"] = content_hash(rows)
        elif metric.columns:
            described["metric_columns"] = content_hash([[row.get(name) for name in metric.columns] for row in rows])
        return described

"""What is to be solved: rows, a prompt for each, a reference for each, and the metric that compares.

``Task`` is the user's description, ``PreparedTask`` what a search works on. Parameters, models and trials must not
enter; a tokenizer is used for its chat template and for counting tokens only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.inputs.callables import callable_name
from llmsearch_optuna.inputs.preview import Preview, PreviewedRow
from llmsearch_optuna.inputs.prompts import (
    Prompter,
    ReadyPrompt,
    depends_on_the_date,
    is_empty,
    make_prompter,
    ready,
)
from llmsearch_optuna.inputs.rows import Row, dataset_name, missing_column, read_rows
from llmsearch_optuna.inputs.splits import split_rows
from llmsearch_optuna.metrics import BUILT_IN, Metric

__all__ = ["Direction", "PreparedTask", "Task", "split_rows"]

_log = logging.getLogger("llmsearch_optuna.task")

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class PreparedTask:
    """A task whose prompts are ready for the model. All sequences have one entry a row.

    Attributes:
        name: For the study's name.
        prompts: Texts to be decoded, chat template applied.
        add_special_tokens: False where the special tokens stand in the text already (no second BOS).
        references: What the metric compares with.
        rows: The rows themselves.
        metric: Tried on the first rows; applies the postprocessing itself.
        direction: ``"maximize"`` or ``"minimize"``.
        occurrences: How many earlier rows have the same prompt.
        distinct: Which distinct prompt the row has, numbered as they first appear.
        cut_rows: The numbers of the rows that max_prompt_tokens shortened.
        description: What counts in a study's fingerprint; JSON-able.
    """

    name: str
    prompts: tuple[str, ...]
    add_special_tokens: tuple[bool, ...]
    references: tuple[Any, ...]
    rows: tuple[Row, ...]
    metric: Metric
    direction: Direction
    occurrences: tuple[int, ...]
    distinct: tuple[int, ...]
    cut_rows: tuple[int, ...]
    description: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.prompts)

    def token_counts(self, tokenizer: Any) -> tuple[int, ...]:
        """Return how many tokens each prompt has."""
        pairs = zip(self.prompts, self.add_special_tokens, strict=True)
        return tuple(_token_count(tokenizer, text, special) for text, special in pairs)

    def check_lengths(self, tokenizer: Any, max_context: int | None, max_new_tokens: int) -> tuple[int, ...]:
        """Return the prompts' token counts, after making sure that each leaves room for the new tokens.

        Args:
            tokenizer: The model's.
            max_context: How many positions the model has; None where it has no limit (nothing is refused then).
            max_new_tokens: The most new tokens of any trial.

        Raises:
            InputError: Some prompts do not fit; their row numbers are named.
        """
        counts = self.token_counts(tokenizer)
        if max_context is None:
            return counts
        room = max_context - max_new_tokens
        if room < 1:
            raise InputError(f"max_new_tokens={max_new_tokens} fills the model's context of {max_context} tokens alone")
        long = [number for number, count in enumerate(counts) if count > room]
        if long:
            shown = ", ".join(f"row {number} ({counts[number]} tokens)" for number in long[:8])
            more = f" and {len(long) - 8} more" if len(long) > 8 else ""
            raise InputError(
                f"{len(long)} of {len(counts)} prompts do not fit into the model's context: {shown}{more}. With "
                f"max_new_tokens={max_new_tokens} its {max_context} tokens leave {room} for the prompt. Leave these "
                f"rows out, lower max_new_tokens, or cut long rows with max_prompt_tokens={room}."
            )
        return counts


@dataclass(frozen=True)
class Task:
    """A dataset, how its rows become prompts and references, and how answers are scored.

    >>> rows = [{"question": "2 + 2 = ?", "answer": "4"}]
    >>> task = Task(rows, prompt="{question}", reference="answer", metric="exact_match")
    >>> task.prepare().prompts
    ('2 + 2 = ?',)

    Attributes:
        dataset: A datasets.Dataset, list of dicts, DataFrame, path to .jsonl/.json/.csv/.parquet, or hub name.
        prompt: A template such as ``"Summarize: {dialogue}"``; ``callable(row)`` that returns a text or chat messages;
            ``callable(tokenizer, **columns)``, whose text is taken as ready for the model; or a list of chat
            messages whose contents are templates. None: the column ``prompt``.
        reference: A column, several columns (the metric then gets a dict a row), or ``callable(row)``. None: the
            column ``reference`` where there is one, else no references.
        metric: A built-in name, a function, or an ``evaluate`` module; see ``Metric.of``.
        direction: Whether a higher score is better (``"maximize"``) or a lower one.
        postprocess: ``callable(text)`` applied to every completion before it is scored.
        system: A system message before the prompt (without a chat template: a first paragraph).
        chat_template: Wrap prompts in the tokenizer's chat template where it has one. A dict is handed to the
            template as its variables, such as ``{"enable_thinking": False}``.
        name: For the study's name; the data's own name otherwise.
        max_prompt_tokens: Cut rows whose prompt is longer: the longest text among their columns loses its
            beginning. Default: nothing is cut.
        split: Which split of a dataset that has several.
        subset: Which configuration of a hub dataset that has several.
        limit: Use only the first so many rows.
    """

    dataset: Any
    prompt: Any = None
    reference: Any = None
    metric: Any = None
    direction: Direction = "maximize"
    postprocess: Callable[[str], str] | None = None
    system: str | None = None
    chat_template: bool | Mapping[str, Any] = True
    name: str | None = None
    max_prompt_tokens: int | None = None
    split: str | None = None
    subset: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.direction not in ("maximize", "minimize"):
            raise InputError(f"direction={self.direction!r} must be 'maximize' or 'minimize'")
        if self.postprocess is not None and not callable(self.postprocess):
            raise InputError(f"postprocess={self.postprocess!r} must be a function from text to text")
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 1:
            raise InputError(f"max_prompt_tokens={self.max_prompt_tokens} must be at least 1")

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

    def prepare(self, tokenizer: Any = None) -> PreparedTask:
        """Read the data, make all prompts and references, and try the metric.

        Args:
            tokenizer: For its chat template and for max_prompt_tokens; None where an engine takes plain text.

        Raises:
            InputError: Data, prompt, reference or metric cannot be used; the message says which row or column.
        """
        rows = self._rows()
        columns = list(rows[0])
        metric = self._metric()
        references = tuple(_references(self.reference, rows, columns))
        prompter = make_prompter(self.prompt, columns)
        if self.chat_template is True and depends_on_the_date(tokenizer):
            _log.warning(
                "this tokenizer's chat template may write today's date into every prompt, and a study cannot go on "
                "with other prompts tomorrow; fix it with chat_template={'date_string': '26 Jul 2024'}"
            )
        prompts, cut = self._prompts(prompter, rows, tokenizer)
        texts = [prompt.text for prompt in prompts]
        checked = metric.check(references, rows)
        return PreparedTask(
            name=self.study_part,
            prompts=tuple(texts),
            add_special_tokens=tuple(not prompt.from_chat_template for prompt in prompts),
            references=references,
            rows=rows,
            metric=checked,
            direction=self.direction,
            occurrences=_occurrences(texts),
            distinct=_distinct(texts),
            cut_rows=cut,
            description=self._description(texts, references, rows, prompter, checked),
        )

    def preview(self, n: int = 3, tokenizer: Any = None) -> Preview:
        """Return the first ``n`` prepared prompts and references, to be printed or shown in a notebook.

        With a tokenizer the prompts are as the model will see them, and their tokens are counted.
        """
        rows = self._rows()
        columns = list(rows[0])
        shown = rows[: max(n, 1)]
        prompts, cut = self._prompts(make_prompter(self.prompt, columns), shown, tokenizer)
        references = _references(self.reference, shown, columns)
        return Preview(
            name=self.study_part,
            rows_total=len(rows),
            rows=tuple(
                PreviewedRow(
                    number=number,
                    prompt=prompt.text,
                    reference=reference,
                    tokens=None
                    if tokenizer is None
                    else _token_count(tokenizer, prompt.text, not prompt.from_chat_template),
                    is_cut=number in cut,
                )
                for number, (prompt, reference) in enumerate(zip(prompts, references, strict=True))
            ),
        )

    @property
    def study_part(self) -> str:
        """The task's name in a study's name: letters, digits, dots and dashes."""
        return re.sub(r"[^\w.-]+", "-", self.name or dataset_name(self.dataset)).strip("-") or "data"

    def _rows(self) -> tuple[Row, ...]:
        return read_rows(self.dataset, split=self.split, subset=self.subset, limit=self.limit)

    def _metric(self) -> Metric:
        if self.metric is None:
            raise InputError(
                f"metric= is missing: give one of {', '.join(BUILT_IN)}, a function(predictions, references), "
                "or a loaded evaluate module"
            )
        metric = Metric.of(self.metric)
        return metric if self.postprocess is None else metric.after(self.postprocess)

    def _prompts(
        self, prompter: Prompter, rows: Sequence[Row], tokenizer: Any
    ) -> tuple[list[ReadyPrompt], tuple[int, ...]]:
        """Return the ready prompts and the numbers of the rows that had to be cut for them."""
        if self.max_prompt_tokens is not None and tokenizer is None:
            raise InputError("max_prompt_tokens counts tokens, and there is no tokenizer; give tokenizer=")
        prompts, cut = [], []
        for number, row in enumerate(rows):
            with _naming_row(number):
                made = self._prompt(prompter, row, tokenizer)
                if self._is_too_long(made, tokenizer):
                    made = self._cut(prompter, row, tokenizer)
                    cut.append(number)
                prompts.append(made)
        if cut:
            _log.warning("max_prompt_tokens=%d cut %d of %d rows", self.max_prompt_tokens, len(cut), len(rows))
        return prompts, tuple(cut)

    def _prompt(self, prompter: Prompter, row: Row, tokenizer: Any) -> ReadyPrompt:
        content = prompter.content(row, tokenizer)
        made = ready(content, tokenizer, system=self.system, chat_template=self.chat_template)
        if not made.text:
            raise InputError("its prompt is an empty text")
        return made

    def _is_too_long(self, made: ReadyPrompt, tokenizer: Any) -> bool:
        if self.max_prompt_tokens is None:
            return False
        return _token_count(tokenizer, made.text, not made.from_chat_template) > self.max_prompt_tokens

    def _cut(self, prompter: Prompter, row: Row, tokenizer: Any) -> ReadyPrompt:
        """Shorten the longest text column from its beginning: template, instruction and the last words stay."""
        texts = {name: value for name, value in row.items() if isinstance(value, str)}
        longest = max(texts, key=lambda name: len(texts[name]), default=None)
        fitting = None
        if longest is not None:
            least, most = 0, len(texts[longest])
            while least <= most:
                kept = (least + most) // 2
                text = texts[longest][len(texts[longest]) - kept :]
                made = self._prompt(prompter, {**row, longest: text}, tokenizer)
                if self._is_too_long(made, tokenizer):
                    most = kept - 1
                else:
                    fitting, least = made, kept + 1
        if fitting is None:
            raise InputError(
                f"its prompt has more than max_prompt_tokens={self.max_prompt_tokens} tokens even without its longest "
                f"column ({longest!r}); raise max_prompt_tokens or shorten the template"
            )
        return fitting

    def _description(
        self,
        texts: Sequence[str],
        references: Sequence[Any],
        rows: Sequence[Row],
        prompter: Prompter,
        metric: Metric,
    ) -> dict[str, Any]:
        """What counts in a fingerprint. A prompt function counts by the prompts it made, not by its source."""
        described = {
            "name": self.study_part,
            "rows": len(texts),
            "prompts": _hash(texts),
            "references": _hash(references),
            "prompt": prompter.description,
            "system": self.system,
            "chat_template": dict(self.chat_template)
            if isinstance(self.chat_template, Mapping)
            else self.chat_template,
            "metric": {"name": metric.name, "bounds": metric.bounds and list(metric.bounds), **metric.description},
            "direction": self.direction,
        }
        if "built_in" not in metric.description:  # a user's scorer may read any column
            described["columns"] = _hash(rows)
        return described


def _references(reference: Any, rows: Sequence[Row], columns: Sequence[str]) -> Iterator[Any]:
    if reference is None:
        reference = "reference" if "reference" in columns else None
    if reference is None:
        yield from (None for _ in rows)
    elif callable(reference):
        yield from _called_references(reference, rows)
    else:
        several = isinstance(reference, Sequence) and not isinstance(reference, str)
        names = list(reference) if several else [reference]
        if not names or not all(isinstance(name, str) for name in names):
            raise InputError(f"reference={reference!r} must be a column, a list of columns, or a function of the row")
        for name in names:
            if name not in columns:
                raise missing_column(name, columns, "reference=")
        _refuse_empty(names, rows)
        yield from ({name: row[name] for name in names} if several else row[names[0]] for row in rows)


def _refuse_empty(names: Sequence[str], rows: Sequence[Row]) -> None:
    for name in names:
        empty = [number for number, row in enumerate(rows) if is_empty(row.get(name))]
        if empty:
            shown = ", ".join(map(str, empty[:8])) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
            raise InputError(f"the reference column {name!r} is empty in row {shown}; leave such rows out")


def _called_references(function: Callable[[Row], Any], rows: Sequence[Row]) -> Iterator[Any]:
    for number, row in enumerate(rows):
        try:
            yield function(dict(row))
        except Exception as problem:
            name = callable_name(function, "the reference function")
            raise InputError(f"row {number}: {name} fails: {type(problem).__name__}: {problem}") from problem


@contextmanager
def _naming_row(number: int) -> Iterator[None]:
    try:
        yield
    except InputError as problem:
        raise InputError(f"row {number}: {problem}") from problem.__cause__


def _occurrences(texts: Sequence[str]) -> tuple[int, ...]:
    seen: Counter[str] = Counter()
    earlier = []
    for text in texts:
        earlier.append(seen[text])
        seen[text] += 1
    return tuple(earlier)


def _distinct(texts: Sequence[str]) -> tuple[int, ...]:
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return tuple(numbers[text] for text in texts)


def _token_count(tokenizer: Any, text: str, add_special_tokens: bool) -> int:
    return len(cast("list[int]", tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]))


def _hash(values: Sequence[Any]) -> str:
    """SHA-256 of values as JSON; what JSON does not know counts by its text, without addresses."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True, default=_textual, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _textual(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))

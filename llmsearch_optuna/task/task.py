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
from typing import Any

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics.factories import metric_names
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.postprocess import postprocess_of
from llmsearch_optuna.metrics.references import plain_reference
from llmsearch_optuna.models.tokenization import Positions, PromptTokens, check_encode_args
from llmsearch_optuna.task.dataset import Row, dataset_name, read_rows
from llmsearch_optuna.task.preview import Preview, PreviewedRow
from llmsearch_optuna.task.prompt_length import TokenCounter, check_limit, cut_to_fit, limit_in_tokens
from llmsearch_optuna.task.prompts import (
    ChatMarkers,
    Prompter,
    ReadyPrompt,
    as_messages,
    chat_markers,
    check_chat_template,
    depends_on_the_date,
    make_prompter,
    ready,
)
from llmsearch_optuna.task.references import references_of
from llmsearch_optuna.task.split import split_rows
from llmsearch_optuna.task.text_checks import check_encodable, check_rows_encodable
from llmsearch_optuna.types import Chat, Direction

__all__ = ["Direction", "PreparedTask", "Task", "split_rows"]

_log = logging.getLogger("llmsearch_optuna.task.task")


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
        cut_rows: The numbers of the rows whose prompts were shortened, by max_prompt_tokens or by the tokenizer.
        encode_args: What the tokenizer is to be called with beside add_special_tokens.
        description: What counts in a study's fingerprint; JSON-able.
        chats: The prompts as messages, where the engine asked for these; None for a prompt that is a text, and empty
            where all are.
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
    encode_args: Mapping[str, Any]
    description: Mapping[str, Any]
    chats: tuple[Chat | None, ...] = ()

    def chat(self, row: int) -> Chat | None:
        """Return a row's prompt as messages, where the engine asked for these."""
        return self.chats[row] if self.chats else None

    def __len__(self) -> int:
        return len(self.prompts)

    def token_counts(self, tokens: PromptTokens) -> tuple[int, ...]:
        """Return how many tokens each prompt has."""
        return tuple(tokens.count(zip(self.prompts, self.add_special_tokens, strict=True), self.encode_args))

    def check_lengths(self, tokens: PromptTokens | None, positions: Positions, max_new_tokens: int) -> None:
        """Make sure that each prompt fits into the model and leaves room for the new tokens.

        Prompts that are so short that they fit in any case are not tokenized.

        Args:
            tokens: Of the model's tokenizer; None is only possible where nothing says how much room there is.
            positions: How many tokens the model has room for.
            max_new_tokens: The most new tokens of any trial.

        Raises:
            InputError: Some prompts do not fit; their row numbers are named.
        """
        if (problem := positions.problem(1, max_new_tokens)) is not None:
            raise InputError(f"not even a prompt of one token fits: {problem}")
        room = positions.room(max_new_tokens)
        if room is None or tokens is None:
            return
        prompts = list(zip(self.prompts, self.add_special_tokens, strict=True))
        most = (tokens.most(text, add_special_tokens) for text, add_special_tokens in prompts)
        open_numbers = [number for number, upper in enumerate(most) if upper is None or upper > room]
        found = tokens.count((prompts[number] for number in open_numbers), self.encode_args)
        counts = dict(zip(open_numbers, found, strict=True))
        long = [number for number, count in counts.items() if count > room]
        if long:
            shown = ", ".join(f"row {number} ({counts[number]} tokens)" for number in long[:8])
            more = f" and {len(long) - 8} more" if len(long) > 8 else ""
            raise InputError(
                f"{len(long)} of {len(prompts)} prompts do not fit into the model: {shown}{more}. With "
                f"max_new_tokens={max_new_tokens} it has room for {room} tokens of prompt. Leave these rows out"
                f"{'' if positions.shared is None else ', lower max_new_tokens'}, or cut long rows with "
                f"max_prompt_tokens={room}."
            )


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
        metric: A built-in name, a function, or an ``evaluate`` module, or a dict of several with their weights; see
            ``Metric.of``.
        direction: Whether a higher score is better (``"maximize"``, the default) or a lower one (``"minimize"``).
        postprocess: ``callable(text)`` applied to every completion before it is scored, or a name: ``"strip"``,
            ``"strip_reasoning"``, ``"first_line"``, ``"last_line"``, ``"extract_code"``, ``"json_only"``; or a list of
            names, applied in this order.
        system: A system message before the prompt (without a chat template: a first paragraph).
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
    """

    dataset: Any
    prompt: Any = None
    reference: Any = None
    metric: Any = None
    direction: Direction | None = None
    postprocess: Callable[[str], str] | str | Sequence[str] | None = None
    system: str | None = None
    chat_template: bool | Mapping[str, Any] | None = None
    name: str | None = None
    max_prompt_tokens: float | None = None
    tokenizer_encode_args: Mapping[str, Any] | None = None
    split: str | None = None
    subset: str | None = None
    limit: int | None = None
    metric_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.direction not in ("maximize", "minimize", None):
            raise InputError(f"direction={self.direction!r} must be 'maximize' or 'minimize'")
        postprocess_of(self.postprocess)
        check_chat_template(self.chat_template)
        check_limit(self.max_prompt_tokens)
        check_encode_args(self.tokenizer_encode_args or {})

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
        rows = self._rows()
        columns = list(rows[0])
        self._metric()
        next(references_of(self.reference, rows, columns))
        make_prompter(self.prompt, columns)
        return replace(self, dataset=list(rows), name=self.study_part, split=None, subset=None, limit=None)

    def prepare(
        self, tokenizer: Any = None, *, takes_messages: bool = False, tokens: PromptTokens | None = None
    ) -> PreparedTask:
        """Read the data, make all prompts and references, and try the metric.

        Args:
            tokenizer: For its chat template and for max_prompt_tokens; None where an engine takes plain text.
            takes_messages: Whether the engine applies its model's chat template itself. A tokenizer takes precedence.
            tokens: Of this tokenizer, where prompts are to be tokenized by others as well.

        Raises:
            InputError: Data, prompt, reference or metric cannot be used; the message says which row or column.
        """
        rows = self._rows()
        columns = list(rows[0])
        check_rows_encodable(rows)
        check_encodable(self.system, "system=")
        metric = self._metric()
        references = tuple(references_of(self.reference, rows, columns))
        if metric.is_built_in:
            references = tuple(map(plain_reference, references))
        for number, reference in enumerate(references):
            check_encodable(reference, f"row {number}, reference")
        prompter = make_prompter(self.prompt, columns)
        if self.chat_template in (True, None) and depends_on_the_date(tokenizer):
            _log.warning(
                "this tokenizer's chat template may write today's date into every prompt, and a study cannot go on "
                "with other prompts tomorrow; fix it with chat_template={'date_string': '26 Jul 2024'}"
            )
        prompts, cut = self._prompts(prompter, rows, tokenizer, takes_messages, tokens)
        texts = [prompt.text for prompt in prompts]
        checked = metric.check(references, rows, direction=self.direction)
        return PreparedTask(
            name=self.study_part,
            prompts=tuple(texts),
            add_special_tokens=tuple(not prompt.from_chat_template for prompt in prompts),
            references=references,
            rows=rows,
            metric=checked,
            direction=self.direction or "maximize",
            occurrences=_occurrences(texts),
            distinct=_distinct(texts),
            cut_rows=cut,
            encode_args=check_encode_args(self.tokenizer_encode_args or {}),
            description=self._description(prompts, references, rows, prompter, checked),
            chats=tuple(prompt.chat for prompt in prompts) if any(prompt.chat for prompt in prompts) else (),
        )

    def preview(self, n: int = 3, tokenizer: Any = None) -> Preview:
        """Return the first ``n`` prepared prompts and references, to be printed or shown in a notebook.

        With a tokenizer the prompts are as the model will see them, and their tokens are counted.
        """
        rows = self._rows()
        columns = list(rows[0])
        shown = rows[: max(n, 1)]
        # a quantile is one of all prompts
        needed = rows if isinstance(self.max_prompt_tokens, float) else shown
        prompts, cut = self._prompts(make_prompter(self.prompt, columns), needed, tokenizer)
        references = references_of(self.reference, shown, columns)
        count = None if tokenizer is None else self._counter(PromptTokens(tokenizer))
        return Preview(
            name=self.study_part,
            rows_total=len(rows),
            rows=tuple(
                PreviewedRow(
                    number=number,
                    prompt=prompt.text,
                    reference=reference,
                    tokens=None if count is None else count.of(prompt),
                    is_cut=number in cut,
                )
                for number, (prompt, reference) in enumerate(zip(prompts, references, strict=False))
            ),
        )

    @property
    def study_part(self) -> str:
        """The task's name in a study's name: letters, digits, dots and dashes."""
        return re.sub(r"[^\w.-]+", "-", self.name or dataset_name(self.dataset)).strip("-") or "data"

    def _rows(self) -> tuple[Row, ...]:
        return read_rows(self.dataset, split=self.split, subset=self.subset, limit=self.limit)

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

    def _prompts(
        self,
        prompter: Prompter,
        rows: Sequence[Row],
        tokenizer: Any,
        takes_messages: bool = False,
        tokens: PromptTokens | None = None,
    ) -> tuple[list[ReadyPrompt], tuple[int, ...]]:
        """Return the ready prompts and the numbers of the rows that had to be cut for them."""
        if tokenizer is None and self.max_prompt_tokens is not None:
            raise InputError("max_prompt_tokens counts tokens, and there is no tokenizer; give tokenizer=")
        if tokenizer is None and self.tokenizer_encode_args:
            raise InputError("tokenizer_encode_args are for a tokenizer, and there is none; give tokenizer=")
        markers = chat_markers(tokenizer)
        prompts = []
        for number, row in enumerate(rows):
            with _naming_row(number):
                prompts.append(self._prompt(prompter, row, tokenizer, takes_messages, markers))
        self._warn_of_chat_format(prompts)
        if tokenizer is None:
            return prompts, ()
        count = self._counter(tokens or PromptTokens(tokenizer))
        cut = self._cut(prompts, prompter, rows, count, markers)
        return prompts, tuple(sorted(cut | self._truncated(prompts, count)))

    def _warn_of_chat_format(self, prompts: Sequence[ReadyPrompt]) -> None:
        """Say where prompts hold what the chat template itself writes."""
        wrapped_before = [n for n, prompt in enumerate(prompts) if prompt.was_in_chat_format]
        if wrapped_before:
            _log.warning(
                "%s in the chat's format already, and not wrapped in the chat template once more; chat_template=True "
                "wraps them, chat_template=False says that none is to be wrapped",
                _some_prompts(wrapped_before, len(prompts), "is", "are"),
            )
        holding = [n for n, prompt in enumerate(prompts) if prompt.holds_special_tokens]
        if holding:
            _log.warning(
                "%s special tokens of the chat template in the text that it wraps, which the model takes for the "
                "chat's own; clean the columns, or say chat_template=False where prompts are ready",
                _some_prompts(holding, len(prompts), "has", "have"),
            )

    def _counter(self, tokens: PromptTokens) -> TokenCounter:
        return TokenCounter(tokens, check_encode_args(self.tokenizer_encode_args or {}))

    def _prompt(
        self,
        prompter: Prompter,
        row: Row,
        tokenizer: Any,
        takes_messages: bool = False,
        markers: ChatMarkers | None = None,
    ) -> ReadyPrompt:
        content = prompter.content(row, tokenizer)
        if takes_messages and tokenizer is None:
            made = as_messages(content, system=self.system, chat_template=self.chat_template)
        else:
            made = ready(content, tokenizer, system=self.system, chat_template=self.chat_template, markers=markers)
        if not made.text:
            raise InputError("its prompt is an empty text")
        check_encodable(made.text, "its prompt")
        return made

    def _cut(
        self,
        prompts: list[ReadyPrompt],
        prompter: Prompter,
        rows: Sequence[Row],
        count: TokenCounter,
        markers: ChatMarkers | None,
    ) -> set[int]:
        """Shorten what is longer than max_prompt_tokens, in place; returns the numbers of these rows."""
        if self.max_prompt_tokens is None:
            return set()
        counts = count.of_all(prompts)
        limit = limit_in_tokens(self.max_prompt_tokens, counts)
        cut = {number for number, tokens in enumerate(counts) if tokens > limit}
        for number in sorted(cut):
            with _naming_row(number):
                prompts[number] = cut_to_fit(
                    rows[number],
                    limit,
                    make=lambda row: self._prompt(prompter, row, count.tokens.tokenizer, markers=markers),
                    count=count.of,
                )
        if cut:
            _log.warning(
                "max_prompt_tokens=%s cut %d of %d rows to %d tokens",
                self.max_prompt_tokens,
                len(cut),
                len(rows),
                limit,
            )
        return cut

    def _truncated(self, prompts: Sequence[ReadyPrompt], count: TokenCounter) -> set[int]:
        """The numbers of the rows whose prompts lose tokens by the user's own arguments for the tokenizer."""
        if not count.truncates:
            return set()
        kept, whole = count.of_all(prompts), count.whole().of_all(prompts)
        lost = {number for number, (tokens, of_all) in enumerate(zip(kept, whole, strict=True)) if tokens < of_all}
        if lost:
            _log.warning(
                "tokenizer_encode_args cut %d of %d prompts on the %s, whatever stood there; max_prompt_tokens= cuts "
                "only the longest column",
                len(lost),
                len(prompts),
                count.tokens.tokenizer.truncation_side,
            )
        return lost

    def _description(
        self,
        prompts: Sequence[ReadyPrompt],
        references: Sequence[Any],
        rows: Sequence[Row],
        prompter: Prompter,
        metric: Metric,
    ) -> dict[str, Any]:
        """What counts in a fingerprint. A prompt function counts by the prompts it made, not by its source."""
        described = {
            "name": self.study_part,
            "rows": len(prompts),
            "prompts": _hash([prompt.text for prompt in prompts]),
            "references": _hash(references),
            "prompt": prompter.description,
            "system": self.system,
            "chat_template": dict(self.chat_template)
            if isinstance(self.chat_template, Mapping)
            else self.chat_template is not False,
            "metric": {"name": metric.name, "bounds": metric.bounds and list(metric.bounds), **metric.description},
            "direction": self.direction or "maximize",
        }
        if any(prompt.chat for prompt in prompts):
            described["messages"] = _hash([prompt.chat and prompt.chat.messages for prompt in prompts])
        if self.tokenizer_encode_args:
            described["tokenizer_encode_args"] = check_encode_args(self.tokenizer_encode_args)
        if "built_in" not in metric.description:  # a user's scorer may read any column
            described["columns"] = _hash(rows)
        elif metric.columns:
            described["metric_columns"] = _hash([[row.get(name) for name in metric.columns] for row in rows])
        return described


def _some_prompts(numbers: Sequence[int], total: int, one: str, several: str) -> str:
    """``3 of 9 prompts (row 0, 4, 5) are``."""
    shown = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
    return f"{len(numbers)} of {total} prompts (row {shown}) {one if len(numbers) == 1 else several}"


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


def _hash(values: Sequence[Any]) -> str:
    """SHA-256 of values as JSON; what JSON does not know counts by its text, without addresses."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True, default=_textual, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _textual(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return plain_reference(value)  # their own order differs from process to process
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))

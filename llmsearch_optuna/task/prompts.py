"""From a row to the text that is ready for the model: templates, functions, messages, and the chat template.

Rows come in one at a time; which of them are decoded, and with what, is not known here.
"""

from __future__ import annotations

import inspect
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llmsearch_optuna.errors import InputError, describe_error, short
from llmsearch_optuna.fingerprint.functions import callable_name
from llmsearch_optuna.metrics.own_copy import own_copy
from llmsearch_optuna.task.dataset import missing_column
from llmsearch_optuna.types import Chat

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReadyPrompt:
    """A prompt that is ready for the model.

    Attributes:
        text: What is tokenized.
        from_chat_template: Whether its special tokens are in the text already: tokenize it without adding any.
        chat: The messages, where whatever decodes applies a chat template of its own; the text is then for people.
        was_in_chat_format: Whether it was left as it is, since it begins as the chat template's own texts do.
        holds_special_tokens: Whether the text that was wrapped has special tokens that the chat template writes.
    """

    text: str
    from_chat_template: bool
    chat: Chat | None = None
    was_in_chat_format: bool = False
    holds_special_tokens: bool = False


Content = str | list[Message] | ReadyPrompt
"""What is asked of a row: a text or messages for the chat template, or a prompt that is ready."""


@dataclass(frozen=True)
class ChatMarkers:
    """What a chat template writes around texts.

    Attributes:
        beginnings: How a conversation begins, with and without the token that begins every text.
        tokens: Special tokens anywhere in a conversation.
        first: The token that begins every text, where the template writes it; else empty.
        last: The special token that ends an answer; None where there is none.
    """

    beginnings: tuple[str, ...]
    tokens: tuple[str, ...]
    first: str = ""
    last: str | None = None

    def begin(self, text: str) -> bool:
        """Whether a text begins as a conversation does."""
        return bool(self.beginnings) and text.lstrip().startswith(self.beginnings)

    def occur_in(self, content: str | list[Message]) -> bool:
        """Whether a text, or a text of messages, has a special token of the template."""
        texts = [content] if isinstance(content, str) else [str(message.get("content")) for message in content]
        return any(token in text for text in texts for token in self.tokens)


_PROBE = "\N{PILCROW SIGN}text\N{PILCROW SIGN}"


def chat_markers(tokenizer: Any) -> ChatMarkers | None:
    """Return what the tokenizer's chat template writes around a user's text; None where it has no template."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        text = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": _PROBE}], tokenize=False, add_generation_prompt=True
            )
        )
    except KeyboardInterrupt:
        raise
    except BaseException:  # a template that wants other roles, or variables
        return None
    head = text.partition(_PROBE)[0] if _PROBE in text else ""
    special = {str(token) for token in getattr(tokenizer, "all_special_tokens", ()) if token}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special |= {str(token) for token in added.values() if getattr(token, "special", False)}
    first = str(getattr(tokenizer, "bos_token", None) or "")
    # A system message that the template writes by itself stands before the user's: its beginning is enough.
    openings = {head.strip(), head.strip().removeprefix(first).strip()}
    openings |= {opening[: _end_of_marker(opening, special)] for opening in openings}
    return ChatMarkers(
        beginnings=tuple(sorted(opening for opening in openings if opening and opening != first)),
        tokens=tuple(sorted(token for token in special if token in text and token != first)),
        first=first if first and head.startswith(first) else "",
        last=_end_of_answer(tokenizer, special),
    )


def _end_of_answer(tokenizer: Any, special: set[str]) -> str | None:
    messages = [{"role": "user", "content": "text"}, {"role": "assistant", "content": _PROBE}]
    try:
        tail = str(tokenizer.apply_chat_template(messages, tokenize=False)).partition(_PROBE)[2]
    except KeyboardInterrupt:
        raise
    except BaseException:
        return None
    found = {tail.find(token): token for token in special if token in tail}
    return found[min(found)] if found else None


def _end_of_marker(opening: str, special: set[str]) -> int:
    """Where the special token ends that a text begins with; its whole length where it begins with none."""
    return max((len(token) for token in special if opening.startswith(token)), default=len(opening))


def check_chat_template(chat_template: Any) -> None:
    """Raise InputError unless this says whether prompts are wrapped, or with which variables."""
    if chat_template is None or isinstance(chat_template, bool | Mapping):
        return
    raise InputError(
        f"chat_template={short(chat_template, 80)} must be True, False, or a dict of variables for the tokenizer's "
        "chat template; another template goes in as {'chat_template': '...'}, which takes a template's text or its name"
    )


class Prompter(Protocol):
    """What a user gave as ``prompt=``, made to work on any row."""

    def content(self, row: Mapping[str, Any], tokenizer: Any) -> str | list[Message] | ReadyPrompt:
        """Return a text or messages for the chat template, or a prompt that is ready.

        Raises:
            InputError: A column is missing or empty, or a function failed or returned no prompt.
        """
        ...

    @property
    def description(self) -> Any:
        """The text of a template; for a function only that it is one (what it returns is what counts)."""
        ...


def make_prompter(prompt: Any, columns: Sequence[str]) -> Prompter:
    """Return the prompter for what a user gave.

    Args:
        prompt: A template such as ``"Summarize: {dialogue}"``, a list of chat messages whose contents are templates,
            ``callable(row)`` or ``callable(tokenizer, **columns)``; None stands for the column ``prompt``.
        columns: The columns that rows have.
    """
    if prompt is None:
        if "prompt" not in columns:
            raise InputError(
                "prompt= is missing: give a template such as 'Summarize: {"
                f"{columns[0] if columns else 'text'}}}', a function of the row, or a dataset with a column 'prompt'. "
                f"The columns are {', '.join(map(repr, columns))}."
            )
        return _Function(lambda row: row["prompt"], "the column 'prompt'")
    if isinstance(prompt, str):
        return _Template(prompt, columns)
    if callable(prompt):
        return _with_tokenizer(prompt, columns) or _Function(prompt, callable_name(prompt, "the prompt function"))
    if isinstance(prompt, Sequence):
        return _Messages(prompt, columns)
    raise InputError(f"prompt={short(prompt)} is no template, function or list of chat messages")


def ready(
    content: str | list[Message] | ReadyPrompt,
    tokenizer: Any,
    *,
    system: str | None,
    chat_template: bool | Mapping[str, Any] | None,
    markers: ChatMarkers | None = None,
    rendered: str | None = None,
) -> ReadyPrompt:
    """Wrap a prompter's content in the tokenizer's chat template, where there is one and it is wanted.

    Args:
        content: What the prompter made of a row.
        tokenizer: Has the template.
        system: A system message before it.
        chat_template: Whether to wrap, or variables for the template; None wraps what is not in the chat's format yet.
        markers: What the template itself writes.
        rendered: What the template makes of it, where that is known.

    Raises:
        InputError: Messages without a chat template, or a chat template that refuses them.
    """
    if isinstance(content, ReadyPrompt):
        return content
    if chat_template is not False and getattr(tokenizer, "chat_template", None):
        says_nothing = chat_template is None and system is None
        if says_nothing and markers is not None and isinstance(content, str) and markers.begin(content):
            has_first = content.startswith(markers.first)  # else tokenizing adds it
            return ReadyPrompt(content, from_chat_template=has_first, was_in_chat_format=True)
        holds = markers is not None and markers.occur_in(content)
        text = _rendered(content, tokenizer, system, chat_template) if rendered is None else rendered
        return ReadyPrompt(text, from_chat_template=True, holds_special_tokens=holds)
    if isinstance(content, list):
        reason = "chat_template=False turns it off" if chat_template is False else "this tokenizer has none"
        reason = "there is no tokenizer" if tokenizer is None else reason
        raise InputError(f"chat messages need a chat template, and {reason}; give the prompt as one text")
    return ReadyPrompt(content if system is None else f"{system}\n\n{content}", from_chat_template=False)


def as_messages(
    content: str | list[Message] | ReadyPrompt, *, system: str | None, chat_template: bool | Mapping[str, Any] | None
) -> ReadyPrompt:
    """Keep a prompter's content as messages, for what applies its model's chat template itself.

    Raises:
        InputError: Messages where the chat template is switched off.
    """
    if isinstance(content, ReadyPrompt) or chat_template is False:
        return ready(content, None, system=system, chat_template=chat_template)
    messages = _messages(content, system)
    extra = dict(chat_template) if isinstance(chat_template, Mapping) else {}
    return ReadyPrompt(_shown(messages), from_chat_template=True, chat=Chat(tuple(messages), extra))


def _shown(messages: Sequence[Message]) -> str:
    """Messages as a text for people; one of the user alone is its content."""
    if len(messages) == 1 and messages[0]["role"] == "user" and isinstance(messages[0]["content"], str):
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def depends_on_the_date(tokenizer: Any) -> bool:
    """Tell whether the chat template writes today's date into the prompt unless it is given one (Llama 3.2)."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", None) or "")


def _messages(content: str | list[Message], system: str | None) -> list[Message]:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def _rendered(
    content: str | list[Message], tokenizer: Any, system: str | None, chat_template: bool | Mapping[str, Any] | None
) -> str:
    messages = _messages(content, system)
    extra = dict(chat_template) if isinstance(chat_template, Mapping) else {}
    _check_template_name(extra.get("chat_template"), tokenizer)
    continued = messages[-1]["role"] == "assistant"  # the model goes on with an answer that was begun for it
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not continued,
            continue_final_message=continued,
            **extra,
        )
    except Exception as problem:
        raise InputError(
            f"the tokenizer's chat template refuses the messages ({', '.join(m['role'] for m in messages)}): {problem}"
        ) from problem
    return str(text)


def _check_template_name(template: Any, tokenizer: Any) -> None:
    """Raise InputError for a name that the tokenizer has no template of; it would be taken for a template's text."""
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, Mapping) else {}
    if isinstance(template, str) and "{" not in template and template not in named:
        known = f"its templates are {', '.join(map(repr, named))}" if named else "it has one template without a name"
        raise InputError(f"chat_template: this tokenizer has no template {short(template, 80)}; {known}")


class _Template:
    def __init__(self, template: str, columns: Sequence[str], where: str = "the prompt template") -> None:
        self._template = template
        self._fields = tuple(_fields(template, where))
        self._where = where
        for name in self._fields:
            if name not in columns:
                raise missing_column(name, columns, where)
        if not self._fields and where == "the prompt template":
            hint = f"; for the column write '{{{template}}}'" if template in columns else ""
            raise InputError(f"the prompt template {template!r} names no column, so that all prompts are equal{hint}")

    @property
    def description(self) -> Any:
        return self._template

    def content(self, row: Mapping[str, Any], tokenizer: Any = None) -> str:
        for name in self._fields:
            if name not in row:
                raise missing_column(name, row, self._where)
            if is_empty(row[name]):
                raise InputError(f"the column {name!r} that {self._where} names is empty")
        try:
            return self._template.format_map(row)
        except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError, AttributeError) as problem:
            raise InputError(
                f"{self._where} {short(self._template)} cannot be filled: {describe_error(problem)}; "
                "for more than columns give a function of the row"
            ) from None


class _Messages:
    def __init__(self, messages: Sequence[Any], columns: Sequence[str]) -> None:
        checked = _checked_messages(messages, "prompt=")
        for message in checked:
            if not isinstance(message["content"], str):
                raise InputError(
                    f"prompt=: the content of {short(message)} must be a template; for other contents give a function "
                    "of the row that returns the messages"
                )
        self._messages = checked
        self._contents = [_Template(message["content"], columns, "a message of prompt=") for message in checked]
        if not any(content._fields for content in self._contents):
            raise InputError("the messages of prompt= name no column, so that all prompts are equal")

    @property
    def description(self) -> Any:
        return [[message["role"], message["content"]] for message in self._messages]

    def content(self, row: Mapping[str, Any], tokenizer: Any) -> list[Message]:
        pairs = zip(self._messages, self._contents, strict=True)
        return [{**message, "content": content.content(row)} for message, content in pairs]


class _Function:
    """A function of the row; its text is wrapped as a template's is."""

    description = "function"

    def __init__(self, function: Callable[[dict[str, Any]], Any], name: str) -> None:
        self._function = function
        self._name = name

    def content(self, row: Mapping[str, Any], tokenizer: Any) -> str | list[Message]:
        return _called(lambda: self._function(own_copy(row)), self._name)


class _TokenizerFunction:
    """``fn(tokenizer, **columns)``: it has the tokenizer, so the text it returns is ready, messages are not."""

    description = "function"

    def __init__(self, function: Callable[..., Any], names: Sequence[str] | None, name: str) -> None:
        self._function = function
        self._names = names
        self._name = name

    def content(self, row: Mapping[str, Any], tokenizer: Any) -> list[Message] | ReadyPrompt:
        if tokenizer is None:
            raise InputError(f"{self._name} takes a tokenizer, and there is none; give tokenizer=")
        given = row if self._names is None else {name: row[name] for name in self._names if name in row}
        columns = own_copy(given)
        content = _called(lambda: self._function(tokenizer, **columns), self._name)
        if isinstance(content, list):
            return content
        special = tuple(token for token in getattr(tokenizer, "all_special_tokens", ()) if token)
        return ReadyPrompt(content, from_chat_template=bool(special) and content.startswith(special))


def _with_tokenizer(function: Callable[..., Any], columns: Sequence[str]) -> _TokenizerFunction | None:
    """Return the prompter for a function whose first argument is called ``tokenizer``, else None."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    if not parameters or parameters[0].name != "tokenizer":
        return None
    name = callable_name(function, "the prompt function")
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = [p for p in parameters[1:] if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in columns:
            raise missing_column(parameter.name, columns, f"{name} wants a column")
    return _TokenizerFunction(function, None if takes_all else [p.name for p in named if p.name in columns], name)


def _called(function: Callable[[], Any], name: str) -> str | list[Message]:
    try:
        content = function()
    except KeyboardInterrupt:
        raise
    except BaseException as problem:
        raise InputError(f"{name} fails: {describe_error(problem)}") from problem
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return _checked_messages(content, name)
    raise InputError(f"{name} must return a text or a list of chat messages, but returned {short(content)}")


def _checked_messages(messages: Sequence[Any], where: str) -> list[Message]:
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not _is_said(message):
            raise InputError(
                f"{where}: {short(message)} is no chat message such as {{'role': 'user', 'content': '...'}}"
            )
    if not messages:
        raise InputError(f"{where}: the list of chat messages is empty")
    return [dict(message) for message in messages]  # with whatever else the chat template reads: names, tool calls


def _is_said(message: Mapping[str, Any]) -> bool:
    """Whether a message has a text, a list of parts such as ``{"type": "text", "text": "..."}``, or calls of tools."""
    content = message.get("content")
    if content is None:  # an assistant that calls tools says nothing beside it
        return bool(message.get("tool_calls"))
    if isinstance(content, list):
        return all(isinstance(part, Mapping) and "type" in part for part in content)
    return isinstance(content, str)


def is_empty(value: Any) -> bool:
    """Tell whether a cell has no value: None, or the NaN that data frames put where nothing stands."""
    return value is None or (isinstance(value, float) and value != value)


def _fields(template: str, where: str) -> Iterator[str]:
    try:
        parsed = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as problem:
        raise InputError(f"{where} {template!r} is broken: {problem} (write {{{{ for a brace)") from None
    for field in parsed:
        name = re.split(r"[.\[]", field, maxsplit=1)[0]
        if not name or name.isdigit():
            raise InputError(f"{where} {template!r} must name its columns: '{{column}}', not '{{{field}}}'")
        yield name

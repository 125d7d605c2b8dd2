"""The span in which a model thinks aloud before it answers: its markers, and where a row stands in it.

Everything follows from a row's tokens alone, so that a row that is decoded once more, resumed or replayed from a cache
stands where it stood.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from llmsearch_optuna.engine.sampling.after_thinking import is_after_thinking
from llmsearch_optuna.errors import InputError, is_one_of, short

ReasoningOption: TypeAlias = Literal["auto"] | bool | Sequence[str] | None
"""What ``reasoning=`` takes: "auto" or None, the texts of the two markers, or False."""


@dataclass(frozen=True, slots=True)
class _Known:
    """Markers that models are trained with.

    Attributes:
        start, end: Their texts.
        tokens: What a tokenizer knows as tokens of their own, where its model uses them.
        templates: One of these stands in the model's chat template.
    """

    start: str
    end: str
    tokens: tuple[str, ...]
    templates: tuple[str, ...]


def _pair(start: str, end: str) -> _Known:
    return _Known(start, end, (start, end), (start, end))


KNOWN = (
    _pair("<think>", "</think>"),  # Qwen3, DeepSeek-R1, SmolLM3, Phi-4-reasoning, GLM
    _pair("[THINK]", "[/THINK]"),  # Magistral
    _pair("<seed:think>", "</seed:think>"),  # Seed-OSS
    _pair("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    _Known(  # gpt-oss
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        ("<|channel|>", "<|message|>", "<|end|>", "<|start|>"),
        ("<|channel|>analysis",),
    ),
)
"""What "auto" looks for, the first one first."""


_BLANK = ("\n", "\n\n", " ", "\n ", "\r\n")


@dataclass(frozen=True)
class ReasoningSpan:
    """The markers between which a model thinks.

    A span begins behind the start marker, which the model writes or the prompt ends with (the templates of Qwen3's
    thinking models and of DeepSeek-R1 write ``<think>`` themselves), and ends with the end marker. Only the first span
    counts; where the prompt closes one at its end, as templates do to forbid a thought, there is no other. Markers are
    found as the tokens that the tokenizer makes of their texts, as vLLM and SGLang find them.

    Attributes:
        start: The text of the start marker.
        end: The text of the end marker.
        start_ids: Its tokens; empty where there is no tokenizer, and texts are all there is.
        end_ids: Those of the end marker.
        turn_ids: Special tokens, which a chat template writes between a user's text and the answer: a marker in the
            prompt that is followed by one of them is something that the user wrote.
        blank_ids: Tokens of white space, which a template writes behind a marker.
    """

    start: str
    end: str
    start_ids: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    turn_ids: frozenset[int] = field(default=frozenset(), repr=False)
    blank_ids: frozenset[int] = field(default=frozenset(), repr=False)

    @property
    def description(self) -> dict[str, str]:
        """What counts in a study's fingerprint."""
        return {"start": self.start, "end": self.end}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, tokens included; `from_json` reads them."""
        return {
            **self.description,
            "start_ids": list(self.start_ids),
            "end_ids": list(self.end_ids),
            "turn_ids": sorted(self.turn_ids),
            "blank_ids": sorted(self.blank_ids),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ReasoningSpan:
        """Read what `to_json` returned."""
        ids = {name: tuple(map(int, values[name])) for name in ("start_ids", "end_ids", "turn_ids", "blank_ids")}
        return cls(
            str(values["start"]),
            str(values["end"]),
            ids["start_ids"],
            ids["end_ids"],
            frozenset(ids["turn_ids"]),
            frozenset(ids["blank_ids"]),
        )

    def opened_by(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends inside a span: behind a start marker, with no end marker and no new turn since."""
        for place in range(len(prompt), 0, -1):
            if _ends_at(prompt, place, self.start_ids):
                return True
            if _ends_at(prompt, place, self.end_ids) or prompt[place - 1] in self.turn_ids:
                return False
        return False

    def closed_by(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends with an end marker and white space, as templates write it to forbid a thought."""
        place = len(prompt)
        while place and prompt[place - 1] in self.blank_ids and not _ends_at(prompt, place, self.end_ids):
            place -= 1
        return _ends_at(prompt, place, self.end_ids)

    def state(self, prompt: Sequence[int], tokens: Iterable[int] = ()) -> ReasoningState:
        """Where a row stands.

        Args:
            prompt: The token ids before the first generated one.
            tokens: Those that were generated.
        """
        state = ReasoningState(self, prompt)
        for token in tokens:
            state.push(token)
        return state

    def tokens_of(self, tokens: Sequence[int]) -> int | None:
        """How many of a completion's tokens belong to a span that has ended in it; None where none has.

        Args:
            tokens: The generated ones; where no start marker is among them, the first one is in the span.
        """
        state = ReasoningState(self, ())
        end = next((place for place in range(len(tokens)) if _ends_at(tokens, place + 1, self.end_ids)), None)
        if end is None:
            return None
        for token in tokens[: end + 1]:
            state.push(token)
        return end + 1 - (state.start or 0)

    def opened_by_text(self, prompt: str) -> bool:
        """Whether a prompt ends inside a span, where its tokens are not known: with the start marker and white space.

        >>> ReasoningSpan("<think>", "</think>").opened_by_text("2 + 2 = ? <think>\n")
        True
        """
        return prompt.rstrip().endswith(self.start.rstrip())

    def closed_by_text(self, prompt: str) -> bool:
        """Whether a prompt ends behind a span, where its tokens are not known."""
        return prompt.rstrip().endswith(self.end.rstrip())

    def split_text(self, text: str, *, opened: bool = False) -> tuple[str, str | None]:
        """Return the answer and the reasoning of a text whose tokens are not known; None where there is none.

        >>> ReasoningSpan("<think>", "</think>").split_text("<think>2 + 2 …</think>\\n\\n4")
        ('4', '2 + 2 …')

        Args:
            text: What was generated, its markers included.
            opened: Whether the prompt ends inside a span. Where an end marker stands without a start marker, it did.
        """
        before, has_start, inside = text.partition(self.start)
        if not has_start or (self.end in before):
            if self.end not in text and not opened:
                return text, None
            before, inside = "", text
        reasoning, _, answer = inside.partition(self.end)
        return f"{before}{answer}".lstrip(), reasoning.strip()


def _ends_at(tokens: Sequence[int], place: int, marker: tuple[int, ...]) -> bool:
    size = len(marker)
    return 0 < size <= place and tuple(tokens[place - size : place]) == marker


class ReasoningState:
    """Where one row stands in its span; see `ReasoningSpan`.

    >>> state = ReasoningSpan("<", ">", start_ids=(7,), end_ids=(8, 9)).state([1, 2], [7, 5, 8, 9, 6])
    >>> state.start, state.began, state.ended
    (0, 1, 4)

    Attributes:
        span: The markers.
        start: How many tokens had been generated before the start marker; None before the span.
        began: How many had been when the span began, its start marker included; 0 where the prompt began it.
        ended: How many had been when it ended, its end marker included; None before.
    """

    __slots__ = ("_closed", "_context", "_length", "began", "ended", "span", "start")

    def __init__(self, span: ReasoningSpan, prompt: Sequence[int]) -> None:
        self.span = span
        kept = max(len(span.start_ids), len(span.end_ids))
        self._context: list[int] = list(prompt[-kept:]) if kept else []
        self._length = 0
        self._closed = span.closed_by(prompt)
        opened = not self._closed and span.opened_by(prompt)
        self.start: int | None = 0 if opened else None
        self.began: int | None = 0 if opened else None
        self.ended: int | None = None

    def push(self, token: int) -> None:
        """Take the next generated token."""
        self._context.append(token)
        self._length += 1
        if self._closed:
            return
        if self.began is None:
            if self._ends_with(self.span.start_ids):
                self.began = self._length
                self.start = max(0, self._length - len(self.span.start_ids))
        elif self.ended is None and self.inside >= len(self.span.end_ids) and self._ends_with(self.span.end_ids):
            self.ended = self._length

    @property
    def is_inside(self) -> bool:
        """Whether the next token belongs to the span."""
        return self.began is not None and self.ended is None

    @property
    def is_answering(self) -> bool:
        """Whether the next token comes behind a span, one that the prompt has closed itself included."""
        return self._closed or self.ended is not None

    @property
    def inside(self) -> int:
        """How many tokens have been generated since the span began."""
        return 0 if self.began is None else self._length - self.began

    def closing(self, budget: int) -> int | None:
        """The token of the end marker with which a thought of this many tokens goes on; None where it is not over.

        Where the thought ends with the beginning of the marker, the rest of it is enough.

        >>> state = ReasoningSpan("<", ">", start_ids=(7,), end_ids=(8, 9)).state([], [7, 5])
        >>> state.closing(2), state.closing(1)
        (None, 8)

        Args:
            budget: How many tokens may be thought before the marker.
        """
        if not self.is_inside or self.inside < budget:
            return None
        end = self.span.end_ids
        longest = min(len(end) - 1, self.inside)
        known = next((size for size in range(longest, 0, -1) if self._ends_with(end[:size])), 0)
        return end[known]

    @property
    def reasoning_tokens(self) -> int:
        """How many generated tokens belong to the span, its markers included."""
        if self.start is None:
            return 0
        return (self._length if self.ended is None else self.ended) - self.start

    def _ends_with(self, marker: tuple[int, ...]) -> bool:
        return bool(marker) and tuple(self._context[-len(marker) :]) == marker


def reasoning_span(given: ReasoningOption, tokenizer: Any = None) -> ReasoningSpan | None:
    """Return the span that ``reasoning=`` means for a model; None where its texts are answers from their beginning.

    "auto" finds the markers of the models in `KNOWN`: the tokenizer knows them as tokens, and its chat template writes
    them.

    Args:
        given: "auto" or None, two texts, or False.
        tokenizer: The model's; None where there is none.

    Raises:
        InputError: It is none of these, or the tokenizer makes no tokens of a marker.
    """
    check_reasoning(given)
    if given is False:
        return None
    if given is None or given == "auto":
        known = _of_model(tokenizer)
        return None if known is None else _with_tokens(known.start, known.end, tokenizer)
    start, end = given  # type: ignore[misc]  # checked
    return _with_tokens(start, end, tokenizer)


def about_thinking(params: Iterable[str]) -> list[str]:
    """The parameters that have to know where the model thinks."""
    return [name for name in params if name == "thinking_budget" or is_after_thinking(name)]


def unknown_span(params: Mapping[str, Any], span: ReasoningSpan | None) -> str | None:
    """Say which of these parameters have to know where the model thinks, where that is not known; else None."""
    asking = about_thinking(params)
    if not asking or (span is not None and span.end_ids):
        return None
    if span is not None:
        return f"{', '.join(asking)} has to know the tokens of {span.start!r} and {span.end!r}: give tokenizer="
    return (
        f"{', '.join(asking)} has to know between which tokens the model thinks, and its tokenizer and chat template "
        'do not say: give reasoning=("<think>", "</think>"), or what the model writes'
    )


def check_reasoning(given: Any) -> None:
    """Raise InputError unless ``reasoning=`` takes this."""
    if given is None or given is False or is_one_of(given, "auto"):
        return
    is_pair = not isinstance(given, str | bytes | Mapping) and isinstance(given, Sequence) and len(given) == 2
    if not is_pair or not all(isinstance(text, str) and text for text in given) or given[0] == given[1]:
        raise InputError(
            f'reasoning={short(given)} must be "auto", False, or the two texts between which the model thinks, such '
            'as ["<think>", "</think>"]'
        )


def _with_tokens(start: str, end: str, tokenizer: Any) -> ReasoningSpan:
    if tokenizer is None:
        return ReasoningSpan(start, end)
    start_ids, end_ids = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (start, end))
    for text, found in ((start, start_ids), (end, end_ids)):
        if not found:
            raise InputError(f"reasoning: the tokenizer makes no tokens of the marker {text!r}; give another one")
    special = {int(token) for token in getattr(tokenizer, "all_special_ids", ())}
    special |= {i for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items() if getattr(t, "special", False)}
    special.discard(getattr(tokenizer, "unk_token_id", None))  # which any text may have
    blank = {token for text in _BLANK for token in tokenizer(text, add_special_tokens=False)["input_ids"]}
    blank.discard(getattr(tokenizer, "unk_token_id", None))
    return ReasoningSpan(start, end, start_ids, end_ids, frozenset(special), frozenset(blank))


def _of_model(tokenizer: Any) -> _Known | None:
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    written = "\n".join(map(str, template.values())) if isinstance(template, Mapping) else str(template)
    vocabulary = tokenizer.get_added_vocab() if hasattr(tokenizer, "get_added_vocab") else {}
    for known in KNOWN:
        if all(token in vocabulary for token in known.tokens) and any(text in written for text in known.templates):
            return known
    return None

"""What a judge is asked, and how its answer is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmsearch_optuna.errors import InputError, short
from llmsearch_optuna.task.prompts import make_prompter

QUESTIONS = ("question", "prompt")
"""Columns that are a row's question where nothing else is said; the first one that is there."""

_NUMBER = re.compile(
    r"[\s*_`\"']*(?:(?:score|rating|answer|grade)\s*[:=]?)?[\s*_`\"']*"
    r"(?P<score>[-+]?\d+(?:\.\d+)?)\s*(?:/\s*(?P<of>\d+(?:\.\d+)?))?[\s*_`\"'.]*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class JudgePrompt:
    """How a row and an answer become a prompt.

    Attributes:
        rubric: What a good answer is, in words.
        scale: The lowest and the highest score.
        question: A template of the row's columns, or a function of the row; None takes the column ``question`` or
            ``prompt`` where there is one.
        shows_reference: Whether the judge sees the reference.
    """

    rubric: str
    scale: tuple[float, float]
    question: str | Callable[[Mapping[str, Any]], str] | None = None
    shows_reference: bool = True

    def text(self, row: Mapping[str, Any], reference: Any, answer: str, *, is_second: bool = False) -> str:
        """Return the prompt.

        Args:
            row: With the question.
            reference: The right answer; None where there is none.
            answer: To be judged.
            is_second: Whether the judge is asked again, after it has not said a number.
        """
        low, high = (f"{bound:g}" for bound in self.scale)
        question = self._question(row)
        parts = [
            self.rubric,
            *([f"Question:\n{question}"] if question is not None else []),
            *([f"Reference answer:\n{_shown(reference)}"] if self.shows_reference and reference is not None else []),
            f"Answer to be judged:\n{answer}",
            f"Rate this answer with one number from {low} (worst) to {high} (best). Reply with the number alone.",
        ]
        if is_second:
            parts.append(f"Nothing but one number from {low} to {high}:")
        return "\n\n".join(parts)

    def read(self, said: str) -> float | None:
        """Return the number that a judge said; None where its first line is no number of the scale.

        >>> prompt = JudgePrompt("How good is it?", (1.0, 5.0))
        >>> prompt.read("4"), prompt.read("Score: 4/5"), prompt.read("**4.5**"), prompt.read("4 or 5"), prompt.read("7")
        (4.0, 4.0, 4.5, None, None)
        """
        line = next((line for line in said.splitlines() if line.strip()), "")
        found = _NUMBER.fullmatch(line)
        if found is None or (found["of"] is not None and float(found["of"]) != self.scale[1]):
            return None
        score = float(found["score"])
        return score if self.scale[0] <= score <= self.scale[1] else None

    def _question(self, row: Mapping[str, Any]) -> str | None:
        if self.question is None:
            column = next((name for name in QUESTIONS if name in row), None)
            return None if column is None else _shown(row[column])
        content = make_prompter(self.question, list(row)).content(row, None)
        if not isinstance(content, str):
            raise InputError(f"question= of the judge must make a text, but made {short(content)}")
        return content


def _shown(value: Any) -> str:
    """A text as it is, chat messages one after the other, several answers one a line."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(str(item.get("content")) if isinstance(item, Mapping) else str(item) for item in value)
    return str(value)

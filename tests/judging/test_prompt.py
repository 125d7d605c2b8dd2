"""What a judge is asked, and which of its answers are numbers."""

from __future__ import annotations

import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.judging.prompt import JudgePrompt

PROMPT = JudgePrompt("Is it polite?", (1.0, 5.0))


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("4", 4.0), (" 5\n", 5.0), ("Score: 3", 3.0), ("rating = 2.5", 2.5), ("**4**", 4.0), ("4/5", 4.0), ("4.", 4.0),
        ("\n\n3\nbecause it is short", 3.0), ("+1", 1.0), ("Score:** 4**", 4.0),
        ("0", None), ("6", None), ("-1", None), ("4/10", None), ("4 or 5", None), ("I would say 4", None), ("", None),
        ("four", None), ("4 stars", None), ("1e3", None), ("4,5", None), ("because\n4", None),
    ],
)  # fmt: skip
def test_only_a_number_of_the_scale_on_the_first_line_counts(said: str, score: float | None) -> None:
    assert PROMPT.read(said) == score


def test_the_prompt_has_rubric_question_reference_and_answer_in_this_order() -> None:
    text = PROMPT.text({"question": "How are you?"}, "Fine, thanks.", "Go away.")
    parts = ["Is it polite?", "How are you?", "Fine, thanks.", "Go away.", "from 1 (worst) to 5 (best)"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    again = PROMPT.text({"question": "How are you?"}, "Fine, thanks.", "Go away.", is_second=True)
    assert again.startswith(text)
    assert again.endswith("Nothing but one number from 1 to 5:")


def test_what_is_not_there_is_not_shown() -> None:
    text = PROMPT.text({"dialogue": "…"}, None, "Go away.")
    assert "Question" not in text
    assert "Reference" not in text
    hidden = JudgePrompt("Is it polite?", (1.0, 5.0), shows_reference=False)
    assert "Fine" not in hidden.text({}, "Fine", "Go away.")


def test_the_question_is_a_column_a_template_or_a_function() -> None:
    row = {"question": "a?", "prompt": "b?", "dialogue": "A: hi"}
    assert "Question:\na?" in PROMPT.text(row, None, "x")
    assert "Question:\nSum up A: hi" in JudgePrompt("r", (0, 1), "Sum up {dialogue}").text(row, None, "x")
    assert "Question:\nA: HI" in JudgePrompt("r", (0, 1), lambda r: r["dialogue"].upper()).text(row, None, "x")
    messages = {"prompt": [{"role": "system", "content": "Short."}, {"role": "user", "content": "b?"}]}
    assert "Question:\nShort.\nb?" in PROMPT.text(messages, None, "x")
    with pytest.raises(InputError, match="no column 'dialog'"):
        JudgePrompt("r", (0, 1), "{dialog}").text(row, None, "x")

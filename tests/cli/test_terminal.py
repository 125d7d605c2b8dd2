from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.cli.terminal import say
from llmsearch_optuna.verbosity import StderrHandler

TITLE = "\x1b]0;owned\x07 \x9b2J \u202eabc"


def test_foreign_text_drives_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"a study: {TITLE}\nsecond line postgresql://u:secret@h")
    StderrHandler().emit(logging.LogRecord("x", logging.WARNING, "", 0, "%s", (TITLE,), None))
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
        assert "\\x1b]0;owned\\x07" in text
    assert out.count("\n") == 2
    assert "secret" not in out


@given(st.text())
def test_any_text_is_printed_as_visible_characters(text: str) -> None:
    import io
    from contextlib import redirect_stdout

    with redirect_stdout(io.StringIO()) as out:
        say(text)
    assert all(line.isprintable() for line in out.getvalue().split("\n"))

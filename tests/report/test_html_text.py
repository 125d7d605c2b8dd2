"""Texts on the page: nothing that a model wrote may act on it, and the marked words are the words that differ."""

from __future__ import annotations

import doctest
import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.report import html_text
from llmsearch_optuna.report.html_text import clip_tail, marked_words, safe

TEXT = st.text(alphabet=st.characters(codec=None), max_size=80)


def test_docstring_examples():
    assert doctest.testmod(html_text).failed == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert('1')</script>", "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;"),
        ('a"b&c', "a&quot;b&amp;c"),
        ("\x1b[2J\x00\x7f\r", "\\x1b[2J\\x00\\x7f\\x0d"),
        ("abc\u202egnp.exe", "abc[U+202E]gnp.exe"),
        ("שלום\tעולם\n😀", "שלום\tעולם\n😀"),
        ("\ud83d", "[U+D83D]"),
    ],
)
def test_safe(text, shown):
    assert safe(text) == shown


@given(TEXT)
def test_safe_text_is_inert_and_can_be_written(text):
    shown = safe(text)
    assert not re.search("[<>\"'\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", shown)
    shown.encode("utf-8")


@given(TEXT, TEXT)
def test_marks_keep_every_word_of_both_texts(before, after):
    left, right = marked_words(before, after)
    assert html.unescape(re.sub("</?del>", "", left)) == html.unescape(safe(before))
    assert html.unescape(re.sub("</?ins>", "", right)) == html.unescape(safe(after))


def test_marks_stand_on_the_words_that_differ():
    assert marked_words("a red fox ran", "a quick red fox") == ("a red fox<del> ran</del>".replace("<del> ", " <del>"),
                                                                "a <ins>quick</ins> red fox")  # fmt: skip
    assert marked_words("same words", "same words") == ("same words", "same words")
    assert marked_words("", "new") == ("", "<ins>new</ins>")


def test_clip_tail_keeps_the_end():
    assert clip_tail("abcdef", 3) == "… def"
    assert clip_tail("abc", 3) == "abc"

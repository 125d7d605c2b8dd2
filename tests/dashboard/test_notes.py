"""Notes: the rows that say most, and texts that are shown and not obeyed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.dashboard.notes import NotedRow, fenced, inline, study_note, trial_note
from llmsearch_optuna.report import ReportData, TrialPoint

DATA = ReportData(
    study_name="s",
    metric="rouge1",
    verdict_sentence="No evidence <script>alert(1)</script> [link](http://x) *so far*, $5 or $6",
    trials=(TrialPoint(number=0, state="complete", value=0.3, tokens=20.0, kind="greedy", rows=8),),
    model="m_1",
    dataset="d",
    rows=8,
    best_number=0,
    recommended_params={"stop": ["```", "</code>"]},
    first_prompt="Summarize.\n```\nx",
    fingerprint="9f8a1c",
)


def noted(scores):
    return [NotedRow(row, f"prompt {row}", f"text {row}", f"reference {row}", s) for row, s in enumerate(scores)]


def rows_under(note, heading):
    part = note.split(f"##### {heading}")[1].split("#####")[0]
    return [int(number) for number in re.findall(r"^\| (\d+) \|", part, re.MULTILINE)]


def test_a_study_note_says_what_was_searched_and_what_came_out():
    note = study_note(DATA)
    for fact in ("No evidence", "8 search rows", "1 complete", "trial 0 so far", "rouge1", "9f8a1c"):
        assert fact in note
    assert r"\<script\>" in note
    assert r"\[link\]" in note
    assert r"\$5" in note
    assert r"m\_1" in note
    assert '\n````\n{\n  "stop"' in note
    assert "````\nSummarize.\n```\nx\n````" in note


@pytest.mark.parametrize(("minimize", "best", "worst"), [(False, [4, 2, 0], [3, 1, 5]), (True, [3, 1, 5], [4, 2, 0])])
def test_the_three_best_and_the_three_worst_rows(minimize, best, worst):
    note = trial_note("complete", noted([0.5, 0.1, 0.8, 0.0, 0.9, 0.4, 0.45]), minimize=minimize)
    assert rows_under(note, "Best rows") == best
    assert rows_under(note, "Worst rows") == worst


def test_a_row_is_listed_once():
    note = trial_note("pruned", noted([0.5, 0.1, 0.8, 0.2]))
    assert rows_under(note, "Best rows") == [2, 0, 3]
    assert rows_under(note, "Worst rows") == [1]
    assert "Worst" not in trial_note("pruned", noted([0.5, 0.1]))
    assert trial_note("failed: row 3: no <b>memory</b>", []) == r"**failed: row 3: no \<b\>memory\</b\>**"


def test_without_scores_of_rows_the_first_ones_are_shown():
    assert rows_under(trial_note("complete", noted([None] * 5)), "First rows") == [0, 1, 2]


def test_texts_are_cut_where_they_matter_least():
    (row,) = noted([0.5])
    note = trial_note("complete", [NotedRow(0, "a" * 999 + "END", "START" + "b" * 9999, row.reference, 0.5)])
    assert "END" in note
    assert "START" in note
    assert len(note) < 1500


def test_characters_that_nobody_sees_are_shown():
    note = trial_note("complete", [NotedRow(0, "a\x1b[31m", "b\u202ec", "d\te", 0.5)])
    assert "\x1b" not in note
    assert "\u202e" not in note
    assert r"\\x1b\[31m" in note
    assert r"\\u202e" in note


@given(st.text(alphabet=st.sampled_from("`~a\n "), max_size=40))
def test_no_text_leaves_its_block(text):
    """A fence is closed by a line of at least as many backticks as it was opened with, and by nothing else."""
    first, *body, last = fenced(text).split("\n")
    assert first == last == "`" * len(first)
    assert not any(set(line.strip()) == {"`"} and len(line.strip()) >= len(first) for line in body)


@given(st.text(alphabet=st.sampled_from("\\`*_[]()#!|~<>&${} a\n"), max_size=40))
def test_no_mark_in_a_line_is_left_alone(text):
    rest = re.sub(r"\\.|&#124;", "", inline(text))
    assert not set(rest) & set("\\`*_[]()#!|~<>&${}\n")


@given(st.text(alphabet=st.sampled_from("\\|a `\n-"), max_size=20))
def test_a_text_stays_in_its_cell(text):
    """Every line of a table has its five cells, whatever stands in them."""
    note = trial_note("complete", [NotedRow(0, text, text, text, 0.5)])
    (line,) = [line for line in note.splitlines() if line.startswith("| 0 ")]
    assert line.count("|") == 6


@pytest.mark.parametrize("address", ["http://x.org/a", "see HTTPS://x.org", "www.x.org", "me@x.org"])
def test_addresses_become_no_links(address):
    assert not re.search(r"https?:|www\.|@\w", inline(address), re.IGNORECASE)

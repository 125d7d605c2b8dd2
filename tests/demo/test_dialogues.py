"""The bundled dialogues are what the demo and its documentation say they are."""

from __future__ import annotations

from llmsearch_optuna.demo.dialogues import demo_dialogues
from llmsearch_optuna.task.task import Task


def test_there_are_sixty_different_dialogues_of_moderate_length() -> None:
    rows = demo_dialogues()
    assert len(rows) == len({row["dialogue"] for row in rows}) == len({row["id"] for row in rows}) == 60
    for row in rows:
        lines = row["dialogue"].splitlines()
        assert set(row) == {"id", "dialogue", "summary"}
        assert 4 <= len(lines) <= 9
        assert all(": " in line for line in lines)
        assert 40 <= len(row["dialogue"].split()) <= 110


def test_summaries_are_one_sentence_about_somebody_of_the_dialogue() -> None:
    for row in demo_dialogues():
        names = {line.split(":")[0].split()[-1] for line in row["dialogue"].splitlines()}
        assert row["summary"].endswith(".")
        assert 8 <= len(row["summary"].split()) <= 30
        assert any(name.lower() in row["summary"].lower() for name in names)


def test_they_make_a_task() -> None:
    prompt = "Summarize the dialogue in one sentence.\n\n{dialogue}"
    prepared = Task(demo_dialogues(), prompt=prompt, reference="summary", metric="rouge1").prepare()
    assert len(prepared) == 60
    assert set(prepared.occurrences) == {0}

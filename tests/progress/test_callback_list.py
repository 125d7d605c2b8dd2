"""Callbacks are told in order, and of what the others returned."""

from __future__ import annotations

from llmsearch_optuna.progress import CallbackList, Event, PowerKnown, StudyEnded, VerdictStarted


class Answering:
    """Returns an event for those of one kind; notes who was told of what."""

    def __init__(self, name: str, told: list[tuple[str, Event]], kind: type | None = None, answer: Event | None = None):
        self._name, self._told, self._kind, self._answer = name, told, kind, answer

    def on(self, event: Event) -> Event | None:
        self._told.append((self._name, event))
        return self._answer if self._kind is not None and isinstance(event, self._kind) else None


def test_events_that_are_returned_go_to_all_once_the_first_one_has_been_told() -> None:
    told: list[tuple[str, Event]] = []
    end, power, verdict = StudyEnded(), PowerKnown(text="few rows"), VerdictStarted(rows=1, replicates=1)
    CallbackList(
        [
            Answering("a", told, StudyEnded, power),
            Answering("b", told, PowerKnown, verdict),
            Answering("c", told),
        ]
    ).on(end)
    assert told == [(name, event) for event in (end, power, verdict) for name in "abc"]


def test_a_list_is_a_callback() -> None:
    told: list[tuple[str, Event]] = []
    CallbackList([CallbackList([Answering("inner", told)]), Answering("outer", told)]).on(StudyEnded())
    assert [name for name, _ in told] == ["inner", "outer"]


def test_an_empty_list_drops_events() -> None:
    CallbackList([]).on(StudyEnded())

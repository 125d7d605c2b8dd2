from __future__ import annotations

from pathlib import Path

import pytest

from llmsearch_optuna.engine.request import Completion, Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.storage.leases import ClaimLostError, Session
from llmsearch_optuna.storage.records import Item, Look
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.storage.study import OpenedStudy, open_study

PARAMS = GenerationParams.of({"max_new_tokens": 4})


@pytest.fixture
def opened(tmp_path: Path) -> OpenedStudy:
    return open_study(f"sqlite:///{tmp_path}/s.db", "s", direction="maximize", fingerprint={})


def test_rows_come_back_as_they_were(opened: OpenedStudy) -> None:
    records = [
        RowRecord(3, 0, "näive ☃", (1, 2**31, 0), "stop", 17, 0.1 + 0.2),
        RowRecord(3, 1, "", (), "eos", 17),
        RowRecord(5, 0, None, error="too long"),
    ]
    opened.records.record("search", 2, records)
    opened.records.record("holdout", 2, [RowRecord(3, 0, "other")])
    assert opened.records.rows("search", 2) == records
    assert opened.records.all_rows("search") == {2: records}
    assert opened.records.rows("finalists", 2) == []


def test_a_row_that_is_there_stays(opened: OpenedStudy) -> None:
    opened.records.record("search", 0, [RowRecord(1, 0, "first")])
    opened.records.record("search", 0, [RowRecord(1, 0, "second"), RowRecord(2, 0, "new")])
    assert [r.text for r in opened.records.rows("search", 0)] == ["first", "new"]


def test_scores_are_exact_and_come_later(opened: OpenedStudy) -> None:
    opened.records.record("search", 0, [RowRecord(1, 0, "a"), RowRecord(2, 0, "b")])
    opened.records.set_scores("search", 0, [RowRecord(2, 0, "b").scored(1 / 3), RowRecord(1, 0, "a")])
    assert [r.score for r in opened.records.rows("search", 0)] == [None, 1 / 3]


def test_a_record_of_a_finished_request_is_read_as_it_was_made(opened: OpenedStudy) -> None:
    made = RowRecord.of(Finished(Request("tag", 7, "prompt", PARAMS), Completion("a\x00b\ud800", (5,), "length", 3)))
    opened.records.record("search", 0, [made])
    assert opened.records.rows("search", 0) == [made]


def test_items_keep_their_order_and_parts(opened: OpenedStudy) -> None:
    items = [
        Item(4, "search", 0, "p4", {"a": [1]}, {"x": 1}),
        Item(1, "search", 1, "p1", None, {}, occurrence=1),
        Item(2, "holdout", 0, "p2", "ref", {}),
    ]
    opened.records.write_items(reversed(items))
    opened.records.write_items(items)
    assert opened.records.items() == items
    assert opened.records.items("holdout") == items[2:]


def test_looks_and_settings_and_batch_sizes(opened: OpenedStudy) -> None:
    look = Look(1, 5, 40, {"scores": [0.5]})
    opened.records.write_look(look)
    assert opened.records.looks() == [look]
    done = Look(1, 5, 40, {"scores": [0.5]}, {"decision": "better"})
    opened.records.write_look(done)
    assert opened.records.looks() == [done]
    opened.records.write_settings({"n_trials": 40})
    assert opened.records.settings() == {"n_trials": 40}
    opened.records.remember_batch_sizes("cpu", "m", {(128, 1): 32})
    opened.records.remember_batch_sizes("cpu", "m", {(128, 1): 16, (256, 4): 2})
    assert opened.records.batch_sizes("cpu", "m") == {(128, 1): 16, (256, 4): 2}
    assert opened.records.batch_sizes("cuda", "m") == {}


def test_a_lost_claim_writes_nothing(opened: OpenedStudy) -> None:
    with Session(opened.database, opened.key) as slow, Session(opened.database, opened.key) as quick:
        claim = slow.claim(0)
        assert claim is not None
        slow.__exit__(None, None, None)  # its lease is gone, its work goes on
        taken = quick.claim(0)
        assert taken is not None
        with pytest.raises(ClaimLostError):
            opened.records.record("search", 0, [RowRecord(1, 0, "late")], fence=claim)
        with pytest.raises(ClaimLostError):
            opened.records.set_scores("search", 0, [RowRecord(1, 0, "late", score=1.0)], fence=claim)
        assert opened.records.rows("search", 0) == []
        opened.records.record("search", 0, [RowRecord(1, 0, "in time")], fence=taken)
    assert [r.text for r in opened.records.rows("search", 0)] == ["in time"]

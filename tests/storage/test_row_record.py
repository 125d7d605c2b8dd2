from __future__ import annotations

import itertools

from llmsearch_optuna.engine.request import Completion, Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import DecodingError
from llmsearch_optuna.storage.row_record import RowRecord, SampleGatherer, by_row, gathered, score_table

PARAMS = GenerationParams.of({"max_new_tokens": 4})


def test_a_record_of_a_finished_request() -> None:
    request = Request("tag", 7, "prompt", PARAMS, replicate=2)
    good = RowRecord.of(Finished(request, Completion("a\x00b\ud800", (5,), "length", 3)))
    bad = RowRecord.of(Finished(request, None, DecodingError("no room")))
    assert (good.row, good.replicate, good.text, good.finish_reason) == (7, 2, "a\ufffdb?", "length")
    assert (bad.text, bad.error) == (None, "no room")


def drawn(row: int, replicate: int, sample: int, error: str | None = None) -> RowRecord:
    text, tokens = f"{row}.{replicate}.{sample}", (1,) * (sample + 1)
    return RowRecord(row, replicate, text, tokens, "eos", 5, error=error, sample=sample)


def test_samples_are_gathered_into_one_record_a_row_and_replicate() -> None:
    draws = [drawn(1, 0, 0), drawn(1, 0, 1, "late"), drawn(1, 1, 0), drawn(2, 0, 1)]
    first, second = gathered(draws)  # the first sample of row 2 is not there
    assert [sample.text for sample in first.samples] == ["1.0.0", "1.0.1"]
    assert (first.error, first.tokens, first.asked_tokens) == ("late", 3, 10)
    assert second == draws[2]


def test_samples_that_come_in_any_order_are_gathered_alike() -> None:
    draws = [drawn(row, 0, sample) for row in (1, 2) for sample in (0, 1)]
    for order in itertools.permutations(draws):
        gatherer = SampleGatherer(2)
        found = [record for draw in order for record in gatherer.add([draw])]
        assert sorted(found, key=lambda record: record.row) == gathered(draws)
        assert gatherer.add([drawn(1, 0, 2)]) == []  # more samples than were asked for
        assert gatherer.has(1, draws[1].draw)
        assert not gatherer.has(3, draws[1].draw)


def test_scores_of_rows_are_the_means_of_their_replicates_in_the_asked_order() -> None:
    records = [RowRecord(2, 1, "b", score=0.5), RowRecord(2, 0, "a", score=0.1), RowRecord(1, 0, "c", score=1.0)]
    assert score_table(records, [1, 2, 3]) == [[1.0], [0.1, 0.5], []]
    assert by_row(records, [2, 1, 3]) == [0.3, 1.0]

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState, create_trial

from llmsearch_optuna import progress
from llmsearch_optuna.engine.request import Completion, Finished, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import DecodingError
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.optimize.evaluation import SearchRows
from llmsearch_optuna.optimize.objectives import Objectives
from llmsearch_optuna.optimize.pruner import PairedPruner
from llmsearch_optuna.optimize.trial import TrialJob, TrialRun
from llmsearch_optuna.storage.leases import Claim, ClaimLostError, Session
from llmsearch_optuna.storage.row_record import by_row
from llmsearch_optuna.storage.study import OpenedStudy, open_study
from llmsearch_optuna.task.prepared_task import PreparedTask

GREEDY = GenerationParams.of({"max_new_tokens": 8})
SAMPLING = GenerationParams.of({"max_new_tokens": 8, "do_sample": True})
TOTAL = 20


class Recorder:
    def __init__(self) -> None:
        self.events: list[progress.Event] = []

    def on(self, event: progress.Event) -> None:
        self.events.append(event)


def numbers(predictions: Sequence[str], references: Sequence[Any]) -> list[float]:
    return [float(p) for p in predictions]


def total_length(predictions: Sequence[str], references: Sequence[Any]) -> float:
    return sum(float(p) for p in predictions) / len(predictions)


def prepared_task(metric: Metric) -> PreparedTask:
    """Different prompts with the same reference."""
    return PreparedTask(
        name="t",
        prompts=tuple(f"prompt {n}" for n in range(TOTAL)),
        add_special_tokens=(True,) * TOTAL,
        references=("0.5",) * TOTAL,
        rows=({},) * TOTAL,
        metric=metric,
        direction="maximize",
        occurrences=(0,) * TOTAL,
        distinct=tuple(range(TOTAL)),
        cut_rows=(),
        encode_args={},
        description={},
    )


class Bench:
    """A study with trial 0 under way; rows are answered by `answer(row, replicate)`."""

    def __init__(self, folder: Path, **changed: Any) -> None:
        self.opened: OpenedStudy = open_study(
            f"sqlite:///{folder}/s.db", "s", direction="maximize", fingerprint={}, pruner=changed.get("optuna_pruner")
        )
        self.session = Session(self.opened.database, self.opened.key)
        self.session.__enter__()
        self.callback = Recorder()
        order = tuple(reversed(range(TOTAL)))
        metric = Metric.of(changed.get("metric", numbers), bounds=changed.get("bounds"))
        self.rows = SearchRows(
            task=prepared_task(metric.check(["0.5"] * 2, [{}] * 2)),
            order=order,
            objectives=Objectives(),
            folds=changed.get("folds", ()),
            replicates=changed.get("replicates", 1),
        )
        self.number = -1

    def new_trial(self, params: GenerationParams | None = GREEDY, **job: Any) -> TrialRun:
        self.opened.study.add_trial(create_trial(state=TrialState.RUNNING))
        self.number += 1
        return self.run(params, self.number, **job)

    def run(self, params: GenerationParams | None, number: int, *, claim: Claim | None = None, **job: Any) -> TrialRun:
        pruner = job.pop("pruner", None)
        claim = claim or self.session.claim(number)
        assert claim is not None
        return TrialRun(TrialJob(number, params, **job), self.rows, self.opened, claim, pruner, self.callback)

    def again(self, params: GenerationParams, number: int, **job: Any) -> TrialRun:
        """Adopt the trial as a new process would."""
        self.session.__exit__(None, None, None)
        self.session = Session(self.opened.database, self.opened.key)
        self.session.__enter__()
        reported = frozenset(self.opened.study.trials[number].intermediate_values)
        return self.run(params, number, reported=reported, **job)

    def frozen(self) -> optuna.trial.FrozenTrial:
        return self.opened.study.trials[-1]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def finished(request: Request, text: str = "0.5") -> Finished:
    return Finished(request, Completion(text, (1, 2), "eos", 5))


def answer_all(run: TrialRun, score: Any = lambda row: 0.5, *, shuffle: int | None = None, batch: int = 3) -> int:
    """Feed rows until the trial ends; returns how many were asked for."""
    requests = list(run.start())
    left = list(requests)
    if shuffle is not None:
        random.Random(shuffle).shuffle(left)
    while left and run.end is None:
        now, left = left[:batch], left[batch:]
        run.feed([finished(r, str(score(r.row))) for r in now])
    return len(requests)


def test_a_complete_trial_reports_at_fixed_looks_and_tells_the_mean(bench: Bench) -> None:
    run = bench.new_trial()
    assert answer_all(run, lambda row: row / 100) == TOTAL
    trial = bench.frozen()
    assert trial.state is TrialState.COMPLETE
    assert trial.value == pytest.approx(0.095)
    # In the permutation row 19 comes first.
    assert trial.intermediate_values == {
        8: pytest.approx(sum(range(12, 20)) / 800),
        16: pytest.approx(sum(range(4, 20)) / 1600),
        20: trial.value,
    }
    assert trial.user_attrs["rows"] == "20 of 20"
    assert trial.user_attrs["tokens"] == 40


@pytest.mark.parametrize("seed", range(4))
def test_the_order_in_which_rows_come_does_not_matter(tmp_path: Path, seed: int) -> None:
    in_order, shuffled = Bench(tmp_path / "a"), Bench(tmp_path / "b")
    incumbent = tuple([0.9] * TOTAL)
    for bench, order, batch in ((in_order, None, 1), (shuffled, seed, seed + 1)):
        run = bench.new_trial(incumbent=0, incumbent_scores=incumbent, pruner=PairedPruner())
        answer_all(run, lambda row: (row * 7 % 10) / 10, shuffle=order, batch=batch)
    one, two = in_order.frozen(), shuffled.frozen()
    assert one.state is TrialState.PRUNED
    assert (one.state, one.value, one.intermediate_values) == (two.state, two.value, two.intermediate_values)
    assert one.user_attrs["prune_reason"] == two.user_attrs["prune_reason"]
    assert "trial 0" in one.user_attrs["prune_reason"]


def test_rows_beyond_the_look_are_kept_but_do_not_count(bench: Bench) -> None:
    run = bench.new_trial(incumbent=0, incumbent_scores=(1.0,) * TOTAL, pruner=PairedPruner(), role="searched")
    requests = list(run.start())
    late = requests[8:]
    run.feed([finished(r, "0.9") for r in late])
    run.feed([finished(r, str(0.1 + 0.01 * r.row)) for r in requests[:8]])
    assert run.end is not None
    assert run.end.state == "pruned"
    assert bench.frozen().user_attrs["rows"] == "8 of 20"
    assert bench.frozen().value == pytest.approx(0.255)
    assert len(bench.opened.records.rows("search", 0)) == TOTAL


def test_the_baseline_is_never_pruned(bench: Bench) -> None:
    run = bench.new_trial(incumbent=0, incumbent_scores=(1.0,) * TOTAL, pruner=PairedPruner(), role="baseline")
    answer_all(run, lambda row: 0.01 * row)
    assert run.end is not None
    assert run.end.state == "complete"


def test_a_row_that_could_not_be_decoded_fails_the_trial_where_it_counts(bench: Bench) -> None:
    run = bench.new_trial()
    requests = list(run.start())
    broken, rest = requests[10], [r for r in requests if r is not requests[10]]
    run.feed([Finished(broken, None, DecodingError("does not fit"))])
    assert run.end is None, "looks before it come first"
    run.feed([finished(r) for r in rest])
    trial = bench.frozen()
    assert trial.state is TrialState.FAIL
    assert trial.intermediate_values == {8: 0.5}
    assert trial.user_attrs["fail_reason"] == f"row {broken.row}: does not fit"


@pytest.mark.parametrize("text", ["nonsense", "nan"])
def test_a_metric_that_fails_later_fails_the_trial_with_the_row_named(bench: Bench, text: str) -> None:
    run = bench.new_trial()
    requests = list(run.start())
    run.feed([finished(r, text if r.row == 9 else "0.5") for r in requests])
    trial = bench.frozen()
    assert trial.state is TrialState.FAIL
    assert "row 9" in trial.user_attrs["fail_reason"]
    # The study goes on.
    answer_all(bench.new_trial())
    assert bench.frozen().state is TrialState.COMPLETE


def test_parameters_that_were_refused_fail_the_trial_with_the_reason(bench: Bench) -> None:
    run = bench.new_trial(None, refusal="transformers refuses these parameters")
    assert list(run.start()) == []
    assert bench.frozen().state is TrialState.FAIL
    assert bench.frozen().user_attrs["fail_reason"] == "transformers refuses these parameters"


def test_a_trial_that_was_interrupted_takes_its_rows_along(bench: Bench) -> None:
    requests = list(bench.new_trial().start())
    first = bench.run(GREEDY, 0, claim=bench_claim(bench))
    first.start()
    first.feed([finished(r) for r in requests[:11]])
    second = bench.again(GREEDY, 0)
    left = list(second.start())
    assert [r.row for r in left] == [r.row for r in requests[11:]]
    second.feed([finished(r) for r in left])
    assert bench.frozen().state is TrialState.COMPLETE
    assert set(bench.frozen().intermediate_values) == {8, 16, 20}


def bench_claim(bench: Bench) -> Claim:
    with bench.opened.database.connect() as connection:
        from llmsearch_optuna.storage import schema

        row = connection.execute(schema.claims.select()).one()
    return Claim(bench.opened.key, row.number, row.owner, row.token)


def test_a_crash_between_two_commits_is_healed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop before every write of Optuna's in turn; the trial always ends as it would have."""
    done = 0
    for place in range(1, 40):
        run = bench.new_trial()
        number, calls = bench.number, 0

        def crash(*_: Any, place: int = place) -> None:
            nonlocal calls
            calls += 1
            if calls == place:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(TrialRun, "_check_claim", crash)
            try:
                answer_all(run, lambda row: row / 20)
            except KeyboardInterrupt:
                done += 1
            else:
                break
        resumed = bench.again(GREEDY, number)
        answer_all(resumed, lambda row: row / 20)
        trial = bench.frozen()
        assert (trial.state, trial.value) == (TrialState.COMPLETE, pytest.approx(0.475))
        assert len(get_all_artifact_meta(trial, storage=bench.opened.rdb)) == 1
    assert done >= 5


def test_the_rows_are_one_artifact_however_often_it_is_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench.new_trial()
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            answer_all(run)
    (before,) = bench.opened.artifacts_folder.iterdir()
    before.write_text("half a fi")
    answer_all(bench.again(GREEDY, 0))
    (meta,) = get_all_artifact_meta(bench.frozen(), storage=bench.opened.rdb)
    assert meta.filename == "trial-0000.jsonl"
    (file,) = bench.opened.artifacts_folder.iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["row"] for line in lines] == list(reversed(range(TOTAL)))
    assert lines[0] == {
        "row": 19, "score": 0.5, "completion": "0.5", "reference": "0.5", "finish_reason": "eos", "tokens": 2,
        "prompt": "prompt 19",
    }  # fmt: skip


def test_a_worker_that_was_only_slow_drops_its_trial(bench: Bench) -> None:
    slow = bench.new_trial()
    requests = list(slow.start())
    slow.feed([finished(r) for r in requests[:4]])
    successor = bench.again(GREEDY, 0)
    left = list(successor.start())
    with pytest.raises(ClaimLostError):
        slow.feed([finished(r, "0.9") for r in requests[4:]])
    successor.feed([finished(r) for r in left])
    assert bench.frozen().value == 0.5


def test_replicates_are_averaged_by_row(tmp_path: Path) -> None:
    bench = Bench(tmp_path, replicates=3)
    run = bench.new_trial(SAMPLING)
    requests = list(run.start())
    assert len(requests) == 3 * TOTAL
    assert len(bench.rows.requests(GREEDY, ("search", 0))) == TOTAL
    run.feed([finished(r, str(0.1 * (r.replicate + 1))) for r in requests])
    assert bench.frozen().value == pytest.approx(0.2)
    assert by_row(bench.opened.records.rows("search", 0), [3, 1]) == [pytest.approx(0.2)] * 2


def test_a_corpus_metric_has_a_running_value_and_no_row_scores(tmp_path: Path) -> None:
    bench = Bench(tmp_path, metric=total_length)
    run = bench.new_trial()
    answer_all(run, lambda row: row / 100)
    assert bench.frozen().value == pytest.approx(0.095)
    assert bench.frozen().intermediate_values[8] == pytest.approx(sum(range(12, 20)) / 800)
    assert {r.score for r in bench.opened.records.rows("search", 0)} == {None}


FOLDS = tuple(place % 3 for place in range(TOTAL))


@pytest.mark.parametrize("replicates", [1, 2])
@pytest.mark.parametrize("metric", [numbers, total_length])
def test_a_complete_trial_has_a_score_for_each_fold(tmp_path: Path, metric: Any, replicates: int) -> None:
    bench = Bench(tmp_path, metric=metric, replicates=replicates, folds=FOLDS)
    run = bench.new_trial(SAMPLING)
    run.feed([finished(r, f"{(r.row + r.replicate) / 40}") for r in run.start()])
    rows_of = [[row for row, fold in zip(bench.rows.order, FOLDS, strict=True) if fold == n] for n in range(3)]
    means = [sum(row + r for row in rows for r in range(replicates)) / len(rows) / replicates / 40 for rows in rows_of]
    assert bench.frozen().user_attrs["fold_scores"] == pytest.approx(means)


def test_a_trial_that_was_not_finished_has_no_folds(tmp_path: Path) -> None:
    bench = Bench(tmp_path, folds=FOLDS, bounds=(0, 1))
    incumbent = tuple([1.0] * TOTAL)
    answer_all(bench.new_trial(pruner=PairedPruner(), incumbent=0, incumbent_scores=incumbent), lambda row: row / 1000)
    assert bench.frozen().state is TrialState.PRUNED
    assert "fold_scores" not in bench.frozen().user_attrs


def test_a_known_configuration_is_not_decoded_again(bench: Bench) -> None:
    answer_all(bench.new_trial(), lambda row: row / 100)
    again = bench.new_trial(known_as=0)
    assert list(again.start()) == []
    assert bench.frozen().value == bench.opened.study.trials[0].value


def test_a_users_own_pruner_is_asked(tmp_path: Path) -> None:
    class Always(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return True

    bench = Bench(tmp_path, optuna_pruner=Always())
    answer_all(bench.new_trial(pruner=Always()))
    assert bench.frozen().state is TrialState.PRUNED
    assert bench.frozen().user_attrs["prune_reason"] == "by Always after 8 rows"


def test_texts_are_in_the_artifact_and_not_in_user_attributes(bench: Bench) -> None:
    run = bench.new_trial()
    requests = list(run.start())
    run.feed([finished(r, "0.123456") for r in requests])
    assert "0.123456" not in json.dumps(bench.frozen().user_attrs)


def test_a_callback_is_told_of_every_look(bench: Bench) -> None:
    answer_all(bench.new_trial(incumbent=3, incumbent_running=(0.1, 0.2, 0.3)))
    kinds = [type(e).__name__ for e in bench.callback.events]
    assert kinds == ["TrialStarted", "RowsScored", "RowsScored", "RowsScored", "TrialEnding"]
    looks = [e for e in bench.callback.events if isinstance(e, progress.RowsScored)]
    assert [(e.rows_done, e.rows_total, e.mean, e.incumbent_mean) for e in looks] == [
        (8, 20, 0.5, 0.1), (16, 20, 0.5, 0.2), (20, 20, 0.5, 0.3)
    ]  # fmt: skip


def test_the_step_of_each_row_is_the_first_that_reaches_it(bench: Bench) -> None:
    run = bench.new_trial()
    for request in list(run.start()):
        place = run.rows.places[request.row]
        assert run.step_of(request) == next(n for n, seen in enumerate(run.rows.steps) if place < seen)

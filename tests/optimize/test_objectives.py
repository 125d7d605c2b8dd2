"""Score and tokens: what trials are told with, the front of both, and studies that search it."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import NSGAIISampler
from optuna.trial import TrialState, create_trial

from llmsearch_optuna.analysis.pareto import FrontPoint, front_trials, pick
from llmsearch_optuna.api import search
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.errors import InputError, StudyError
from llmsearch_optuna.optimize.objectives import Objectives
from llmsearch_optuna.optimize.signals import StudyInterrupted
from llmsearch_optuna.report import collect, render
from llmsearch_optuna.search_result import SearchResult, load_result
from llmsearch_optuna.storage.row_record import RowRecord
from llmsearch_optuna.storage.trials import score_of
from tests.synthetic import TextEngine, dataset, number_metric
from tests.synthetic import score_of as synthetic_score

SPACE = [
    {"max_new_tokens": 20, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)},
    {"max_new_tokens": IntDistribution(5, 40), "num_beams": IntDistribution(2, 5)},
]
BOTH = ("score", "tokens")


class WordyEngine(TextEngine):
    """A better score takes more tokens, and temperature moves both."""

    name = "wordy"

    def __init__(self, *, fail_after: int | None = None) -> None:
        super().__init__()
        self._left = fail_after

    def complete(self, prompt, params):
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
        score = synthetic_score(prompt, params, self.quality)
        length = 5 + int(20 * abs(float(params.get("temperature", 0.3)))) + int(params.get("num_beams", 0))
        return Completion(f"{score:.6f}", tuple(range(length)), "eos", len(prompt))


def run(folder, engine=None, **changes) -> SearchResult:
    return search(
        engine or WordyEngine(),
        dataset(40),
        SPACE,
        metric=number_metric,
        storage=f"sqlite:///{folder}/s.db",
        study_name="s",
        progress=False,
        **{"n_trials": 24, "objectives": BOTH, **changes},
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> SearchResult:
    return run(tmp_path_factory.mktemp("front"))


def seen(result):
    """All that a resumed study must have in common with one that was left alone."""
    trials = [(t.number, t.state, t.values, t.params, t.user_attrs["params"]) for t in result.trials]
    return trials, result.verdict, [(p.trial, p.score, p.tokens) for p in result.front]


def test_what_can_be_asked_for():
    assert Objectives.of(("score",), "minimize").directions == ["minimize"]
    assert Objectives.of(["score", "tokens"], "maximize").directions == ["maximize", "minimize"]
    assert Objectives.of("score", "maximize").is_single
    assert Objectives.of(("rouge1", "json_valid"), "maximize", metric="rouge1").names == ("score", "json_valid")
    assert Objectives.of(("score", "json_valid", "tokens"), "minimize").directions == [
        "minimize",
        "maximize",
        "minimize",
    ]
    for wrong in (("tokens",), ("tokens", "score"), ("score", "seconds"), ("score", "tokens", "tokens"), ("f1",), ()):
        with pytest.raises(InputError, match="objectives="):
            Objectives.of(wrong, "maximize")


def test_trials_are_told_with_the_score_and_the_tokens_of_the_average_row():
    records = [RowRecord(0, 0, "a", (1, 2)), RowRecord(1, 0, "b", (1, 2, 3, 4, 5))]
    assert Objectives.of(BOTH, "maximize").values(0.5, records) == [0.5, 3.5]
    assert Objectives().values(0.5, records) == [0.5]
    assert score_of(create_trial(values=[0.5, 3.5])) == 0.5
    assert score_of(create_trial(state=TrialState.FAIL)) is None


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12),
    st.sampled_from(["maximize", "minimize"]),
)
def test_the_front_is_optunas(pairs, direction):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=[direction, "minimize"])
    study.add_trials([create_trial(values=[float(a), float(b)]) for a, b in pairs])
    front = front_trials(study.get_trials(), [direction, "minimize"])
    assert {tuple(t.values) for t in front} == {tuple(t.values) for t in study.best_trials}
    assert len(front) == len({tuple(t.values) for t in front})
    assert [t.values[1] for t in front] == sorted(t.values[1] for t in front)


def test_picking_takes_the_best_score_within_the_limit():
    front = [FrontPoint(trial=n, score=s, tokens=t, params={}) for n, s, t in ((4, 0.2, 10.0), (1, 0.4, 25.0))]
    assert [pick(front, limit).trial for limit in (10, 24.9, 25, None)] == [4, 4, 1, 1]
    with pytest.raises(InputError, match="trial 4, takes 10 tokens a row"):
        pick(front, 9)
    with pytest.raises(InputError, match="no trial is complete"):
        pick([], None)


def test_a_study_of_both_has_a_front_and_a_verdict_about_its_best_score(result):
    assert [d.name for d in result.study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert all(t.state is TrialState.COMPLETE for t in result.trials)
    assert all(t.intermediate_values == {} for t in result.trials)
    for t in result.trials:
        records = result.records(t.number)
        assert len(records) == 28
        assert t.values[1] == sum(len(r.token_ids) for r in records) / len(records)
        assert t.values[0] == pytest.approx(math.fsum(r.score for r in records) / len(records))
    assert {tuple(t.values) for t in result.study.best_trials} == {(p.score, p.tokens) for p in result.front}
    assert len(result.front) > 2
    # Nobody but the winner and the baseline was looked at on the holdout, and only the winner claims a verdict.
    assert set(result.opened.records.all_rows("holdout")) <= {0, result.best_trial.number}
    assert [p.trial for p in result.front if p.verdict is not None] in ([result.best_trial.number], [])
    chosen = result.pick(max_tokens=result.front[1].tokens)
    assert chosen == result.front[1]
    assert chosen.params == result.trial_params(chosen.trial)


def test_an_interrupted_study_of_both_goes_on_exactly(tmp_path, result):
    for left in (100, 250):
        with pytest.raises(StudyInterrupted, match="go on"):
            run(tmp_path, WordyEngine(fail_after=left))
    assert seen(run(tmp_path)) == seen(result)


def test_a_real_model_is_searched_for_both(tmp_path, tiny_llama, tiny_tokenizer):
    """The tokens of the front are those that the model wrote, and a longer completion costs more of them."""
    rows = [{"prompt": f"the cat number {i} sat"} for i in range(24)]
    found = search(
        tiny_llama, rows, {"max_new_tokens": IntDistribution(2, 12), "repetition_penalty": FloatDistribution(1.0, 2.0)},
        tiny_tokenizer, metric=length, objectives=BOTH, n_trials=6, batch_size=8, progress=False,
        storage=f"sqlite:///{tmp_path}/s.db", study_name="tiny",
    )  # fmt: skip
    for t in found.trials:
        texts = found.completions(t.number)
        assert t.values == [texts["score"].mean(), texts["tokens"].mean()]
        assert t.values[1] <= t.user_attrs["params"]["max_new_tokens"]
    assert found.pick().score == max(t.values[0] for t in found.trials)


def length(predictions, references):
    return [float(len(p)) for p in predictions]


def test_a_study_knows_its_objectives(tmp_path):
    run(tmp_path, n_trials=3)
    with pytest.raises(StudyError, match="direction='maximize' and 'minimize', not 'maximize'"):
        search(
            WordyEngine(), dataset(40), SPACE, metric=number_metric, n_trials=3, progress=False,
            storage=f"sqlite:///{tmp_path}/s.db", study_name="s",
        )  # fmt: skip


def test_one_objective_has_no_front(tmp_path):
    plain = search(
        WordyEngine(), dataset(40), SPACE, metric=number_metric, n_trials=3, progress=False,
        storage=f"sqlite:///{tmp_path}/s.db", study_name="s",
    )  # fmt: skip
    with pytest.raises(StudyError, match="has one objective"):
        _ = plain.front
    with pytest.raises(StudyError, match="has one objective"):
        plain.pick(max_tokens=10)


def test_pruners_are_refused_and_samplers_of_optuna_are_taken(tmp_path):
    with pytest.raises(InputError, match="prunes nothing"):
        run(tmp_path, pruner=optuna.pruners.MedianPruner())
    found = run(tmp_path, n_trials=5, sampler=NSGAIISampler(seed=1))
    assert len(found.front) >= 1


def test_the_report_and_the_dashboard_show_both(result):
    data = collect(result)
    assert data.front == tuple(p.trial for p in result.front)
    assert [(t.value, t.tokens) for t in data.front_points] == [(p.score, p.tokens) for p in result.front]
    page = render(data)
    assert "What a better score costs" in page
    assert page.count('id="figure-score_against_tokens"') == 1
    line = next(trace for trace in result.plots.score_against_tokens().data if trace.name == "front")
    assert list(line.x) == [p.tokens for p in result.front]
    assert sum(data.importances.values()) == pytest.approx(1.0)
    assert result.study.metric_names == ["number_metric", "generated tokens a row"]
    assert seen(load_result(str(result.opened.path))) == seen(result)
    assert "value" in result.trials_dataframe().columns
    assert result.verdict.sentence in result.summary


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), max_size=12), st.tuples(*[st.booleans()] * 3))
def test_a_front_of_three_is_optunas_too(values, ups):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = ["maximize" if up else "minimize" for up in ups]
    study = optuna.create_study(directions=directions)
    study.add_trials([create_trial(values=[float(v) for v in trial]) for trial in values])
    front = front_trials(study.get_trials(), directions)
    assert {tuple(t.values) for t in front} == {tuple(t.values) for t in study.best_trials}
    assert len(front) == len({tuple(t.values) for t in front})


def test_any_metric_by_row_can_be_an_objective(tmp_path):
    found = run(tmp_path, objectives=("number_metric", "no_loop", "tokens"), n_trials=8)
    assert found.objective_names == ("score", "no_loop", "tokens")
    assert [d.name for d in found.study.directions] == ["MAXIMIZE", "MAXIMIZE", "MINIMIZE"]
    for t in found.trials:
        rescored = found.rescore("no_loop").set_index("number")["no_loop"]
        assert t.values[1] == pytest.approx(rescored[t.number])
        assert t.values[2] == pytest.approx(np.mean([len(r.token_ids) for r in found.records(t.number)]))
    assert {p.trial for p in found.front} <= {t.number for t in found.study.best_trials}
    assert all(p.values.keys() == {"score", "no_loop", "tokens"} for p in found.front)
    page = render(collect(found))
    assert "The front of all objectives" in page
    assert found.study.metric_names == ["number_metric", "no_loop", "generated tokens a row"]
    assert seen(run(tmp_path, objectives=("score", "no_loop", "tokens"), n_trials=8)) == seen(found)
    with pytest.raises(StudyError, match="objectives"):
        run(tmp_path, objectives=("score", "terminates", "tokens"), n_trials=8)


def test_an_objective_that_fails_fails_its_trial_alone(tmp_path):
    def touchy(predictions, references):
        if max(number_metric(predictions, references)) > 0.8:
            raise RuntimeError("too good")
        return [1.0] * len(predictions)

    touchy.bounds = (0, 1)
    found = run(tmp_path, objectives=("score", touchy), n_trials=8)
    states = {t.state.name for t in found.trials}
    assert states == {"COMPLETE", "FAIL"}
    assert all("too good" in reason for reason in found.failures)


def corpus(predictions, references):
    return 0.5


def test_a_metric_of_all_rows_is_no_objective_beside_the_score(tmp_path):
    with pytest.raises(InputError, match="objectives: corpus scores all rows at once"):
        run(tmp_path, objectives=("score", corpus))

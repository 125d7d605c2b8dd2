"""From a study in its database to what a report shows: numbers are the study's own, and unfinished ones have a page."""

from __future__ import annotations

import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from llmsearch_optuna.api import search
from llmsearch_optuna.errors import StudyError
from llmsearch_optuna.report import FIGURES, Plots, collect, render, summary
from llmsearch_optuna.report.page import write_report
from llmsearch_optuna.search_result import SearchResult, load_result
from tests.synthetic import TextEngine, dataset, number_metric

SPACE = [
    {"max_new_tokens": 20, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)},
    {"max_new_tokens": 20, "num_beams": IntDistribution(2, 5)},
]


def run(folder, **changes) -> SearchResult:
    values = {"rows": 40, "n_trials": 24, "engine": TextEngine(), **changes}
    return search(
        values["engine"],
        dataset(values["rows"]),
        SPACE,
        holdout=0.3,
        reference="answer",
        metric=number_metric,
        n_trials=values["n_trials"],
        storage=f"sqlite:///{folder}/s.db",
        study_name="study",
        progress=False,
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> SearchResult:
    return run(tmp_path_factory.mktemp("collect"))


def test_trials_are_the_studys(result):
    data = collect(result)
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    assert [(t.number, t.state) for t in data.trials] == [(t.number, states[t.state]) for t in result.trials]
    assert {t.role for t in data.trials} == {"baseline", "greedy", ""} or data.trials[0].role == "baseline"
    for point, trial in zip(data.trials, result.trials, strict=True):
        assert dict(point.curve) == trial.intermediate_values
        assert point.rows == max(trial.intermediate_values)
        assert point.value == trial.intermediate_values[point.rows]
    assert data.trials[0].tokens == pytest.approx(
        sum(len(r.token_ids) for r in result.records(0)) / len(result.records(0))
    )


def test_verdict_is_the_results(result):
    data, verdict = collect(result), result.verdict
    assert data.verdict == verdict.answer
    assert (data.verdict_sentence, data.verdict_notes) == (verdict.headline, verdict.notes)
    assert data.recommends_best == verdict.recommends_winner
    assert data.recommended_params == result.recommended_params
    assert data.holdout.difference == verdict.difference
    assert data.holdout.outcomes() == (verdict.wins, verdict.ties, verdict.losses)
    assert data.best_number == result.best_trial.number
    assert data.best_score_error == result.best_score_error
    assert (data.power, data.advice) == (result.power, result.advice)
    assert None not in (data.best_score_error, data.power, data.advice)


def test_examples_come_from_the_holdout_and_pair_the_same_rows(result):
    data = collect(result)
    held = {number for number, item in result.items.items() if item.part == "holdout"}
    assert {e.row for e in data.examples} == held
    assert data.examples_from == "the holdout"
    ours = result.completions(part="holdout").set_index(["row", "replicate"])["completion"]
    for example in data.examples:
        assert example.best_text == ours[example.row, 0]
        assert example.prompt == f"row {example.row}"


def test_importances_copy_no_trials(result, monkeypatch):
    def refused(_):
        raise AssertionError("every trial was copied")

    monkeypatch.setattr("optuna.study.Study.trials", property(refused))
    assert collect(result).importances


def test_importances_cover_parameters_that_only_some_trials_have(result):
    found = collect(result).importances
    assert sum(found.values()) == pytest.approx(1.0)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert set(found) <= {name for t in result.trials for name in t.params}
    # What the synthetic engine rewards is the temperature, and only sampling has one.
    assert next(iter(found)) == "temperature"


def test_what_a_reader_needs_to_reproduce_it_is_there(result):
    data = collect(result)
    assert data.fingerprint
    assert "optuna" in data.versions
    assert data.storage.endswith("s.db")


def test_page_and_summary_of_a_real_study(result, tmp_path):
    path = write_report(load_result(str(result.opened.path)), tmp_path / "r.html")
    page = path.read_text(encoding="utf-8")
    assert page == render(collect(load_result(str(result.opened.path))))
    assert result.verdict.headline in page.replace("&#x27;", "'")
    assert result.verdict.notes in page.replace("&#x27;", "'")
    assert result.verdict.headline in summary(collect(result)).replace("&#x27;", "'")


def test_a_notebook_shows_the_verdict_and_the_figures(result):
    assert result.verdict.headline in result._repr_html_().replace("&#x27;", "'")
    assert "<script" not in result._repr_html_()
    names = [name for name in dir(Plots) if not name.startswith("_") and name != "data"]
    assert set(names) >= set(FIGURES)
    for name in names:
        assert getattr(result.plots, name)().to_json() == FIGURES[name](collect(result)).to_json()
    assert result.plots.slices(["num_beams"]).layout.xaxis.title.text == "num_beams"


def test_a_study_without_holdout_compares_on_the_search_rows(tmp_path):
    data = collect(run(tmp_path, rows=12, n_trials=6))
    assert data.holdout is None
    assert data.examples_from == "the search rows"
    assert "there is no verdict" in data.verdict_sentence.lower() or data.verdict != "better"
    assert data.advice is not None
    assert data.advice in render(data)


def test_a_study_whose_trials_all_fail_has_a_page(tmp_path):
    class Broken(TextEngine):
        def complete(self, prompt, params):
            raise RuntimeError("no power </script>")

    with pytest.raises(StudyError, match="the baseline cannot decode"):
        run(tmp_path, n_trials=2, engine=Broken())
    page = render(collect(load_result(f"sqlite:///{tmp_path}/s.db")))
    assert "No trial is complete yet." in page
    assert "no power </script>" not in page


def test_a_study_that_was_interrupted_has_a_page(tmp_path):
    class Interrupted(TextEngine):
        def complete(self, prompt, params):
            if len(self.calls) > 100:
                raise KeyboardInterrupt
            self.calls.append((prompt, ""))
            return super().complete(prompt, params)

    with pytest.raises(Exception, match="go on"):
        run(tmp_path, engine=Interrupted())
    data = collect(load_result(f"sqlite:///{tmp_path}/s.db"))
    assert data.verdict == "no verdict yet"
    assert data.holdout is None
    render(data)

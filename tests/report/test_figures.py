"""Figures: what stands in them, and that a study with little in it still has them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llmsearch_optuna.report import FIGURES, ReportData, TrialPoint
from llmsearch_optuna.report.figures import contour, drawable, history, holdout_differences, slices, top_parameters


def by_name(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def test_history_tells_pruned_and_failed_trials_apart(report_data):
    figure = history(report_data)
    states = {name: set(by_name(figure, name).x) for name in ("complete", "pruned", "failed")}
    for state, numbers in states.items():
        assert numbers == {t.number for t in report_data.trials if t.state == state}
    assert by_name(figure, "pruned").marker.symbol == "circle-open"
    best = by_name(figure, "best so far").y
    assert list(best) == sorted(best)
    assert list(by_name(figure, "best").x) == [report_data.best_number]


def test_best_so_far_falls_when_lower_is_better(report_data):
    best = by_name(history(replace(report_data, direction="minimize")), "best so far").y
    assert list(best) == sorted(best, reverse=True)


def test_holdout_bars_are_coloured_by_who_won(report_data):
    held = replace(report_data.holdout, differences=(0.2, -0.1, 0.0))
    figure = holdout_differences(replace(report_data, holdout=held))
    assert list(figure.data[0].y) == [-0.1, 0.0, 0.2]
    red, grey, green = figure.data[0].marker.color
    swapped = holdout_differences(replace(report_data, holdout=held, direction="minimize")).data[0].marker.color
    assert list(swapped) == [green, grey, red]
    assert held.outcomes() == (1, 1, 1)
    assert len(holdout_differences(replace(report_data, holdout=replace(held, low=None))).layout.shapes) == 2


def test_top_parameters_by_importance_and_only_those_that_vary(report_data):
    assert top_parameters(report_data) == ["branch", "num_beams"]
    # num_beams is the most important one, but where it occurs the branch does not vary.
    assert top_parameters(report_data, together=True) == ["temperature", "top_p"]


def test_contour_stars_the_best_trial_and_shades_numbers_only(report_data):
    figure = contour(report_data, ["num_beams", "length_penalty"])
    assert figure.data[0].type == "contour"
    assert list(figure.data[1].marker.symbol).count("star") == 1
    assert [trace.type for trace in contour(report_data, ["branch", "num_beams"]).data] == ["scatter"]


def test_every_curve_is_drawn_in_a_few_traces_and_ends_in_a_cross_where_it_was_pruned(report_data):
    figure = FIGURES["learning_curves"](report_data)
    drawn, crossed = {}, {}
    for trace in figure.data:
        for step, mean, text, opacity in zip(trace.x, trace.y, trace.text, trace.marker.opacity, strict=True):
            if step is not None:
                drawn.setdefault(text, []).append((step, mean))
                crossed.setdefault(text, []).append(opacity)
    expected = {f"trial {t.number}, {t.state}": t for t in report_data.trials if t.curve}
    assert drawn == {text: list(t.curve) for text, t in expected.items()}
    for text, t in expected.items():
        assert crossed[text] == [0.0] * (len(t.curve) - 1) + [float(t.state == "pruned" or len(t.curve) == 1)]
    assert {"best", "baseline"} <= {trace.name for trace in figure.data}


@pytest.mark.parametrize("name", ["learning_curves", "slices", "contour", "history"])
def test_a_figure_has_no_more_traces_and_looks_at_no_parameter_more_often_where_trials_are_many(name, report_data):
    """Counted by how often a trial's parameters are read: once for a point, and not once more for every other."""

    class Counted(dict):
        reads = 0

        def __getitem__(self, key):
            Counted.reads += 1
            return super().__getitem__(key)

    def drawn(times):
        Counted.reads = 0
        trials = [
            replace(t, number=t.number + 100 * n, params=Counted(t.params))
            for n in range(times)
            for t in report_data.trials
        ]
        figure = FIGURES[name](replace(report_data, trials=tuple(trials)))
        return len(figure.data), Counted.reads

    (traces, reads), (many_traces, many_reads) = drawn(1), drawn(8)
    assert many_traces <= traces + 16  # those with a role are repeated with the trials
    assert many_reads <= 8 * reads


def test_slices_show_labels_for_categories(report_data):
    figure = slices(report_data, ["branch"])
    assert figure.layout.xaxis.type == "category"
    assert set(by_name(figure, "complete").x) == {"greedy", "sampling", "beam"}


def test_a_few_whole_numbers_have_a_tick_each(report_data):
    assert slices(report_data, ["num_beams"]).layout.xaxis.dtick == 1
    figure = contour(report_data, ["num_beams", "length_penalty"])
    assert (figure.layout.xaxis.dtick, figure.layout.yaxis.dtick) == (1, None)


@pytest.mark.parametrize("name", list(FIGURES))
def test_figures_of_a_study_with_little_in_it(name):
    one = TrialPoint(number=0, state="complete", value=0.5, role="baseline", kind="greedy", rows=3)
    failed = TrialPoint(number=0, state="failed", value=None, reason="boom")
    for trials in ((), (one,), (failed,)):
        data = ReportData(study_name="s", metric="m", verdict_sentence="v", trials=trials, best_number=None)
        json.loads(FIGURES[name](data).to_json())


@pytest.mark.parametrize("name", list(FIGURES))
def test_no_markup_reaches_plotly(name, report_data):
    """Plotly renders some tags in hover texts and labels; the reason of the failed trial holds a script."""
    nasty = {"<b>x</b>": 1.0}
    data = replace(report_data, importances=nasty, metric="<i>m</i>", holdout=report_data.holdout)
    assert "<script" not in FIGURES[name](data).to_json().replace("\\u003c", "<")
    assert "<i>" not in FIGURES[name](data).to_json().replace("\\u003c", "<")


def test_the_pruning_figure_is_left_out_where_nothing_was_stopped(report_data):
    assert "rows_done" in drawable(report_data)
    assert "rows_done" not in drawable(replace(report_data, trials=report_data.complete))

"""Plotly figures of a study; each is a function of `ReportData` alone, and a method of `result.plots`.

Colours of text, grid and background are left out: the page (or the notebook) puts in its own, light or dark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llmsearch_optuna.optimize.objectives import TOKENS_LABEL
from llmsearch_optuna.report.data import ReportData, TrialPoint

BLUE, ORANGE, GREEN, GREY, RED = "#3b82c4", "#e08a2e", "#2f9e6e", "#8a93a0", "#cf5c43"
_SCALE = "Viridis"
_KIND_SYMBOLS = {"greedy": "square", "sampling": "circle", "beam": "diamond", "beam_sampling": "diamond-open"}
_MOST_TICKS = 10


def history(data: ReportData) -> go.Figure:
    """Scores by trial, the best so far as a line; pruned trials hollow and grey, at the mean they were stopped at."""
    figure = _figure(x="trial", y=data.metric)
    pruned = [t for t in data.trials if t.state == "pruned" and t.value is not None]
    failed = [t for t in data.trials if t.state == "failed"]
    if data.complete:
        best = _running_best([t.value or 0.0 for t in data.complete], minimize=data.minimize)
        line = {"color": GREEN, "width": 2, "shape": "hv"}
        figure.add_scatter(x=[t.number for t in data.complete], y=best, mode="lines", name="best so far", line=line)
    figure.add_scatter(**_points(data.complete, data), name="complete", marker={"color": BLUE, "size": 9})
    if pruned:
        marker = {"color": GREY, "size": 8, "symbol": "circle-open"}
        figure.add_scatter(**_points(pruned, data), name="pruned", marker=marker)
    if failed:
        floor = min((t.value for t in data.trials if t.value is not None), default=0.0)
        hover = [f"trial {t.number} failed: {_plain(t.reason or '')}" for t in failed]
        marker = {"color": RED, "size": 8, "symbol": "x"}
        figure.add_scatter(
            x=[t.number for t in failed], y=[floor] * len(failed), mode="markers", name="failed", marker=marker,
            text=hover, hoverinfo="text",
        )  # fmt: skip
    if data.best is not None:
        marker = {"color": GREEN, "size": 15, "symbol": "star"}
        figure.add_scatter(**_points([data.best], data), name="best", marker=marker)
    if baseline := data.trial_of("baseline"):
        _reference_line(figure, baseline.value, "baseline")
    return figure


def holdout_differences(data: ReportData) -> go.Figure:
    """Best minus baseline for every holdout row, sorted; the mean with its interval across it."""
    figure = _figure(x="rows, sorted" if data.halves else "holdout rows, sorted", y=f"difference in {data.metric}")
    if data.holdout is None:
        return figure
    values = sorted(data.holdout.differences)
    sign = -1 if data.minimize else 1
    colours = [GREEN if sign * v > 1e-9 else RED if sign * v < -1e-9 else GREY for v in values]
    figure.add_bar(
        x=list(range(1, len(values) + 1)), y=values, marker={"color": colours}, name="rows", showlegend=False
    )
    if data.holdout.low is not None and data.holdout.high is not None:
        figure.add_hrect(
            y0=data.holdout.low, y1=data.holdout.high, fillcolor=BLUE, opacity=0.18, line_width=0, layer="below"
        )
    figure.add_hline(y=data.holdout.difference, line={"color": BLUE, "width": 2})
    figure.add_hline(y=0, line={"color": GREY, "width": 1})
    figure.update_layout(bargap=0.15)
    return figure


def importances(data: ReportData) -> go.Figure:
    """How much of the score's variation goes with each parameter."""
    figure = _figure(x="share of the variation", y="")
    items = sorted(data.importances.items(), key=lambda item: item[1])
    figure.add_bar(
        x=[value for _, value in items],
        y=[_plain(name) for name, _ in items],
        orientation="h",
        marker={"color": BLUE},
        text=[f"{value:.0%}" for _, value in items],
        textposition="outside",
        cliponaxis=False,
        showlegend=False,
    )
    figure.update_layout(height=max(180, 90 + 34 * len(items)))
    figure.update_xaxes(tickformat=".0%", range=[0, 1.18 * max(data.importances.values(), default=1.0)])
    figure.update_yaxes(automargin=True, showgrid=False, type="category")
    return figure


def learning_curves(data: ReportData) -> go.Figure:
    """The running mean of every trial over the rows it saw."""
    figure = _figure(x="rows seen", y=f"running mean of {data.metric}")
    highlighted = {data.best_number: ("best", GREEN), **_role_colours(data)}
    drawn = [t for t in data.trials if t.curve]
    # One trace for all trials that ended alike: a trace for each makes a page of thousands slow.
    for state, colour in (("complete", BLUE), ("failed", BLUE), ("pruned", GREY)):
        if trials := [t for t in drawn if t.state == state and t.number not in highlighted]:
            line = {"color": colour, "width": 1.2}
            figure.add_scatter(**_curves(trials, colour), line=line, opacity=0.5, name=state, showlegend=False)
    for trial in (t for t in drawn if t.number in highlighted):
        name, colour = highlighted[trial.number]
        figure.add_scatter(**_curves([trial], colour), line={"color": colour, "width": 3}, name=name)
    return figure


def _curves(trials: Sequence[TrialPoint], colour: str) -> dict[str, Any]:
    """Running means of several trials as one line, with a gap after each."""
    steps, means, texts, crosses = zip(*(point for t in trials for point in _curve_points(t)), strict=True)
    return {
        "x": steps,
        "y": means,
        "mode": "lines+markers",
        "marker": {"size": 5, "symbol": "x", "color": colour, "opacity": crosses},
        "text": texts,
        "hovertemplate": "%{text}<br>%{x} rows: %{y:.4f}<extra></extra>",
    }


def _curve_points(trial: TrialPoint) -> Iterator[tuple[int | None, float | None, str, float]]:
    """(step, mean, hover text, opacity of its cross): a curve that was cut off, or has one step, ends in a cross."""
    ends_in_cross = trial.state == "pruned" or len(trial.curve) == 1
    for step, mean in trial.curve:
        is_end = step == trial.curve[-1][0]
        yield step, mean, f"trial {trial.number}, {trial.state}", float(is_end and ends_in_cross)
    yield None, None, "", 0.0


def slices(data: ReportData, names: Sequence[str] | None = None) -> go.Figure:
    """The score against one parameter at a time, for the two most important ones or those named."""
    names = list(names or top_parameters(data))
    if not names:
        return _figure(x="", y=data.metric)
    figure = make_subplots(rows=1, cols=len(names), shared_yaxes=True, horizontal_spacing=0.06)
    for column, name in enumerate(names, start=1):
        for state, symbol, colour in (("pruned", "circle-open", GREY), ("complete", "circle", BLUE)):
            trials = [t for t in data.trials if t.state == state and name in t.params and t.value is not None]
            points = _points(trials, data, x=_axis_values(trials, data, name))
            marker = {"symbol": symbol, "color": colour, "size": 9}
            figure.add_scatter(**points, name=state, marker=marker, row=1, col=column, showlegend=column == 1)
        figure.update_xaxes(title_text=_plain(name), row=1, col=column, automargin=True, **_axis(data, name))
    figure.update_yaxes(title_text=_plain(data.metric), col=1)
    return _styled(figure)


def contour(data: ReportData, names: Sequence[str] | None = None) -> go.Figure:
    """Complete trials in the plane of two parameters; the shading only interpolates between them."""
    pair = list(names or top_parameters(data, together=True))
    if len(pair) < 2:
        return _figure(x="", y="")
    first, second = pair
    trials = [t for t in data.complete if first in t.params and second in t.params]
    figure = _figure(x=first, y=second)
    xs, ys = _axis_values(trials, data, first), _axis_values(trials, data, second)
    scores = [t.value or 0.0 for t in trials]
    numeric = _is_numeric(data, first) and _is_numeric(data, second)
    if numeric and len({*zip(xs, ys, strict=True)}) >= 4:
        figure.add_trace(_shading([float(x) for x in xs], [float(y) for y in ys], scores))
    best = next((i for i, t in enumerate(trials) if t.number == data.best_number), None)
    marker: dict[str, Any] = {
        "color": scores,
        "colorscale": _SCALE,
        "size": [18 if i == best else 11 for i in range(len(trials))],
        "line": {"color": "white", "width": 1.5},
    }
    marker |= {"cmin": min(scores), "cmax": max(scores)} if scores else {}
    marker |= {"symbol": ["star" if i == best else "circle" for i in range(len(trials))]}
    marker |= {
        "showscale": True,
        "colorbar": {"thickness": 12, "outlinewidth": 0, "title": {"text": _plain(data.metric)}},
    }
    figure.add_scatter(**_points(trials, data, x=xs, y=ys), marker=marker, showlegend=False)
    figure.update_xaxes(**_axis(data, first))
    figure.update_yaxes(**_axis(data, second))
    return figure


def score_against_tokens(data: ReportData) -> go.Figure:
    """What a better score costs: complete trials by generated tokens a row, and their front where it was searched."""
    figure = _figure(x="generated tokens a row", y=data.metric)
    if data.front and data.objectives in ((), (TOKENS_LABEL,)):
        line = {"color": GREEN, "width": 2, "shape": "hv"}
        tokens, scores = [t.tokens for t in data.front_points], [t.value for t in data.front_points]
        figure.add_scatter(x=tokens, y=scores, mode="lines", line=line, name="front", hoverinfo="skip")
    for kind in sorted({t.kind for t in data.complete}):
        trials = [t for t in data.complete if t.kind == kind and t.tokens is not None]
        if trials:
            marker = {"size": 10, "symbol": _KIND_SYMBOLS.get(kind, "circle")}
            points = _points(trials, data, x=[t.tokens for t in trials])
            figure.add_scatter(**points, name=_plain(kind) or "trials", marker=marker)
    _mark_named(figure, data)
    figure.update_layout(colorway=[BLUE, ORANGE, GREEN, RED, GREY])
    return figure


def rows_done(data: ReportData) -> go.Figure:
    """How many rows each trial was given before it was stopped."""
    figure = _figure(x="trial", y="rows scored")
    for state, colour in (("complete", BLUE), ("pruned", GREY), ("failed", RED)):
        trials = [t for t in data.trials if t.state == state]
        if trials:
            hover = [_hover(t, data) for t in trials]
            figure.add_bar(
                x=[t.number for t in trials], y=[t.rows for t in trials], name=state, marker={"color": colour},
                text=hover, textposition="none", hoverinfo="text",
            )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0.2)
    return figure


FIGURES: Mapping[str, Callable[[ReportData], go.Figure]] = {
    "history": history,
    "holdout_differences": holdout_differences,
    "importances": importances,
    "learning_curves": learning_curves,
    "slices": slices,
    "contour": contour,
    "score_against_tokens": score_against_tokens,
    "rows_done": rows_done,
}


def drawable(data: ReportData) -> list[str]:
    """The names of the figures that have something to show."""
    content = {
        "holdout_differences": data.holdout is not None and bool(data.holdout.differences),
        "importances": bool(data.importances),
        "learning_curves": any(t.curve for t in data.trials),
        "slices": bool(top_parameters(data)),
        "contour": bool(top_parameters(data, together=True)),
        "score_against_tokens": any(t.tokens is not None for t in data.complete),
        "rows_done": any(t.state != "complete" for t in data.trials),  # else every bar is as high as the others
    }
    return [name for name in FIGURES if content.get(name, bool(data.trials))]


@dataclass(frozen=True)
class Plots:
    """Every method returns a plotly figure; a study that has nothing to show in it gets an empty one.

    Attributes:
        data: What the figures are made from.
    """

    data: ReportData

    def history(self) -> go.Figure:
        """Scores by trial, the best so far as a line, pruned trials apart."""
        return history(self.data)

    def holdout_differences(self) -> go.Figure:
        """Winner minus baseline for every holdout row, sorted, with the interval of the mean."""
        return holdout_differences(self.data)

    def importances(self) -> go.Figure:
        """How much of the score's variation goes with each parameter."""
        return importances(self.data)

    def learning_curves(self) -> go.Figure:
        """The running mean of every trial over the rows it saw."""
        return learning_curves(self.data)

    def slices(self, names: Sequence[str] | None = None) -> go.Figure:
        """The score against one parameter at a time: the two most important ones, or those named."""
        return slices(self.data, names)

    def contour(self, names: Sequence[str] | None = None) -> go.Figure:
        """The score in the plane of the two most important parameters, or of the two named."""
        return contour(self.data, names)

    def score_against_tokens(self) -> go.Figure:
        """What a better score costs in generated tokens."""
        return score_against_tokens(self.data)

    def rows_done(self) -> go.Figure:
        """Where pruning stopped trials."""
        return rows_done(self.data)


def top_parameters(data: ReportData, *, together: bool = False) -> list[str]:
    """The two most important parameters; with `together` the two most important that occur in the same trials."""
    ranked = sorted(data.importances, key=lambda name: -data.importances[name])
    if not ranked:
        ranked = sorted({name for t in data.complete for name in t.params})
    ranked = [name for name in ranked if len({repr(t.params[name]) for t in data.trials if name in t.params}) > 1]
    if not together:
        return ranked[:2]
    for i, second in enumerate(ranked[1:], start=1):
        for first in ranked[:i]:
            both = [t for t in data.complete if first in t.params and second in t.params]
            if all(len({repr(t.params[name]) for t in both}) > 1 for name in (first, second)) and len(both) > 2:
                return [first, second]
    return []


def _figure(*, x: str, y: str) -> go.Figure:
    figure = go.Figure()
    figure.update_xaxes(title_text=_plain(x))
    figure.update_yaxes(title_text=_plain(y))
    return _styled(figure)


def _styled(figure: go.Figure) -> go.Figure:
    figure.update_layout(
        template="none",
        height=360,
        margin={"l": 60, "r": 16, "t": 34, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )
    grid = {"gridcolor": "rgba(128,136,148,0.22)", "zeroline": False, "automargin": True, "title_standoff": 10}
    figure.update_xaxes(**grid)
    figure.update_yaxes(**grid)
    return figure


def _points(
    trials: Sequence[TrialPoint], data: ReportData, *, x: Sequence[Any] | None = None, y: Sequence[Any] | None = None
) -> dict[str, Any]:
    return {
        "x": [t.number for t in trials] if x is None else list(x),
        "y": [t.value for t in trials] if y is None else list(y),
        "mode": "markers",
        "text": [_hover(t, data) for t in trials],
        "hoverinfo": "text",
    }


def _hover(trial: TrialPoint, data: ReportData) -> str:
    value = "no score" if trial.value is None else f"{data.metric} {trial.value:.4f}"
    lines = [
        f"trial {trial.number} {trial.role}".strip() + f", {trial.state} after {trial.rows} rows",
        value,
        trial.kind,
    ]
    lines += [f"{name} = {_short(value)}" for name, value in trial.params.items()]
    lines += [trial.reason or ""]
    return "<br>".join(_plain(line) for line in lines if line)


def _reference_line(figure: go.Figure, value: float | None, name: str) -> None:
    if value is not None:
        line = {"color": ORANGE, "width": 1.5, "dash": "dash"}
        label = {"text": name, "font": {"color": ORANGE}, "xanchor": "right", "yanchor": "bottom"}
        figure.add_hline(y=value, line=line, annotation=label, annotation_position="top right")


def _mark_named(figure: go.Figure, data: ReportData) -> None:
    named = {"baseline": data.trial_of("baseline"), "best": data.best}
    for name, trial in named.items():
        if trial is not None and trial.tokens is not None and trial.value is not None:
            figure.add_annotation(x=trial.tokens, y=trial.value, text=name, showarrow=True, arrowhead=0, ax=24, ay=-24)


def _role_colours(data: ReportData) -> dict[int | None, tuple[str, str]]:
    colours = {"baseline": ORANGE, "greedy": "#9a6bc2"}
    return {t.number: (t.role, colours[t.role]) for t in data.trials if t.role in colours}


def _running_best(values: Sequence[float], *, minimize: bool) -> list[float]:
    running = (np.minimum if minimize else np.maximum).accumulate(np.asarray(values, dtype=float))
    return [float(value) for value in running]


def _shading(xs: Sequence[float], ys: Sequence[float], scores: Sequence[float]) -> go.Contour:
    """Inverse-distance weighting on a 40 x 40 grid; both axes count alike, whatever their units."""
    x_grid, y_grid = np.linspace(min(xs), max(xs), 40), np.linspace(min(ys), max(ys), 40)
    x_unit, y_unit = max(np.ptp(x_grid), 1e-12), max(np.ptp(y_grid), 1e-12)
    x_distance = (x_grid[None, :, None] - np.asarray(xs)) / x_unit
    y_distance = (y_grid[:, None, None] - np.asarray(ys)) / y_unit
    weights = 1.0 / (x_distance**2 + y_distance**2 + 1e-4)  # [y, x, trial]
    surface = (weights * np.asarray(scores)).sum(-1) / weights.sum(-1)
    return go.Contour(
        x=x_grid.tolist(), y=y_grid.tolist(), z=surface.tolist(), colorscale=_SCALE, showscale=False, hoverinfo="skip",
        opacity=0.55, line={"width": 0}, ncontours=14, zmin=min(scores), zmax=max(scores),
    )  # fmt: skip


def _is_numeric(data: ReportData, name: str) -> bool:
    values = [t.params[name] for t in data.trials if name in t.params]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _axis(data: ReportData, name: str) -> dict[str, Any]:
    """How the values of a parameter are laid out: choices side by side, a few whole numbers with a tick at each."""
    if not _is_numeric(data, name):
        return {"type": "category"}
    values = [t.params[name] for t in data.trials if name in t.params]
    few_whole = all(isinstance(value, int) for value in values) and max(values) - min(values) <= _MOST_TICKS
    return {"dtick": 1} if values and few_whole else {}


def _axis_values(trials: Sequence[TrialPoint], data: ReportData, name: str) -> list[Any]:
    is_numeric = _is_numeric(data, name)
    return [t.params[name] if is_numeric else _plain(_short(t.params[name])) for t in trials]


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _plain(text: str) -> str:
    """Plotly reads a few HTML tags in its texts; this leaves it none, and no control characters."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

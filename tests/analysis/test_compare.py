from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from llmsearch_optuna.analysis.compare import compare_studies
from llmsearch_optuna.cli.output import print_comparison
from llmsearch_optuna.errors import InputError
from llmsearch_optuna.report.compare_page import render_comparison, write_comparison
from llmsearch_optuna.search_result import SearchResult
from tests.optimize.studies import run
from tests.synthetic import TextEngine, dataset, temperature_near


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[SearchResult]:
    """The second engine is better whatever the parameters."""
    folder = tmp_path_factory.mktemp("pair")
    good = temperature_near(0.7)
    weak = TextEngine(lambda params: 0.3 * good(params))
    return [
        run(folder, weak, name="a", study_name="weak", n_trials=6),
        run(folder, TextEngine(good), name="b", study_name="<b>good</b>", n_trials=6),
    ]


def test_studies_are_paired_by_row(pair: list[SearchResult]) -> None:
    found = compare_studies(pair)
    assert found.part == "holdout"
    held = {row for row, item in pair[0].items.items() if item.part == "holdout"}
    assert set(found.rows) == held
    (verdict,) = found.pairs
    means = [found.mean(study) for study in found.studies]
    expected = sum(found.studies[1].scores[r] - found.studies[0].scores[r] for r in found.rows) / len(found.rows)
    assert verdict.difference == pytest.approx(expected) == pytest.approx(means[1] - means[0])
    assert verdict.answer == "better"
    assert verdict.winner_replicates == 3  # means would lose the interval of 0/1 scores
    assert verdict.low is not None
    assert verdict.low > 0
    assert None not in (verdict.wins, verdict.ties, verdict.losses)
    assert sum(count or 0 for count in (verdict.wins, verdict.ties, verdict.losses)) == len(held)
    back = compare_studies(pair[::-1]).pairs[0]
    assert back.difference == pytest.approx(-expected)
    for study in found.studies:
        assert study.result.trial_params(study.trial) == study.result.recommended_params


def test_search_rows_are_taken_where_a_holdout_was_not_looked_at(pair: list[SearchResult], tmp_path: Path) -> None:
    baseline_won = run(tmp_path, TextEngine(lambda params: 1.0 - bool(params.get("do_sample"))), n_trials=3)
    found = compare_studies([pair[0], baseline_won])
    assert found.part == "search"
    assert len(found.rows) == 28
    page = render_comparison(found).split("<script>")[0]
    assert "The best trial of each, on 28 search rows, which flatter what was searched" in page
    assert "<th>best trial</th>" in page
    assert "recommend" not in page.split("</table>")[0]
    shown = StringIO()
    print_comparison(found, console=Console(file=shown, width=80))
    assert "the best trial of each, on 28 search rows" in shown.getvalue()
    assert "recommend" not in shown.getvalue()
    assert max(map(len, shown.getvalue().splitlines())) <= 80


def test_on_the_holdout_it_is_what_each_recommends(pair: list[SearchResult]) -> None:
    found = compare_studies(pair)
    page = render_comparison(found).split("<script>")[0]
    assert "What each recommends, on 12 rows" in page
    assert "<th>recommended</th>" in page
    shown = StringIO()
    print_comparison(found, console=Console(file=shown, width=80))
    assert "what each recommends, on 12 rows" in shown.getvalue()
    assert "recommended by" in shown.getvalue()


def test_too_few_common_rows_come_with_a_caution(pair: list[SearchResult], tmp_path: Path) -> None:
    assert compare_studies(pair).caution is None
    few = compare_studies([pair[0], run(tmp_path, TextEngine(temperature_near(0.7)), seed=3, n_trials=6)])
    assert few.part == "holdout"
    assert 2 <= len(few.rows) < 6
    assert f"{len(few.rows)} different prompts are too few" in (few.caution or "")
    assert "same seed and holdout" in render_comparison(few)
    shown = StringIO()
    print_comparison(few, console=Console(file=shown, width=200))
    assert "same seed and holdout" in shown.getvalue()


def test_other_data_metrics_and_directions_are_refused(pair: list[SearchResult], tmp_path: Path) -> None:
    other = [{"prompt": f"row {i} more", "answer": str(i)} for i in range(40)]
    with pytest.raises(InputError, match="have other data: row 0 differs"):
        compare_studies([pair[0], run(tmp_path, dataset=other, n_trials=2, name="data")])
    with pytest.raises(InputError, match="has metric 'number_metric' and 'study' 'exact_match'"):
        compare_studies([pair[0], run(tmp_path, metric="exact_match", reference="answer", n_trials=2, name="metric")])
    with pytest.raises(InputError, match="direction"):
        compare_studies([pair[0], run(tmp_path, direction="minimize", n_trials=2, name="direction")])
    with pytest.raises(InputError, match="at least two"):
        compare_studies(pair[:1])


def test_more_rows_in_one_study_leave_the_common_ones(pair: list[SearchResult], tmp_path: Path) -> None:
    longer = run(tmp_path, dataset=dataset(44), n_trials=3, name="longer")
    found = compare_studies([pair[0], longer, pair[1]])
    assert len(found.pairs) == 2
    assert set(found.rows) <= set(pair[0].items)


def test_the_page_shows_all_and_escapes_names(pair: list[SearchResult], tmp_path: Path) -> None:
    found = compare_studies(pair)
    page = write_comparison(found, tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "<b>good</b>" not in page.split("<script>")[0]
    assert "&lt;b&gt;good&lt;/b&gt;" in page
    for name in ("pair-1", "history-0", "history-1"):
        assert f'id="figure-{name}"' in page
        assert f'"{name}"' in page
    assert re.search(r'(src|href)="http', page.split("<script>")[0]) is None
    assert f"{found.pairs[0].difference:+.4f}" in page
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_comparison(found, tmp_path / "file" / "x.html")

"""The page: one file that needs nothing else, says the verdict first, and shows every text without obeying it."""

from __future__ import annotations

import html
import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from llmsearch_optuna.report import ReportData, TrialPoint, render, summary
from llmsearch_optuna.report.page import script_json
from tests.browser import CHROMIUM, FLAGS, browser, needs_chromium, needs_driver

from .conftest import NASTY


class Outline(HTMLParser):
    """Collects tags, the text outside scripts, and whatever would load something."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._inside = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._inside = tag
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    return parser


def test_page_says_the_verdict_first_and_loads_nothing(report_data):
    page = outline(render(report_data))
    assert page.text.index(report_data.verdict_sentence) < page.text.index("The search")
    assert page.links == []
    assert page.tags.count("script") == 3
    assert page.tags.count("h1") == 1


def test_page_says_whether_more_rows_or_replicates_would_help(report_data):
    advice = "most of the variance lies in the rows"
    assert advice in outline(render(replace(report_data, advice=advice))).text
    assert "variance" not in outline(render(report_data)).text


def test_what_the_rows_can_show_stands_under_the_verdict_whether_or_not_rows_were_held_out(report_data):
    told = replace(report_data, advice="most of the variance lies in the rows", power="a difference of 0.1 <or more>")
    for data in (told, replace(told, holdout=None)):
        above = outline(render(data)).text.split("Recommended:")[0]
        assert data.advice in above
        assert data.power in above


def test_the_score_on_the_search_rows_has_its_error_and_what_to_expect(report_data):
    data = replace(report_data, best_score_error=0.0123)
    score = f"{data.best.value:.4f} ± 0.0123"
    assert score in outline(render(data)).text
    assert "best of many on these rows" in outline(render(data)).text
    tiles = outline(render(replace(data, holdout=None))).text.split("Recommended:")[0]
    assert score in tiles
    assert "±" not in outline(render(replace(report_data, holdout=None))).text


def test_texts_are_shown_and_not_obeyed(report_data):
    page = render(report_data)
    assert "<script>document" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert outline(page).text.count("document.title='owned'") >= 3
    page.encode("utf-8")


def test_what_a_model_thought_is_folded_beside_its_answer(report_data):
    first, *others = report_data.examples
    thinking = replace(first, baseline_reasoning=NASTY, best_reasoning="Seven, or half past?")
    page = render(replace(report_data, examples=(thinking, *others)))
    assert page.count("<summary>reasoning</summary>") == 2
    assert "<summary>reasoning</summary>" not in render(report_data)
    assert f'dir="auto">{html.escape("Seven, or half past?")}</div></details>' in page
    assert outline(page).links == []


def test_embedded_json_survives_script_ends():
    text = script_json({"a": NASTY, "b": "<!--", "c": "\u2028"})
    assert not re.search("[<>&\u2028]", text)
    assert json.loads(text)["a"] == NASTY


def test_examples_are_sorted_by_gain_in_either_direction(report_data):
    def shown(data):
        return [float(x) for x in re.findall(r'<td class="number"><b class="\w+">([+-][\d.]+)</b>', render(data))]

    gains = shown(report_data)
    assert len(gains) == len(report_data.examples)
    assert gains == sorted(gains, reverse=True)
    assert shown(replace(report_data, direction="minimize")) == sorted(gains)


def test_many_examples_are_cut_in_the_middle(report_data):
    many = tuple(replace(e, row=i) for i in range(20) for e in report_data.examples)
    page = render(replace(report_data, examples=many))
    assert "Of 360 rows the 100 with the largest gains" in page
    assert page.count("<summary>prompt</summary>") == 200


def test_a_study_with_nothing_but_a_failed_trial_has_a_page():
    failed = TrialPoint(number=0, state="failed", value=None, reason="row 3: out of memory")
    data = ReportData(study_name="s", metric="m", verdict_sentence="Nothing was scored.", trials=(failed,))
    page = outline(render(data))
    assert "row 3: out of memory" in page.text
    assert "Completions" not in page.text


def test_summary_for_notebooks_is_short_and_escaped(report_data):
    data = replace(report_data, verdict_sentence=NASTY)
    text = summary(data)
    assert "<script" not in text
    assert len(text) < 3000
    assert "0.2860" in text


@needs_chromium
def test_a_browser_draws_every_figure_without_an_error(report_data, tmp_path):
    page = tmp_path / "report.html"
    # Errors and refusals of the policy end up in the title, where --dump-dom shows them.
    spy = "<script>addEventListener('error', e => document.title = 'error ' + e.message);"
    spy += "addEventListener('securitypolicyviolation', e => document.title = 'refused ' + e.blockedURI);</script>"
    page.write_text(render(report_data).replace("<style>", spy + "<style>", 1), encoding="utf-8")
    flags = [*FLAGS, "--virtual-time-budget=10000", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [str(CHROMIUM), *flags, profile, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    title = html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1])
    assert title == f"{report_data.study_name}: report"
    places = re.findall(r'id="figure-(\w+)"', done.stdout)
    assert len(places) == 8
    assert len(re.findall(r'<div class="plot js-plotly-plot" id="figure-\w+"', done.stdout)) == 8


@needs_driver
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_fits_desk_and_phone_and_takes_on_the_dark(report_data, tmp_path, width):
    """Nothing is wider than the window, texts are shown and not obeyed, and figures take the page's colours."""
    page = tmp_path / "report.html"
    page.write_text(render(report_data), encoding="utf-8")
    colours = {}
    with browser(tmp_path / "profile") as chromium:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            chromium.get(page.as_uri())
            assert chromium.execute_script("return document.documentElement.scrollWidth") == width
            colours[scheme] = chromium.execute_script(
                "return [getComputedStyle(document.body).backgroundColor,"
                "getComputedStyle(document.querySelector('.xtick text')).fill]"
            )
        assert chromium.title == f"{report_data.study_name}: report"
        assert NASTY[:30] in chromium.execute_script("return document.body.innerText")
        assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert not set(colours["light"]) & set(colours["dark"])

"""A person's way through the dashboard, in a real browser: the study, a trial, and the table of its completions."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from optuna.distributions import FloatDistribution

from llmsearch_optuna import dashboard
from llmsearch_optuna.api import search
from llmsearch_optuna.search_result import SearchResult
from tests.browser import browser, needs_driver
from tests.dashboard.test_server import free_port, get
from tests.synthetic import TextEngine, dataset, number_metric

pytestmark = [
    needs_driver,
    pytest.mark.skipif(importlib.util.find_spec("optuna_dashboard") is None, reason="needs the extra dashboard"),
]

NASTY = (
    "<img src=x onerror=\"document.title='owned'\"> <script>document.title='owned'</script> | **bold** \u05e9\u05dc 😀"
)


class NastyEngine(TextEngine):
    """Its completions end in what should not be obeyed."""

    name = "tiny-model"

    def complete(self, prompt, params):
        made = super().complete(prompt, params)
        return replace(made, text=f"{made.text} {NASTY}")


def first_number(predictions, references):
    return number_metric([p.split()[0] for p in predictions], references)


first_number.bounds = (0.0, 1.0)


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> SearchResult:
    return search(
        NastyEngine(),
        dataset(40),
        {"max_new_tokens": 20, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)},
        holdout=0.3,
        reference="answer",
        metric=first_number,
        n_trials=8,
        storage=f"sqlite:///{tmp_path_factory.mktemp('browser')}/s.db",
        study_name="s",
        progress=False,
    )


@pytest.fixture(scope="module")
def address(result) -> Iterator[str]:
    port = free_port()
    threading.Thread(target=dashboard.serve, args=(result.opened,), kwargs={"port": port}, daemon=True).start()
    root = f"http://127.0.0.1:{port}"
    get(root)
    return f"{root}/dashboard/studies/1"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@contextlib.contextmanager
def no_complaints(chromium):
    """Nothing that was opened may have run a script, or broken one."""
    chromium.get_log("browser")
    yield
    assert chromium.title != "owned"
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


def text_with(chromium, *wanted, seconds=30):
    """The page's text, as soon as everything wanted stands in it."""
    deadline = time.monotonic() + seconds
    while True:
        text = chromium.execute_script("return document.body.innerText")
        missing = [part for part in wanted if part not in text]
        if not missing:
            return text
        assert time.monotonic() < deadline, f"{missing} did not appear in {text[:6000]!r}"
        time.sleep(0.2)


def test_the_study_has_its_objective_its_figures_and_its_note(chromium, address, result):
    with no_complaints(chromium):
        chromium.get(address)
        text_with(chromium, "History", "first_number", "Intermediate values", "Score against tokens")
        chromium.get(f"{address}/note")
        text_with(
            chromium, result.verdict.headline, result.verdict.notes, "tiny-model", "fingerprint", "The first prompt"
        )


def test_a_trial_shows_its_rows_and_opens_them_as_a_table(chromium, address, result):
    from selenium.webdriver.common.by import By

    with no_complaints(chromium):
        chromium.get(f"{address}/trials?numbers=0")
        # The mark of a table's cell and the marks of bold text are shown as they are.
        text_with(chromium, "Best rows", "Worst rows", NASTY, "memory", "kind greedy")
        cells = chromium.find_elements(By.CSS_SELECTOR, "table tbody tr")
        assert len(cells) == 6
        chromium.find_element(By.CSS_SELECTOR, '[aria-label="show artifact table"]').click()
        shown = text_with(chromium, "finish_reason", "completion", "prompt", NASTY)
        first = result.records(0)[0]
        assert first.text in shown
        assert f"row {first.row}" in shown

"""Links in texts of strangers lead nowhere in the dashboard: looked for, and clicked on, in a real browser."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest
from optuna.distributions import FloatDistribution

from llmsearch_optuna import dashboard
from llmsearch_optuna.api import search
from llmsearch_optuna.dashboard.notes import STUDY_HEADING, fenced, inline
from llmsearch_optuna.engine.request import Completion
from llmsearch_optuna.search_result import SearchResult
from tests.browser import browser, needs_driver
from tests.dashboard.test_browser import text_with
from tests.dashboard.test_server import free_port, get
from tests.synthetic import TextEngine, number_metric

pytestmark = [
    needs_driver,
    pytest.mark.skipif(importlib.util.find_spec("optuna_dashboard") is None, reason="needs the extra dashboard"),
]

EVIL = "evil.example"
FORMS = (
    f"https://{EVIL}/plain",
    f"HTTPS://{EVIL}/capitals",
    f"http://user:word@{EVIL}:80/userinfo",
    f"www.{EVIL}/www",
    f"WwW.{EVIL}/mixed",
    f"ftp://{EVIL}/ftp",
    f"me@{EVIL}",
    f"mailto:me@{EVIL}",
    f"xmpp:me@{EVIL}/x",
    f"<https://{EVIL}/angle>",
    f"[text](https://{EVIL}/inline)",
    f"[text](//{EVIL}/no-scheme)",
    f"![image](https://{EVIL}/image.png)",
    f"[text]: https://{EVIL}/reference",
    f'<a href="https://{EVIL}/html">html</a>',
    f"&lt;a href=&quot;https://{EVIL}/entities&quot;&gt;x&lt;/a&gt;",
    f"&#104;ttps://{EVIL}/entity",
    f"https&#58;//{EVIL}/entity-colon",
    f"https&colon;//{EVIL}/named-entity",
    f"www&period;{EVIL}/entity-dot",
    f"me&commat;{EVIL}",
    f"\\https://{EVIL}/backslash",
    f"h\u200bttps://{EVIL}/zero-width",
    f"https\u200b://{EVIL}/zero-width-2",
    f"https:\u2060//{EVIL}/joiner",
    f"https://\u2060{EVIL}/joiner-2",
    f"www\u2060.{EVIL}/joiner-3",
    f"ｈttps://{EVIL}/full-width",
    f"https：//{EVIL}/full-width-colon",
    f"www．{EVIL}/full-width-dot",
    f"me＠{EVIL}",
    f"https://{EVIL}/one https://{EVIL}/two,https://{EVIL}/three",
    f"(https://{EVIL}/brackets)",
    f"*https://{EVIL}/stars* _https://{EVIL}/underscores_ ~~https://{EVIL}/tildes~~",
    f"`https://{EVIL}/code`",
    f"``` https://{EVIL}/fence",
    f"javascript:location='https://{EVIL}/script'",
    f"[x](javascript:location='https://{EVIL}/script')",
    f"data:text/html,<a href=https://{EVIL}/data>x</a>",
    f"[^1] [^1]: https://{EVIL}/footnote",
    f"{EVIL}/bare",
    f"| https://{EVIL}/cell | www.{EVIL}/cell |",
    f"# https://{EVIL}/heading",
    f"> https://{EVIL}/quote",
    f"- https://{EVIL}/list",
    f"$\\href{{https://{EVIL}/math}}{{x}}$ $$\\url{{https://{EVIL}/math}}$$",
)
ALL = " ; ".join(FORMS)
NAME = f"s [x](https://{EVIL}/1) www.{EVIL} <https://{EVIL}/2> me@{EVIL}"


class LinkingEngine(TextEngine):
    """Its completions, its name and its errors are links."""

    name = f"model https://{EVIL}/model www.{EVIL}"

    def complete(self, prompt: str, params: Mapping[str, Any]) -> Completion:
        made = super().complete(prompt, params)
        if params.get("temperature", 0.5) > 1.2:
            raise ValueError(f"see https://{EVIL}/error or [this](https://{EVIL}/error) <a href='//{EVIL}'>x</a>")
        return Completion(f"{made.text} {FORMS[len(prompt) % len(FORMS)]} {ALL[:200]}", made.token_ids)


def first_number(predictions: list[str], references: list[Any]) -> list[float]:
    return number_metric([p.split()[0] for p in predictions], references)


first_number.bounds = (0.0, 1.0)  # type: ignore[attr-defined]
first_number.__name__ = f"metric_https://{EVIL}/metric"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    rows = [{f"www.{EVIL}": FORMS[n % len(FORMS)], "prompt": f"{n} {FORMS[n % len(FORMS)]}"} for n in range(30)]
    return search(
        LinkingEngine(),
        rows,
        {"max_new_tokens": 20, "do_sample": True, "temperature": FloatDistribution(0.1, 2.0)},
        holdout=0.3,
        reference=f"www.{EVIL}",
        metric=first_number,
        n_trials=8,
        storage=f"sqlite:///{tmp_path_factory.mktemp('links')}/s.db",
        study_name=NAME,
        progress=False,
    )


@pytest.fixture(scope="module")
def address(result: SearchResult) -> str:
    import optuna_dashboard

    optuna_dashboard.save_note(
        result.opened.trial(4), "\n\n".join(f"{n}. {inline(form)}" for n, form in enumerate([*FORMS, ALL]))
    )
    optuna_dashboard.save_note(
        result.opened.trial(5), "\n\n".join(fenced(text) for text in [*FORMS, "\n".join(FORMS), "`````\n" + ALL])
    )
    port = free_port()
    threading.Thread(target=dashboard.serve, args=(result.opened,), kwargs={"port": port}, daemon=True).start()
    root = f"http://127.0.0.1:{port}"
    get(root)
    return f"{root}/dashboard/studies/1"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile"), height=4000) as driver:
        yield driver


def strange_links(chromium: Any) -> list[str]:
    """All that leads from the page to somewhere that is not this dashboard, pictures and frames too."""
    found = chromium.execute_script(
        "return [...document.querySelectorAll('a[href],area[href],img[src],iframe[src],object[data],form[action]')]"
        ".map(e => e.href || e.src || e.data || e.action).map(String)"
    )
    own = ("127.0.0.1", "plotly.com", "github.com")  # the last two are the dashboard's own
    return [link for link in found if urlsplit(link).hostname not in own]


def click_where_it_says(chromium: Any, text: str) -> int:
    """Click on every place where a text stands; returns how many there were."""
    return int(
        chromium.execute_script(
            """
            const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            const places = [];
            for (let node = walker.nextNode(); node; node = walker.nextNode())
                if (node.textContent.includes(arguments[0])) places.push(node.parentElement);
            window.open = () => { document.title = 'opened'; };
            places.forEach(place => place.dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true})));
            return places.length;
            """,
            text,
        )
    )


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("", ["History"]),
        ("/note", [STUDY_HEADING.strip("# ")]),
        ("/trials?numbers=0", ["Best rows"]),
        ("/trials?numbers=4", ["bare"]),
        ("/trials?numbers=5", ["bare"]),
    ],
)
def test_no_page_has_a_link_to_elsewhere(chromium: Any, address: str, page: str, shown: list[str]) -> None:
    chromium.get(f"{address}{page}")
    text_with(chromium, *shown)
    assert strange_links(chromium) == []
    clicked = click_where_it_says(chromium, EVIL)
    assert clicked > 0 or page == ""
    assert urlsplit(chromium.current_url).hostname == "127.0.0.1"
    assert chromium.title != "opened"


def test_the_test_would_see_a_link(chromium: Any, address: str, result: SearchResult) -> None:
    import optuna_dashboard

    optuna_dashboard.save_note(result.opened.trial(6), f"see https://{EVIL}/plain and [this](https://{EVIL}/inline)")
    chromium.get(f"{address}/trials?numbers=6")
    text_with(chromium, "see ")
    assert len(strange_links(chromium)) == 2


def test_failed_trials_show_their_error_without_links(chromium: Any, address: str, result: SearchResult) -> None:
    failed = [t.number for t in result.trials if t.state.name == "FAIL"]
    assert failed
    chromium.get(f"{address}/trials?numbers={failed[0]}")
    text_with(chromium, "failed", "error")
    assert strange_links(chromium) == []


def test_the_table_of_completions_has_no_links(chromium: Any, address: str) -> None:
    from selenium.webdriver.common.by import By

    chromium.get(f"{address}/trials?numbers=0")
    text_with(chromium, "Best rows")
    chromium.find_element(By.CSS_SELECTOR, '[aria-label="show artifact table"]').click()
    text_with(chromium, "finish_reason")
    assert strange_links(chromium) == []

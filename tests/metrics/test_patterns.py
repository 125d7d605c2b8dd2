"""Regular expressions, and scripts."""

from __future__ import annotations

from typing import Any

import pytest

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.metrics import Metric, language, patterns, regex
from llmsearch_optuna.metrics.scoring import MetricError


def scored(metric: Metric, text: str, reference: Any = None) -> float:
    (score,) = metric.score_rows([text], [reference], [{}])
    return score


def test_a_pattern_is_an_option_or_the_reference() -> None:
    assert scored(regex(pattern=r"#### -?\d+"), "so it is\n#### 42") == 1.0
    assert scored(regex(pattern=r"\d+", whole=True), " 42\n") == 1.0
    assert scored(regex(pattern=r"\d+", whole=True), "is 42") == 0.0
    assert scored(regex(), "yes, it is", "(?i)YES") == 1.0
    assert scored(regex(), "maybe", ["^yes", "^may"]) == 1.0


def test_what_is_no_pattern_is_told() -> None:
    with pytest.raises(InputError, match="is no regular expression"):
        regex(pattern="(")
    with pytest.raises(InputError, match="'regex' cannot judge row 1: no regular expression"):
        regex().check(["a", "["], [{}, {}])
    with pytest.raises(InputError, match="row 0: the reference 3 is no regular expression"):
        regex().check([3], [{}])


def test_a_pattern_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SEARCH_SECONDS", 0.05)
    with pytest.raises(MetricError, match="searched one text for 0.05 seconds"):
        scored(regex(pattern=r"(a|aa)+b(?<=(a|aa)+b)$"), "a" * 5000 + "c")


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("Привет, мир 42!", "Как дела?", 1.0),
        ("Привет abcd", "Как дела?", 0.6),
        ("カタカナ漢字", "ひらがなだけ", 1.0),
        ("漢字", "中文", 1.0),
        ("ひらがな", "中文", 0.0),
        ("ＦＵＬＬ width", "plain", 1.0),
        ("한국어", ["nothing", "좋은 아침입니다 여러분 안녕하세요"], 1.0),
        ("123 !", "plain", 0.0),
        ("", "plain", 0.0),
    ],
)
def test_letters_are_counted_by_script(text: str, reference: Any, score: float) -> None:
    assert scored(language().check([reference], [{}]), text, reference) == pytest.approx(score)


def test_a_script_can_be_given() -> None:
    assert scored(language(script="Arabic"), "سلام") == 1.0
    assert scored(language(script="han"), "中文 ok") == 0.5
    assert scored(language(script="Japanese"), "かな漢字カナ") == 1.0
    with pytest.raises(InputError, match="script='Cyrilic' is no script; did you mean 'Cyrillic'"):
        language(script="Cyrilic")
    with pytest.raises(InputError, match="row 0: the reference '12' has no letters; give script="):
        language().check(["12"], [{}])

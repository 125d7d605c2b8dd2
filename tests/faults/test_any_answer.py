"""Whatever a metric, an engine or a postprocess returns, and whatever a bundle holds: only the project's own errors."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsearch_optuna.backends.answers import checked_completion
from llmsearch_optuna.backends.function import FunctionBackend
from llmsearch_optuna.cli.bundle import open_bundle, warnings_of
from llmsearch_optuna.dashboard.notes import fenced, inline
from llmsearch_optuna.engine.request import Completion, Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import DecodingError, InputError, LlmsearchError
from llmsearch_optuna.metrics.metric import Metric
from llmsearch_optuna.metrics.scoring import MetricError
from llmsearch_optuna.progress import printable
from llmsearch_optuna.redaction import redacted
from llmsearch_optuna.storage.row_record import RowRecord
from tests.task.test_dataset_properties import any_text, any_value

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PARAMS = GenerationParams.of({"max_new_tokens": 3})

numbers = st.floats() | st.integers() | st.just(10**400) | st.booleans() | st.none() | any_text
arrays = st.lists(st.floats(), max_size=4).map(np.asarray) | st.floats().map(np.float64) | st.just(np.zeros((3, 2)))
answers = any_value | arrays | st.lists(numbers, min_size=3, max_size=3) | st.lists(any_value, min_size=3, max_size=3)


@QUICK
@given(
    answer=answers,
    per_row=st.sampled_from([None, True, False]),
    bounds=st.sampled_from([None, (0, 1), (-1e300, 1e308)]),
)
def test_any_answer_of_a_metric(answer: Any, per_row: bool | None, bounds: Any) -> None:
    rows = [{"n": n} for n in range(3)]
    metric = Metric.of(lambda predictions, references: answer, name="m", per_row=per_row, bounds=bounds)
    with contextlib.suppress(InputError):
        metric.check([1, 2, 3], rows)
    with contextlib.suppress(MetricError, InputError):
        scores = metric.score_rows(["a", "b", "c"], [1, 2, 3], rows)
        assert len(scores) == 3
        assert all(type(score) is float and np.isfinite(score) for score in scores)
    with contextlib.suppress(MetricError, InputError):
        assert np.isfinite(metric.score_corpus(["a", "b", "c"], [1, 2, 3], rows))


@QUICK
@given(any_value)
def test_any_answer_of_a_postprocess(answer: Any) -> None:
    metric = Metric.of("f1").after(lambda text: answer)
    with contextlib.suppress(MetricError, InputError):
        metric.score_rows(["a"], ["b"], [{}])


@QUICK
@given(
    st.lists(
        any_value
        | any_text
        | st.builds(Completion, any_value | any_text, any_value, any_value, any_value | st.integers()),
        max_size=4,
    )
    | any_value
)
def test_any_answer_of_an_engine(answer: Any) -> None:
    class Strange:
        def generate(self, prompts: list[str], params: Any) -> Any:
            return answer

    backend = FunctionBackend(Strange())
    backend.submit([Request("t", row, f"row {row}", PARAMS) for row in range(3)])
    finished = backend.poll()
    assert {item.request.row for item in finished} == {0, 1, 2}
    for item in finished:
        assert (item.completion is None) == isinstance(item.error, DecodingError)
        record = RowRecord.of(item)
        assert ((record.text or "") + (record.error or "")).encode()
        assert "\x00" not in (record.text or "")


@QUICK
@given(any_value)
def test_anything_as_a_completion(answer: Any) -> None:
    with contextlib.suppress(DecodingError):
        checked_completion(answer)


ODD_NAMES = (
    *("../x", "/etc/x", "artifacts/../../x", "artifacts/a/b", "study.db/", "artifacts/.x", "artifacts/con:x", "C:\\x"),
    *("\u202ex", "a\x1b]0;t\x07"),
)
FACTS = (
    *(b'{"study": "s", "format": 1}', b"{}", b"[", b'{"study": 1, "format": "x"}'),
    *(b'{"study": "s", "format": 1e999}', b'{"study": "s", "format": 1' + b"0" * 5000 + b"}"),
)
names = (
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
    | st.sampled_from(ODD_NAMES)
    | st.sampled_from(["study.db", "bundle.json", "study.toml"])
)


@QUICK
@given(members=st.dictionaries(names, st.binary(max_size=80), max_size=4), facts=st.sampled_from(FACTS))
def test_any_members_of_a_bundle(
    members: dict[str, bytes], facts: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        for name, content in ({"bundle.json": facts} | members).items():
            archive.writestr(name, content)
    with pytest.raises(InputError):
        open_bundle(folder / "b.zip", folder / "out" / "s")
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["b.zip"]


@QUICK
@given(content=st.binary(max_size=200))
def test_any_bytes_as_a_bundle(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(InputError):
        open_bundle(tmp_path / "b.zip", tmp_path / "out")


@QUICK
@given(any_text)
def test_any_text_that_is_shown(text: str) -> None:
    assert "\x1b" not in printable(text)
    assert "\x1b" not in inline(text)
    fenced(text)
    redacted(text)
    warnings_of(text)


@QUICK
@given(any_value)
def test_anything_as_a_metric(value: Any) -> None:
    with contextlib.suppress(LlmsearchError):
        Metric.of(value)
    with contextlib.suppress(LlmsearchError):
        Metric.of(lambda predictions, references: 0.5, bounds=value)

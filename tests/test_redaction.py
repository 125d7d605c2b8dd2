from __future__ import annotations

import tomllib

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.redaction import redacted, redacted_study_file, redacted_values

STUDY = """\
# storage = "postgresql+psycopg://ann:old-secret@db/studies"
[study]
name = "words"
storage = {storage}
[data]
prompt = "The password is: {{words}} (see https://example.org:8080/a?b=c)"
max_tokens = 20
"""


@pytest.mark.parametrize(
    "storage",
    [
        '"postgresql+psycopg://ann:s3cret@db/studies"',
        '"postgresql+psycopg://ann:s3cret with \\" quote@db/studies"',
        "'postgresql+psycopg://ann@db/studies?password=s3cret it'",
    ],
)
def test_a_study_file_is_kept_without_its_password(storage: str) -> None:
    text = STUDY.format(storage=storage)
    kept = redacted_study_file(text)
    assert "s3cret" not in kept
    assert "old-secret" not in kept
    before, after = tomllib.loads(text), tomllib.loads(kept)
    assert "***" in after["study"].pop("storage")
    before["study"].pop("storage")
    assert after == before


@given(
    st.text(min_size=4).filter(lambda text: "***" not in text and text not in "storage = postgresql+psycopg://ann@db/s")
)
def test_whatever_the_password_is_a_study_file_stays_toml_without_it(password: str) -> None:
    try:
        text = tomli_w.dumps({"study": {"storage": f"postgresql+psycopg://ann:{password}@db/s", "seed": 1}})
        tomllib.loads(text)
    except (UnicodeEncodeError, tomllib.TOMLDecodeError):
        return
    kept = redacted_study_file(text)
    assert password not in tomllib.loads(kept)["study"]["storage"]
    assert tomllib.loads(kept)["study"]["seed"] == 1


def test_keys_of_servers_are_hidden_like_passwords() -> None:
    assert redacted_study_file("[model]\napi_key = \"sk-123\"\nserver = {api-key = 'x'}") == (
        '[model]\napi_key = "***"\nserver = {api-key = "***"}'
    )
    assert redacted_values({"model": {"api_key": "sk-123", "eos_token": "</s>"}, "n": [1, "a://b:c@d"]}) == {
        "model": {"api_key": "***", "eos_token": "</s>"},
        "n": [1, "a://b:***@d"],
    }


@pytest.mark.parametrize("text", ["no secret", "mail ann@db.org", "http://host:80/path", "a?token_count=3", "1:2@3"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert redacted(text) == text

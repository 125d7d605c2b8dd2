from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from llmsearch_optuna.errors import InputError
from llmsearch_optuna.storage.address import StorageAddress

PASSWORD = "hunter2-p@ss/word"
WRITTEN = "hunter2-p%40ss%2Fword"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("sqlite:///:memory:", "would be lost"),
        ("mysql://localhost/x", "not in mysql"),
        ("://", "is not a database address"),
        ("postgresql+psycopg://u@host:port/db", "is not a database address"),
        ("postgresql+psycopg://u@host:99999999999999999999x/db", "is not a database address"),
        ("postgresql+psycop://u@host/db", "is not a database address"),
        ("a\x00b.db", "a character that no address has"),
        ("\ud800.db", "a character that no address has"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(address: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        StorageAddress.of(address, "s")


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql+psycopg://ann:{WRITTEN}@db:5432/studies",
        f"postgresql+psycopg://ann@db:5432/studies?password={WRITTEN}",
        f"postgresql+psycopg://ann@db:5432/studies?sslmode=disable&sslpassword={WRITTEN}",
        f"postgresql+psycopg://ann@db:5432/studies?unheard_of={WRITTEN}",
        f"postgresql+psycopg://ann@db:5432/studies?password={WRITTEN}&password={WRITTEN}2",
    ],
)
def test_an_address_prints_itself_without_what_is_secret(address: str) -> None:
    found = StorageAddress.of(address)
    for text in (
        str(found),
        repr(found),
        f"{found}",
        found.place,
        repr([found]),
        found.redact(f"no {PASSWORD} in {address}"),
    ):
        assert "hunter2" not in text
        assert "***" in text
    assert found.place.startswith("postgresql+psycopg://ann")
    assert "db:5432/studies" in found.place
    assert WRITTEN in found.with_secrets.replace("p@ss", "p%40ss").replace("/word", "%2Fword")


def test_a_password_of_the_query_reaches_the_driver_as_a_password() -> None:
    url = StorageAddress.of(f"postgresql+psycopg://ann@db/studies?password={WRITTEN}&sslmode=disable").url
    assert url.password == PASSWORD
    assert dict(url.query) == {"sslmode": "disable"}
    assert "hunter2" not in repr(sa.engine.URL.create("postgresql", password=PASSWORD))


@pytest.mark.parametrize(
    "address",
    [
        "postgres+psycop://ann:hunter2-pass@db/studies",
        "mysql://ann:hunter2-pass@db/studies",
        "postgresql+psycop://ann:hunter2/pass@db/studies",
        "mysql://ann@db/studies?password=hunter2-pass",
        "postgresql+psycopg://ann@db:hunter2/studies?password=hunter2-pass",
    ],
)
def test_an_error_about_an_address_hides_the_password_too(address: str) -> None:
    with pytest.raises(InputError) as caught:
        StorageAddress.of(address)
    assert "hunter2-pass" not in str(caught.value)
    assert "hunter2/pass" not in str(caught.value)
    assert caught.value.__cause__ is None, "what SQLAlchemy said of it would be shown with it"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@given(st.one_of(st.text(), st.from_regex(r"(sqlite|postgresql|postgresql\+psycopg|\w+)://.*", fullmatch=True)))
def test_any_text_is_an_address_or_an_input_error(text: str) -> None:
    try:
        found = StorageAddress.of(text)
    except InputError as problem:
        str(problem).encode()
    else:
        assert isinstance(str(found), str)
        assert found.path is None or isinstance(found.path, Path)


@given(st.text(st.characters(categories=("L", "N", "P", "S")), min_size=6))
def test_no_password_is_ever_printed(password: str) -> None:
    url = sa.URL.create("postgresql+psycopg", username="u", password=password, host="h", database="d")
    found = StorageAddress.of(url.render_as_string(hide_password=False))
    assert found.url.password == password
    assert str(found) == "postgresql+psycopg://u:***@h/d"
    assert password not in found.redact(f"before {password} after")


def test_a_studys_name_becomes_a_files_name() -> None:
    assert StorageAddress.of(None, "my study/1").path == Path("studies/my-study-1.db")
    with pytest.raises(InputError, match="study_name='aaa.* has 300 letters"):
        StorageAddress.of(None, "a" * 300)
    with pytest.raises(InputError, match="give the study's name or its storage"):
        StorageAddress.of(None)

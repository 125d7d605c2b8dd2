"""Whom the client speaks to: only the address that was given, and only where its certificate is trusted."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmsearch_optuna.backends.server.backend import ServerBackend
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import EngineUnavailableError
from tests.backends.stub_server import StubServer

NEEDS_OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer().running() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_certificates_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


def certificate(folder: Path, name: str) -> Path:
    """A file with a certificate that signs itself, and its key."""
    key, signed = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    subprocess.run(
        [*command, "-addext", f"subjectAltName={name}", "-keyout", key, "-out", signed], check=True, capture_output=True
    )
    both = folder / "both.pem"
    both.write_bytes(signed.read_bytes() + key.read_bytes())
    return both


@NEEDS_OPENSSL
def test_a_certificate_that_nobody_trusts_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = certificate(tmp_path, "IP:127.0.0.1")
    with StubServer(certificate=signed).running() as server:
        with pytest.raises(
            EngineUnavailableError, match=r"certificate cannot be trusted.*self.signed.*in SSL_CERT_FILE"
        ):
            ServerBackend(server.url, retry_for=60.0)
        assert not server.headers
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        backend = ServerBackend(server.url)
        params = GenerationParams.of({"max_new_tokens": 4}, backend.default_params)
        backend.submit([Request("t", 0, "row 0", params)])
        (finished,) = backend.poll()
        assert finished.completion is not None


@NEEDS_OPENSSL
def test_a_certificate_of_another_host_is_refused_whoever_signed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StubServer(certificate=certificate(tmp_path, "DNS:elsewhere.example")).running() as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        with pytest.raises(EngineUnavailableError, match="certificate cannot be trusted.*127.0.0.1") as told:
            ServerBackend(server.url, retry_for=60.0)
        assert "SSL_CERT_FILE" not in str(told.value)
        assert not server.headers


def test_a_redirect_is_not_followed(stub: StubServer) -> None:
    with StubServer().running() as other:
        backend = ServerBackend(stub.url)
        stub.redirect = f"{other.url}/chat/completions"
        backend.submit([Request("t", 0, "row 0", GenerationParams.of({"max_new_tokens": 4}, backend.default_params))])
        with pytest.raises(EngineUnavailableError, match="it redirects to"):
            backend.poll()
        assert not other.asked


def test_a_redirect_is_not_followed_when_the_server_is_asked_what_it_is(stub: StubServer) -> None:
    with StubServer().running() as other:
        stub.redirect = f"{other.url}/models"
        with pytest.raises(EngineUnavailableError, match=f"it redirects to '{other.url}/models'; give that address"):
            ServerBackend(stub.url)
        assert not other.headers

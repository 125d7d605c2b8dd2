"""The connection to one server: OpenAI's client, told to speak to this address only and to try nothing again by itself.

Retrying is decided elsewhere. The key is read from the environment and stays in the client.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import openai

from llmsearch_optuna.errors import InputError

OPENAI_HOST = "api.openai.com"
OPENAI_KEY = "OPENAI_API_KEY"
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        url: Its base address, such as ``http://127.0.0.1:8000/v1``.
    """

    url: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Check an address that a user gave.

        Raises:
            InputError: It is none, or carries a key.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{url!r} is no server's address; give one such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InputError(
                f"the address of {parts.hostname} must end with its path: a key stands in an environment variable "
                "that api_key_env= names, and never in an address, which is stored with the study"
            )
        return cls(urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") or "/v1", "", "")))

    @property
    def host(self) -> str:
        """The name of the machine."""
        return urlsplit(self.url).hostname or ""

    @property
    def root(self) -> str:
        """The address without its ``/v1``, where servers have pages of their own."""
        return self.url.removesuffix("/v1")


def api_key(address: Address, api_key_env: str | None) -> str | None:
    """Return the key for a server; only OpenAI's own is given one that was not asked for.

    Raises:
        InputError: The variable is not set.
    """
    name = api_key_env or (OPENAI_KEY if address.host == OPENAI_HOST else None)
    if name is None:
        return None
    if not os.environ.get(name):
        raise InputError(f"the environment variable {name} holds the key for {address.host} and is not set; export it")
    return os.environ[name]


class Connection:
    """Asks a server. Belongs to the event loop in which it was made.

    Args:
        address: Where it is.
        key: What it is asked with; None where it wants none.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, address: Address, key: str | None, *, timeout: float) -> None:
        self._address = address
        self._client = openai.AsyncOpenAI(
            base_url=address.url,
            api_key=key or "none",
            max_retries=0,
            timeout=openai.Timeout(timeout, connect=CONNECT_SECONDS),
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        if address.host != OPENAI_HOST:
            self._client.organization = self._client.project = None  # which the client reads from the environment

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON of an answer; raises what `failures.failure_of` explains."""
        return await self._client.post(path, cast_to=object, body=dict(body))

    async def get(self, path: str) -> Any:
        """Return the JSON of a page below the server's address."""
        return await self._client.get(path, cast_to=object)

    async def get_at_root(self, path: str) -> Any:
        """Return the JSON of one of the server's own pages, outside of OpenAI's interface."""
        return await self._client.get(f"{self._address.root}{path}", cast_to=object)

    async def post_at_root(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON that one of the server's own pages answers with."""
        return await self._client.post(f"{self._address.root}{path}", cast_to=object, body=dict(body))

    async def close(self) -> None:
        """Let go of all connections."""
        await self._client.close()

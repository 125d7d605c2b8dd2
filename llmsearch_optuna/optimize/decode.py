"""Decodes a handful of requests to their end, outside of a study's own loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmsearch_optuna.backends.protocol import RequestHandler
from llmsearch_optuna.engine.request import Finished, Request
from llmsearch_optuna.errors import DecodingError


def decode_all(
    server: RequestHandler, requests: Sequence[Request], take: Callable[[Sequence[Finished]], object]
) -> None:
    """Submit requests and hand over what ends until all have; whatever ends it, none of them is left with the server.

    Args:
        server: Decodes; nobody else's requests are in it.
        requests: Of any tags.
        take: Gets the requests that ended since it was called before, at least one.

    Raises:
        DecodingError: The server has nothing left to do, but some have not come back.
    """
    missing = len(requests)
    server.submit(requests)
    try:
        while missing:
            finished = server.poll()
            if not finished:
                raise DecodingError(f"the engine has nothing left to do, but {missing} rows have not come back")
            missing -= len(finished)
            take(finished)
    finally:
        for tag in dict.fromkeys(request.tag for request in requests):
            server.cancel(tag)

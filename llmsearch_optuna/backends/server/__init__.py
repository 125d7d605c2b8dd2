"""A server with OpenAI's interface as an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmsearch_optuna.errors import InputError

if TYPE_CHECKING:
    from llmsearch_optuna.backends.server.backend import ServerBackend


def is_address(model: object) -> bool:
    """Tell whether what a user calls a model is the address of a server."""
    return isinstance(model, str) and model.startswith(("http://", "https://"))


def connect(url: str, **options: Any) -> ServerBackend:
    """Return the engine that asks a server; see `ServerBackend` for the options.

    Raises:
        InputError: The openai package is missing, or an argument cannot be used.
        EngineUnavailableError: The server does not answer.
    """
    try:
        from llmsearch_optuna.backends.server.backend import ServerBackend
    except ModuleNotFoundError as problem:
        if problem.name != "openai":
            raise
        raise InputError(
            "a server is asked through the openai package: pip install 'llmsearch-optuna[server]'"
        ) from problem
    return ServerBackend(url, **options)

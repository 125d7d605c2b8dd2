"""Loading models and tokenizers, quantized checkpoints included."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmsearch_optuna.models.loader import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    """Import what loads a model when it is asked for: it imports all of transformers."""
    if name == "load":
        from llmsearch_optuna.models.loader import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

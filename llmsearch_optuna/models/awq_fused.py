"""Models whose layers AutoAWQ has fused: they keep keys and values to themselves, where ``generate`` cannot see them.

Known by the classes that AutoAWQ puts in; AutoAWQ itself is not imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

REASON = "AutoAWQ has fused its layers, which keep keys and values to themselves"

_FUSED = "awq.modules.fused."


def is_fused(model: Any) -> bool:
    """Whether AutoAWQ has put attention of its own into a model."""
    return any(type(module).__module__ == f"{_FUSED}attn" for module in model.modules())


def start_afresh(model: Any) -> None:
    """Let a fused model forget what it has read; does nothing to others.

    It takes a prompt of one token, and one that is a token longer than all it has read so far, for the next token of
    the text before.
    """
    for module in model.modules():
        if type(module).__module__.startswith(_FUSED):
            for counter in ("last_forward_num_tokens", "start_pos"):
                if hasattr(module, counter):
                    setattr(module, counter, 0)

"""How long OpenMP's threads spin at a barrier before they sleep; read by the runtime once, when torch is loaded.

Threads that wait for a partner spin by default for milliseconds. Beside other work the partner is often not running,
and a step of the model takes ten times as long as it would on one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Container, MutableMapping

SPIN_VARIABLE = "GOMP_SPINCOUNT"
SPIN_COUNT = "1000"
"""What GNU's OpenMP chooses by itself where there are more threads than cores (its manual, "GOMP_SPINCOUNT")."""

_CHOSEN_BY_THE_USER = (SPIN_VARIABLE, "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def limit_spinning(environment: MutableMapping[str, str], loaded: Container[str] = sys.modules) -> None:
    """Set a short spin count, unless the user has set one or torch has been loaded already.

    Args:
        environment: The variables of this process, such as ``os.environ``; processes started later inherit them.
        loaded: Names of the modules that are loaded.
    """
    if "torch" not in loaded and not any(name in environment for name in _CHOSEN_BY_THE_USER):
        environment[SPIN_VARIABLE] = SPIN_COUNT

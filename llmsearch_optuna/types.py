"""Types that several rooms share."""

from __future__ import annotations

from typing import Literal

Direction = Literal["maximize", "minimize"]


Bounds = tuple[float, float]

"""Which requests run in the next step: limits of the batch, and the reason where a row goes through generate."""

from __future__ import annotations

SHARED_PREFIX_TOKENS = 16


PREFILL_TOKENS = {"cpu": 1024, "cuda": 8192, "mps": 2048}


MOST_ROWS = {"cpu": 64, "cuda": 256, "mps": 64}


CAUTIOUS_ROWS = 16

"""A small Ray cluster of several nodes on this machine; nothing leaves it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

# Read when the first node starts; no report of usage, and no reserved memory that a small machine lacks.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 1024**2}
# A dead node is found within two seconds instead of half a minute.
WATCHFUL = {"_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 3}}


@contextlib.contextmanager
def cluster(nodes: int = 1, **more: Any) -> Iterator[Any]:
    """A cluster with so many nodes, the head among them; skips the test where Ray is not installed."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=NODE | WATCHFUL | more)
    try:
        for _ in range(nodes - 1):
            made.add_node(**NODE | more)
        yield made
    finally:
        made.shutdown()

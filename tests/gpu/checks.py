"""The checks by name, in the order of what has to be known first. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass

START = "@@start "
RESULT = "@@result "
"""How a child begins the lines that its parent reads."""


@dataclass(frozen=True)
class Check:
    """Where a check is (a function of this name in `tests.gpu.<module>`), and seconds after which it is killed."""

    module: str
    seconds: int


CHECKS = {
    "environment": Check("check_environment", 30),
    "static_steps": Check("check_tokens", 60),
    "greedy_parity_fp32": Check("check_tokens", 60),
    "device_picking": Check("check_tokens", 60),
    "out_of_memory": Check("check_memory", 60),
    "step_1b": Check("check_step", 60),
    "speed_1b": Check("check_speed", 120),
    "rows_1b": Check("check_speed", 90),
    "batch_independence_fp32": Check("check_tokens", 60),
    "two_devices": Check("check_tokens", 60),
    "beams_parity_fp32": Check("check_tokens", 60),
    "host_memory": Check("check_memory", 60),
    "step_8b": Check("check_step", 90),
    "sdpa_new_shapes": Check("check_environment", 40),
    "bf16_share": Check("check_tokens", 45),
    "host_memory_lagging_stream": Check("check_memory", 60),
    "transfers": Check("check_environment", 20),
    "nvml": Check("check_environment", 20),
}

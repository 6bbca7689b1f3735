"""Where the persistent decode step runs, and why a step was given up."""

from __future__ import annotations

import os

import jax

from xla_ops import _library

WAIT_LIMIT = 2_000_000
"""Microseconds that a part of a step waits for another before the step is given up."""

COMPUTE_CAPABILITY = "9.0"
"""The compute capability of the GPUs that the kernel is for."""

# What a status says, as in csrc/ops/decode_step.h and decode_step_block.cuh.
PHASES = ("qkv", "partials", "attended", "attention_out", "up", "down")
BLOCK_WAITS = {
    1 << 20: "for a tile",
    (1 << 20) + 1: "for room for a tile",
    (1 << 20) + 2: "for sums",
    (1 << 20) + 3: "for the sums of a norm",
    (1 << 20) + 4: "for warps that were a layer behind",
}


def decode_step_problem(device: jax.Device) -> str | None:
    """Why ``device`` cannot run the kernel, None if it can."""
    if device.platform != "gpu":
        return f"it runs on GPUs of compute capability {COMPUTE_CAPABILITY}, this is no GPU"
    if "cuda" not in _library.libraries:
        return _library.problems["cuda"]
    if device.compute_capability != COMPUTE_CAPABILITY:
        return (
            f"it runs on GPUs of compute capability {COMPUTE_CAPABILITY}, "
            f"this one has {device.compute_capability}"
        )
    return None


def decode_step_failure(status: int) -> str | None:
    """What a step with ``status`` waited for when it was given up, None if it was not.

    Args:
        status: of ``decode_step``.
    """
    if status == 0:
        return None
    if status - 1 in BLOCK_WAITS:
        return f"it waited too long {BLOCK_WAITS[status - 1]}"
    layer, phase = divmod(status - 1, len(PHASES))
    return f"it waited too long in layer {layer}, phase {PHASES[phase]}"


def wait_limit() -> int:
    """Microseconds from EET_JAX_WAIT_LIMIT, ``WAIT_LIMIT`` by default.

    Raises:
        ValueError: if it is no count.
    """
    text = os.environ.get("EET_JAX_WAIT_LIMIT", str(WAIT_LIMIT))
    if not text.isdecimal() or int(text) >= 1 << 31:
        raise ValueError(f"EET_JAX_WAIT_LIMIT must be an int from 0 to 2**31 - 1, got {text!r}")
    return int(text)

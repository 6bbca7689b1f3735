"""Counts XLA compilations, so that a test can prove that a call compiled nothing."""

from __future__ import annotations

from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_count = 0


def compile_count() -> int:
    """XLA compilations of this process since ``eet_jax`` was imported, whoever caused them."""
    return _count


def _listen(event: str, duration_secs: float, **kwargs: Any) -> None:
    del duration_secs, kwargs
    global _count
    _count += event == _EVENT


jax.monitoring.register_event_duration_secs_listener(_listen)

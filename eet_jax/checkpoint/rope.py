"""Rotary options, as ``rope_theta`` and ``rope_scaling`` or, newer, as ``rope_parameters``."""

from __future__ import annotations

import math
from typing import Any

from eet_jax.checkpoint.options import Options
from eet_jax.config import DecoderConfig, RotaryScaling

_DEFAULT_THETA = 10000.0


def read_rope(options: Options, max_seq_len: int) -> dict[str, Any]:
    """``rope_theta`` and ``rotary_scaling`` of the DecoderConfig that ``options`` describes."""
    rope = _rope_options(options)
    theta = rope.number("rope_theta", options.number("rope_theta", _DEFAULT_THETA))
    if theta <= 1.0:
        raise rope.error(f"rope_theta must be above 1, got {theta}")
    return {"rope_theta": theta, "rotary_scaling": _read_scaling(options, rope, max_seq_len)}


def _rope_options(options: Options) -> Options:
    key = "rope_scaling" if options.values.get("rope_scaling") else "rope_parameters"
    values = options.values.get(key)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise options.error(f"{key} must be an object, got {values!r}")
    rope = Options(values, f"{options.path}: {key}")
    nested = [name for name, value in values.items() if isinstance(value, dict)]
    if nested:
        raise rope.error(f"parameters per layer type ({', '.join(nested)}) are not supported")
    if values.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise rope.unsupported("partial_rotary_factor", "1.0")
    return rope


def _read_scaling(options: Options, rope: Options, max_seq_len: int) -> RotaryScaling | None:
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        supported = "default, linear, llama3 and yarn"
        raise rope.error(f"rope_type={kind!r} is not supported, only {supported}")
    if kind == "linear":
        return RotaryScaling("linear", _required(rope, "factor"))
    inside = rope.integer("original_max_position_embeddings", max_seq_len)
    original = options.integer("original_max_position_embeddings", inside)
    if kind == "llama3":
        low, high = _required(rope, "low_freq_factor"), _required(rope, "high_freq_factor")
        if high <= low:
            raise rope.error(f"high_freq_factor must be above {low}, the low one, got {high}")
        factor = _required(rope, "factor")
        return RotaryScaling("llama3", factor, original, low_freq_factor=low, high_freq_factor=high)
    return _read_yarn(rope, original, max_seq_len)


def _read_yarn(rope: Options, original: int, max_seq_len: int) -> RotaryScaling:
    present = Options({k: v for k, v in rope.values.items() if v is not None}, rope.path)
    if "factor" in rope.values:
        factor = present.number("factor", max_seq_len / original)
    else:
        factor = _required(rope, "factor")
    # Zero counts as unset in all of these.
    mscale, mscale_all = present.number("mscale", 0.0), present.number("mscale_all_dim", 0.0)
    inferred = _magnitude(factor)
    if mscale and mscale_all:
        inferred = _magnitude(factor, mscale) / _magnitude(factor, mscale_all)
    return RotaryScaling(
        "yarn",
        factor,
        original,
        beta_fast=present.number("beta_fast", 32.0) or 32.0,
        beta_slow=present.number("beta_slow", 1.0) or 1.0,
        attention_factor=present.number("attention_factor", inferred),
        truncate=present.flag("truncate", True),
    )


def _magnitude(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def _required(rope: Options, key: str) -> float:
    if key not in rope.values:
        raise rope.error(f"{key} is missing")
    return rope.number(key, 0.0)


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """The entries of ``config`` in the older spelling, which old and new readers understand."""
    return {"rope_theta": config.rope_theta, "rope_scaling": _write_scaling(config.rotary_scaling)}


def _write_scaling(scaling: RotaryScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    entries: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        entries["original_max_position_embeddings"] = scaling.original_max_seq_len
    if scaling.kind == "llama3":
        entries["low_freq_factor"] = scaling.low_freq_factor
        entries["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "yarn":
        entries["beta_fast"] = scaling.beta_fast
        entries["beta_slow"] = scaling.beta_slow
        entries["attention_factor"] = scaling.attention_factor
        entries["truncate"] = scaling.truncate
    return entries

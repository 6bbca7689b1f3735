"""The supported families, and the choice of one for a config."""

from __future__ import annotations

import dataclasses
from typing import Any

from eet_jax.checkpoint.family import Family
from eet_jax.checkpoint.gpt2 import GPT2
from eet_jax.checkpoint.llama import LLAMA
from eet_jax.checkpoint.mistral import MISTRAL
from eet_jax.checkpoint.options import ConfigError, Options
from eet_jax.checkpoint.qwen2 import QWEN2
from eet_jax.checkpoint.qwen3 import QWEN3
from eet_jax.checkpoint.windows import merged
from eet_jax.config import DecoderConfig, RotaryScaling

FAMILIES = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2)}


def read_config(options: Options) -> tuple[Family, DecoderConfig]:
    """The family and the DecoderConfig, in float32, of a ``config.json``.

    Raises:
        ValueError: for an unknown model type or an option without support.
    """
    model_type = options.values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise options.unsupported("model_type", ", ".join(sorted(FAMILIES)))
    family = FAMILIES[model_type]
    options.refuse_unsupported((family.architecture, family.base_architecture))
    try:
        return family, family.read(options)
    except ConfigError:
        raise
    except ValueError as error:
        raise options.error(str(error)) from error


def write_config(config: DecoderConfig) -> tuple[Family, dict[str, Any]]:
    """The first family that can express ``config``, and the entries of its ``config.json``.

    Raises:
        ValueError: naming the fields that the closest family cannot express.
    """
    failures: dict[str, list[str]] = {}
    for family in FAMILIES.values():
        try:
            entries = family.write(config)
            lost = _lost_fields(config, family.read(Options(entries, "config.json")))
        except ValueError:
            continue  # sizes that this family does not allow
        if not lost:
            names = {"architectures": [family.architecture], "model_type": family.model_type}
            return family, {**names, **entries, "torch_dtype": config.param_dtype}
        failures[family.model_type] = lost
    closest = min(failures, key=lambda name: len(failures[name]))
    named = ", ".join(f"{name}={getattr(config, name)!r}" for name in failures[closest])
    raise ValueError(f"no checkpoint family can express this config; {closest} lacks {named}")


def _lost_fields(config: DecoderConfig, returned: DecoderConfig) -> list[str]:
    """Fields of ``config`` that came back different from what a family wrote."""
    want, got = _canonical(config), _canonical(returned)
    names = (field.name for field in dataclasses.fields(config))
    return [name for name in names if getattr(want, name) != getattr(got, name)]


def _canonical(config: DecoderConfig) -> DecoderConfig:
    """The same computation, written one way; dtypes are no matter of the family."""
    rotary = config.positions == "rotary"
    default_scale = config.head_dim**-0.5
    return config.replace(
        sliding_window=merged([config.window(i) for i in range(config.num_layers)]),
        attention_scale=None if config.score_scale == default_scale else config.attention_scale,
        rope_theta=config.rope_theta if rotary else 10000.0,
        rotary_dim=config.rotary_size if rotary else None,
        rotary_scaling=_canonical_scaling(config.rotary_scaling) if rotary else None,
        dtype="float32",
        param_dtype="float32",
    )


_SCALING_FIELDS = {
    "linear": ("factor",),
    "llama3": ("factor", "original_max_seq_len", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_max_seq_len", "beta_fast", "beta_slow", "attention_factor",
             "truncate"),
}  # fmt: skip


def _canonical_scaling(scaling: RotaryScaling | None) -> RotaryScaling | None:
    if scaling is None:
        return None
    used = {name: getattr(scaling, name) for name in _SCALING_FIELDS[scaling.kind]}
    return RotaryScaling(scaling.kind, **used)

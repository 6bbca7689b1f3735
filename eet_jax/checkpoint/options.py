"""The entries of a Hugging Face ``config.json``, read with their types checked."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

from eet_jax.config import Activation

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
}
ACTIVATION_NAMES: dict[Activation, str] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
}

# Options of any family that change the computation, each with the values that leave it unchanged.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "compression_config": (None,),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
    "is_causal": (None, True),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "partial_rotary_factor": (None, 1.0),
}


class ConfigError(ValueError):
    """A ValueError that names the file already."""


class Options:
    """Typed access to config entries; every error names the file and the entry."""

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self.values = values
        self.path = path

    def error(self, message: str) -> ConfigError:
        """An error about this file."""
        return ConfigError(f"{self.path}: {message}")

    def unsupported(self, key: str, supported: str) -> ConfigError:
        """An error that refuses the value of ``key``."""
        return self.error(f"{key}={self.values.get(key)!r} is not supported, only {supported}")

    def integer(self, key: str, missing: int) -> int:
        """An int entry of 64 bits, or ``missing``."""
        value = self.values.get(key, missing)
        if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
            raise self.error(f"{key} must be an integer, got {value!r}")
        return value

    def optional_integer(self, key: str, missing: int | None = None) -> int | None:
        """An int entry that may be null, or ``missing``."""
        if self.values.get(key, missing) is None:
            return None
        return self.integer(key, 0 if missing is None else missing)

    def number(self, key: str, missing: float) -> float:
        """A finite number, or ``missing``."""
        value = self.values.get(key, missing)
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise self.error(f"{key} must be a finite number, got {value!r}")
        return float(value)

    def flag(self, key: str, missing: bool) -> bool:
        """A bool entry, or ``missing``."""
        value = self.values.get(key, missing)
        if type(value) is not bool:
            raise self.error(f"{key} must be true or false, got {value!r}")
        return value

    def names(self, key: str) -> list[str] | None:
        """A list of strings, or None where the entry is null or missing."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.error(f"{key} must be a list of strings, got {value!r}")
        return value

    def activation(self, key: str, missing: str) -> Activation:
        """The activation named by ``key``."""
        value = self.values.get(key, missing)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self.error(f"{key}={value!r} is not supported, only {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def refuse_unsupported(self, architectures: Collection[str]) -> None:
        """Raises for options no family supports, and for architectures with another head."""
        for key, neutral in _NEUTRAL.items():
            value = self.values.get(key)
            if value not in neutral:
                raise self.error(f"{key}={value!r} is not supported")
        if any(name not in architectures for name in self.names("architectures") or []):
            raise self.unsupported("architectures", " or ".join(architectures))

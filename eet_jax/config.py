"""What differs between decoder families, as one frozen, hashable description."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any, Literal

import numpy as np

DTYPES = ("float32", "bfloat16", "float16")

Norm = Literal["rms", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "quick_gelu"]
Positions = Literal["rotary", "learned", "alibi", "none"]
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
          "num_kv_heads", "head_dim", "max_seq_len")  # fmt: skip
_NUMBERS = ("norm_eps", "rope_theta", "embedding_scale")
_OPTIONAL_NUMBERS = ("attention_scale", "attention_soft_cap", "logit_soft_cap")
_SWITCHES = ("gated_mlp", "qkv_bias", "output_bias", "mlp_bias", "qk_norm", "parallel_residual",
             "tie_word_embeddings")  # fmt: skip
_CHOICES = {
    "norm": ("rms", "layer"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu", "quick_gelu"),
    "positions": ("rotary", "learned", "alibi", "none"),
}


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """How rotary frequencies are stretched beyond the trained context.

    ``kind`` is "linear" (positions divided by ``factor``), "llama3" (low frequencies divided by
    ``factor``, high ones kept, a ramp between) or "yarn" (ramp between ``beta_fast`` and
    ``beta_slow`` rotations, and the table multiplied by ``attention_factor``).
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_seq_len: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3", "yarn"):
            raise ValueError(f"kind must be linear, llama3 or yarn, got {self.kind!r}")
        if not 1.0 <= self.factor < math.inf:
            raise ValueError(f"factor must be at least 1, got {self.factor}")
        if self.kind != "linear" and self.original_max_seq_len < 1:
            raise ValueError(
                f"{self.kind} needs original_max_seq_len, got {self.original_max_seq_len}"
            )


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape and the options of a decoder; without options, a Llama-like one.

    Args:
        vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim:
            sizes; ``hidden_size`` and ``head_dim`` are multiples of 8, ``head_dim`` is at most 256
            and ``num_heads % num_kv_heads == 0``.
        max_seq_len: the longest sequence, prompt and generated tokens together.
        norm: "rms" (scale only) or "layer" (scale and bias), with ``norm_eps``.
        activation: of the feed-forward; "gelu" is exact, "gelu_tanh" the approximation.
        gated_mlp: ``down(activation(gate(x)) * up(x))`` rather than ``down(activation(up(x)))``.
        qkv_bias, output_bias, mlp_bias: whether those projections have biases.
        positions: "rotary" (with ``rope_theta``, ``rotary_dim`` of each head's dimensions, all by
            default, and ``rotary_scaling``), "learned" (a table of max_seq_len rows), "alibi" or
            "none".
        qk_norm: RMS norm over each head of q and k before rotation.
        sliding_window: keys visible to a query, itself included: one int for all layers, a tuple
            with an int or None per layer, or None for all keys.
        attention_scale: multiplies the scores, `1 / sqrt(head_dim)` by default.
        attention_soft_cap, logit_soft_cap: `x -> cap * tanh(x / cap)`, None for none.
        parallel_residual: attention and feed-forward both read the layer's input.
        embedding_scale: multiplies token embeddings.
        tie_word_embeddings: the output head is the embedding table.
        dtype: of computation and cache.
        param_dtype: of stored parameters.

    Raises:
        ValueError: for sizes or options outside the above, with expected and got.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_seq_len: int
    norm: Norm = "rms"
    norm_eps: float = 1e-6
    activation: Activation = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    positions: Positions = "rotary"
    rope_theta: float = 10000.0
    rotary_dim: int | None = None
    rotary_scaling: RotaryScaling | None = None
    qk_norm: bool = False
    sliding_window: int | tuple[int | None, ...] | None = None
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    parallel_residual: bool = False
    embedding_scale: float = 1.0
    tie_word_embeddings: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("dtype", "param_dtype"):
            object.__setattr__(self, name, dtype_name(name, getattr(self, name)))
        self._check_types()
        self._check_sizes()
        self._check_numbers()
        self._check_options()

    def _check_types(self) -> None:
        """Numbers of numpy and JAX become Python's, so that configs are equal and hashable."""
        for name in _SIZES:
            object.__setattr__(self, name, as_int(name, getattr(self, name)))
        for name in _NUMBERS:
            object.__setattr__(self, name, _as_float(name, getattr(self, name)))
        for name in _OPTIONAL_NUMBERS:
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else _as_float(name, value))
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.rotary_dim is not None:
            object.__setattr__(self, "rotary_dim", as_int("rotary_dim", self.rotary_dim))
        windows = self.sliding_window
        if isinstance(windows, (list, tuple)):
            layers = [None if w is None else as_int("sliding_window", w) for w in windows]
            object.__setattr__(self, "sliding_window", tuple(layers))
        elif windows is not None:
            object.__setattr__(self, "sliding_window", as_int("sliding_window", windows))
        if not isinstance(self.rotary_scaling, RotaryScaling | None):
            raise TypeError(
                f"rotary_scaling must be a RotaryScaling or None, got {self.rotary_scaling!r}"
            )

    def _check_sizes(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % 8:
            raise ValueError(f"hidden_size must be a multiple of 8, got {self.hidden_size}")
        if self.head_dim % 8 or self.head_dim > 256:
            raise ValueError(f"head_dim must be a multiple of 8 up to 256, got {self.head_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, "
                f"got {self.num_heads} and {self.num_kv_heads}"
            )

    def _check_numbers(self) -> None:
        for name in _NUMBERS:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in _OPTIONAL_NUMBERS:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive or None, got {value}")

    def _check_options(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        rotary_dim = self.head_dim if self.rotary_dim is None else self.rotary_dim
        if rotary_dim % 2 or not 0 < rotary_dim <= self.head_dim:
            raise ValueError(
                f"rotary_dim must be even and at most head_dim {self.head_dim}, got {rotary_dim}"
            )
        windows = self.sliding_window
        if isinstance(windows, tuple) and len(windows) != self.num_layers:
            raise ValueError(
                f"sliding_window must have one entry per layer ({self.num_layers}), "
                f"got {len(windows)}"
            )
        for window in windows if isinstance(windows, tuple) else (windows,):
            if window is not None and window < 1:
                raise ValueError(f"sliding_window must be at least 1, got {window}")

    def window(self, layer: int) -> int | None:
        """Keys visible to a query of ``layer``, or None for all."""
        if isinstance(self.sliding_window, tuple):
            return self.sliding_window[layer]
        return self.sliding_window

    @property
    def rotary_size(self) -> int:
        """Rotated dimensions of each head; 0 without rotary positions."""
        if self.positions != "rotary":
            return 0
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def score_scale(self) -> float:
        """The factor of the attention scores."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def per_device(self, devices: int) -> DecoderConfig:
        """What each of ``devices`` that share heads and feed-forward columns computes.

        Where KV heads are fewer than devices, each device has one, and some have the same.

        Raises:
            ValueError: unless ``devices`` divides heads and ``intermediate_size``, and is a divisor
                or a multiple of the KV heads.
        """
        heads, kv_heads, columns = self.num_heads, self.num_kv_heads, self.intermediate_size
        if (
            devices < 1
            or heads % devices
            or columns % devices
            or (kv_heads % devices and devices % kv_heads)
        ):
            raise ValueError(
                f"devices must divide {heads} heads and intermediate_size {columns}, and be a "
                f"divisor or a multiple of {kv_heads} KV heads, got {devices}"
            )
        return self.replace(
            num_heads=heads // devices,
            num_kv_heads=max(kv_heads // devices, 1),
            intermediate_size=columns // devices,
        )

    def replace(self, **changes: object) -> DecoderConfig:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def as_int(name: str, value: Any) -> int:
    """``value``, an int of any kind, as Python's; raises TypeError for anything else."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an int, got {value!r}") from error


def _as_float(name: str, value: Any) -> float:
    if isinstance(value, (int, float)):
        return value
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except TypeError as error:
        raise TypeError(f"{name} must be a number, got {value!r}") from error


def dtype_name(name: str, dtype: object) -> str:
    """The canonical name of a supported floating dtype.

    Raises:
        TypeError: if ``dtype`` is none of float32, bfloat16 and float16.
    """
    try:
        found = np.dtype(dtype).name  # type: ignore[call-overload]
    except TypeError:
        found = repr(dtype)
    if found not in DTYPES:
        raise TypeError(f"{name} must be one of {DTYPES}, got {found}")
    return found

"""Sliding windows: of every layer (Mistral) or of some layers (Qwen2 and Qwen3).

Hugging Face counts as we do: a window of w keys includes the query's own.
"""

from __future__ import annotations

from typing import Any

from eet_jax.checkpoint.options import Options
from eet_jax.config import DecoderConfig

_MAX_LAYERS = 1 << 16  # a file may claim as many as fill the memory with their windows
_FULL, _SLIDING = "full_attention", "sliding_attention"


def check_uniform(options: Options, window: int | None) -> None:
    """Raises if ``layer_types`` contradicts one ``window`` for all layers."""
    expected = _FULL if window is None else _SLIDING
    if any(kind != expected for kind in options.names("layer_types") or []):
        raise options.unsupported("layer_types", f"{expected} with sliding_window={window}")


def read_windows(options: Options, num_layers: int) -> tuple[int | None, ...] | int | None:
    """The window of each layer, from ``use_sliding_window`` and the entries beside it."""
    if num_layers > _MAX_LAYERS:
        raise options.error(f"num_hidden_layers must be at most {_MAX_LAYERS}, got {num_layers}")
    used = options.flag("use_sliding_window", False)
    window = options.optional_integer("sliding_window", 4096) if used else None
    first = options.integer("max_window_layers", 28)
    kinds = options.names("layer_types")
    if kinds is None and window is None:
        return None
    if kinds is None:
        kinds = [_FULL if i < first else _SLIDING for i in range(num_layers)]
    if len(kinds) != num_layers:
        raise options.error(f"layer_types must have {num_layers} entries, got {len(kinds)}")
    if any(kind not in (_FULL, _SLIDING) for kind in kinds):
        raise options.unsupported("layer_types", f"{_FULL} and {_SLIDING}")
    if window is None and _SLIDING in kinds:
        raise options.error(f"layer_types has {_SLIDING}, but no sliding window is in use")
    return merged([window if kind == _SLIDING else None for kind in kinds])


def merged(windows: list[int | None]) -> tuple[int | None, ...] | int | None:
    """One window where all layers have the same, else one per layer."""
    return windows[0] if windows and len(set(windows)) == 1 else tuple(windows)


def write_windows(config: DecoderConfig) -> dict[str, Any]:
    """The entries that ``read_windows`` reads, as far as one size of window can express them."""
    windows = [config.window(layer) for layer in range(config.num_layers)]
    sizes = [window for window in windows if window is not None]
    return {
        "use_sliding_window": bool(sizes),
        "sliding_window": sizes[0] if sizes else None,
        "layer_types": [_FULL if window is None else _SLIDING for window in windows],
    }

"""The rows of ``ops.py``, except attention in prefill."""

from __future__ import annotations

from typing import Any

from block_rows import attention_block_row
from op_rows import (
    EVERYWHERE,
    HIDDEN_SIZES,
    Row,
    decode_attention_row,
    embedding_row,
    kv_append_row,
    linear_row,
    mlp_row,
    norm_row,
    rotary_row,
)

_BFLOAT16: dict[str, Any] = {"platforms": ("cpu",)}
_FLOAT32: dict[str, Any] = {"platforms": ("cpu",), "dtype": "float32"}
_ON_CPU = (_BFLOAT16, _FLOAT32)

ROWS: tuple[Row, ...] = (
    *(norm_row(op, hidden) for op in ("rms_norm", "layer_norm") for hidden in HIDDEN_SIZES),
    rotary_row(32, 128),
    embedding_row(128256, 4096),
    kv_append_row(32768, 8, 128),
    linear_row(1, 28672, 4096, platforms=EVERYWHERE),
    linear_row(1, 28672, 4096, **_FLOAT32),
    *(linear_row(rows, 28672, 4096) for rows in (16, 64, 4096)),
    *(linear_row(rows, 4096, 14336) for rows in (1, 16, 64, 4096)),
    *(linear_row(rows, 128256, 4096) for rows in (1, 64)),
    linear_row(4096, 49152, 12288, activation="gelu_tanh"),
    *(linear_row(512, 4096, 1024, **on) for on in _ON_CPU),
    *(mlp_row(rows, 4096, 14336) for rows in (1, 16, 4096)),
    mlp_row(4096, 12288, 49152, gated=False),
    *(mlp_row(512, 1024, 3072, **on) for on in _ON_CPU),
    *(attention_block_row(*prompts, 4096, 32, 8, 128) for prompts in ((32, 128), (1, 4096))),
    *(decode_attention_row(1, context, 32, 8, 128) for context in (32768, 131072)),
    *(decode_attention_row(64, context, 32, 8, 128) for context in (1024, 4096)),
    *(decode_attention_row(batch, 32768, 32, 8, 64) for batch in (1, 16)),
    *(decode_attention_row(1, 32768, 16, 8, 128, **on) for on in _ON_CPU),
)

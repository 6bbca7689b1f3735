"""The table of the page on memory, computed by ``eet_jax.plan`` so that it cannot go stale."""

from __future__ import annotations

import shapes

import eet_jax

ROWS = (
    ("GPT-2 124M", "gpt2-124m", 1, 1024),
    ("Qwen3-0.6B", "qwen3-0.6b", 1, 32768),
    ("Llama-3.2-1B", "llama-3.2-1b", 1, 131072),
    ("Llama-3.2-1B", "llama-3.2-1b", 16, 8192),
    ("Llama-3-8B", "llama-3-8b", 1, 8192),
    ("Llama-3-8B", "llama-3-8b", 1, 131072),
    ("Llama-3-8B", "llama-3-8b", 16, 8192),
)
"""Name, config in benchmarks/shapes.py, batch and max_seq_len"""

_HEADER = (
    "| model | batch | row | weights | cache | activations | chunk | all |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|\n"
)


def markdown() -> str:
    """A row for each of ``ROWS``, in bfloat16 and with the default budget."""
    return _HEADER + "".join(_row(*row) for row in ROWS)


def _row(name: str, model: str, batch: int, max_seq_len: int) -> str:
    config = shapes.MODELS[model].replace(dtype="bfloat16")
    plan = eet_jax.plan(config, batch, max_seq_len)
    parts = (plan.weight_bytes, plan.kv_bytes, plan.activation_bytes)
    weights, cache, activations, peak = map(size, (*parts, plan.peak_bytes))
    return (
        f"| {name} | {batch} | {max_seq_len:,} | {weights} | {cache} | {activations} "
        f"| {plan.chunk_tokens:,} | {peak} |\n"
    )


def size(count: int) -> str:
    """Bytes in the unit that suits."""
    number = f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
    return number.replace(" ", "\N{NO-BREAK SPACE}")

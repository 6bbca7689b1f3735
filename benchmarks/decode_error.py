"""The error of decode logits against a float32 reference, beside that of pure JAX.

All three decode the same random tokens from the first one on, with the same weights: ours and pure
JAX in the dtype asked for, the plain JAX reference in float32.

python benchmarks/decode_error.py --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pure_jax
import pure_jax_decode
from pure_jax import Form
from random_model import random_params
from shapes import MODELS

import eet_jax
from eet_jax import DecoderConfig
from eet_jax.params import Params

TARGET = 1.2
"""The most that our error may be, as a multiple of pure JAX's."""

Step = Callable[[np.ndarray], jax.Array]
"""From tokens [batch] to logits [batch, vocab]; remembers what went before"""


def main(argv: Sequence[str] | None = None, models: Mapping[str, DecoderConfig] = MODELS) -> None:
    """Measures every combination of the options."""
    args = parse_args(argv, models)
    found: list[dict[str, Any]] = []
    for name, dtype, batch in itertools.product(args.models, args.dtypes, args.batches):
        layers = min(args.layers, models[name].num_layers)
        config = models[name].replace(num_layers=layers, dtype=dtype, param_dtype=dtype)
        case = {"model": name, "layers": layers, "dtype": dtype, "batch": batch}
        found.append(case | {"tokens": args.tokens} | errors(config, batch, args.tokens))
        print(json.dumps(found[-1]), flush=True)
        harness.write(args, found)
        jax.clear_caches()  # programs hold device memory too
    print_table(found)


def parse_args(argv: Sequence[str] | None, models: Mapping[str, Any]) -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    default = ["llama-3.2-1b", "qwen3-0.6b", "gpt2-124m"]
    parser.add_argument("--models", nargs="+", default=default, choices=models)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--layers", type=int, default=4, help="the first of the model")
    parser.add_argument("--tokens", type=int, default=128, help="of each row")
    return parser.parse_args(argv)


def errors(config: DecoderConfig, batch: int, length: int) -> dict[str, Any]:
    """Root mean squares of both programs' errors over those of the logits, and their ratio."""
    params = random_params(config, seed=0)
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    config32 = config.replace(dtype="float32", param_dtype="float32")
    reference = eet_step(config32, exact, batch, length, "reference")
    programs = {
        "eet_jax": eet_step(config, params, batch, length, "native"),
        "pure_jax": pure_jax_step(config, params, batch, length),
    }
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=(length, batch))
    squares = []
    for column in tokens.astype(np.int32):
        expected = reference(column)
        actual = [step(column) for step in programs.values()]
        squares.append(_squares(expected, actual))
    scale, *found = np.sum([[float(x) for x in row] for row in squares], axis=0)
    relative = dict(zip(programs, np.sqrt(np.asarray(found) / scale).tolist(), strict=True))
    ratio = relative["eet_jax"] / relative["pure_jax"]
    return {**relative, "ratio": round(ratio, 3), "target": TARGET, "met": ratio <= TARGET}


@jax.jit
def _squares(expected: jax.Array, actual: list[jax.Array]) -> list[jax.Array]:
    """Sums of squares of the expected logits, and of each program's errors."""
    return [jnp.sum(expected**2), *(jnp.sum((x - expected) ** 2) for x in actual)]


def eet_step(
    config: DecoderConfig, params: Params, batch: int, length: int, implementation: str
) -> Step:
    """``eet_jax.decode_step`` from an empty state."""
    weights = eet_jax.prepare(config, params)
    state = eet_jax.init_state(config, batch, length)

    def step(tokens: np.ndarray) -> jax.Array:
        nonlocal state
        logits, state = eet_jax.decode_step(
            config, weights, tokens, state, implementation=implementation
        )
        return logits

    return step


def pure_jax_step(config: DecoderConfig, params: Params, batch: int, length: int) -> Step:
    """The baseline's step from an empty cache; products of float32 are exact."""
    form = Form()
    weights = pure_jax.make_weights(config, params, form)
    cache = pure_jax_decode.make_cache(config, batch, length, form)
    positions = itertools.count()

    def step(tokens: np.ndarray) -> jax.Array:
        nonlocal cache
        position = np.int32(next(positions))
        with jax.default_matmul_precision("float32"):  # GPUs would round float32 to TF32
            logits, cache = pure_jax_decode.decode_step(
                config, form, weights, tokens, cache, position
            )
        return logits

    return step


def print_table(found: list[dict[str, Any]]) -> None:
    """A short table, last."""
    headers = ("model", "dtype", "batch", "eet_jax", "pure_jax", "ratio", "met")
    rows = []
    for row in found:
        both = (f"{row['eet_jax']:.2e}", f"{row['pure_jax']:.2e}")
        rows.append((row["model"], row["dtype"], row["batch"], *both, row["ratio"], row["met"]))
    harness.print_table(headers, rows)


if __name__ == "__main__":
    main()

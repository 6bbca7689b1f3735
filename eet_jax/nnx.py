"""The decoder as a Flax NNX module."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from eet_jax import module_call
from eet_jax.config import DecoderConfig
from eet_jax.params import Params, init_params
from eet_jax.state import DecodeState


class Decoder(nnx.Module):
    """A transformer decoder for NNX models: holds the parameters, calls the functional core.

    Args:
        config: what the decoder is; its parameter tree is that of ``eet_jax.params``.
        rngs: initialises the parameters; not needed with ``params``.
        params: an existing tree, as ``eet_jax.from_pretrained`` returns.
        implementation: None or "native" for the kernels, "reference" for plain JAX.

    Raises:
        ValueError: unless one of rngs and params is given.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs | None = None,
        params: Params | None = None,
        implementation: str | None = None,
    ) -> None:
        if (rngs is None) == (params is None):
            raise ValueError("give either rngs or params")
        if params is None:
            assert rngs is not None
            params = init_params(config, rngs.params())
        self.config = config
        self.implementation = implementation
        self.tree = nnx.data(jax.tree.map(nnx.Param, params))

    def params(self) -> Params:
        """The parameter tree as plain arrays, as ``generate`` and ``prepare`` take it."""
        return jax.tree.map(
            lambda leaf: leaf[...], self.tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
        )

    def __call__(
        self,
        tokens: jax.Array | None,
        *,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        state: DecodeState | None = None,
        return_hidden: bool = False,
        logits_dtype: Any = None,
    ) -> Any:
        """As ``eet_jax.Decoder``: logits of every token, or (logits, state) with a state."""
        return module_call.call(
            self.config,
            self.params(),
            tokens,
            attention_mask=attention_mask,
            positions=positions,
            inputs_embeds=inputs_embeds,
            state=state,
            return_hidden=return_hidden,
            logits_dtype=logits_dtype,
            implementation=self.implementation,
        )

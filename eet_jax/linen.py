"""The decoder as a Flax Linen module."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from eet_jax import module_call
from eet_jax.config import DecoderConfig
from eet_jax.params import is_spec, param_specs
from eet_jax.state import DecodeState


class Decoder(nn.Module):
    """A transformer decoder for Flax models: holds the parameters, calls the functional core.

    Args:
        config: what the decoder is; its parameter tree is that of ``eet_jax.params``.
        implementation: None or "native" for the kernels, "reference" for plain JAX.
    """

    config: DecoderConfig
    implementation: str | None = None

    @nn.compact
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
        """Logits of every token.

        Args:
            tokens: `[batch, seq]` int32; None with ``inputs_embeds``.
            attention_mask: `[batch, seq]`, nonzero for real tokens, padded left or right.
            positions: `[batch, seq]` int32, counted from each row's first real token by default;
                not with a state, which knows its positions.
            inputs_embeds: `[batch, seq, hidden]`, in place of the tokens' embeddings.
            state: from ``eet_jax.init_state``; tokens are appended to it. Donate it to your jit.
            return_hidden: return the final norm's output instead of logits.
            logits_dtype: of the logits, float32 by default.

        Returns:
            `[batch, seq, vocab]`, or `([batch, seq, vocab], state)` when a state is given.

        Raises:
            ValueError: if shapes or arguments do not fit.
            TypeError: for tokens that are not ints.
        """
        params = {
            name: _leaf_or_tree(self, name, spec, self.config.param_dtype)
            for name, spec in param_specs(self.config).items()
        }
        return module_call.call(
            self.config,
            params,
            tokens,
            attention_mask=attention_mask,
            positions=positions,
            inputs_embeds=inputs_embeds,
            state=state,
            return_hidden=return_hidden,
            logits_dtype=logits_dtype,
            implementation=self.implementation,
        )


class _Tree(nn.Module):
    """A branch of the parameter tree."""

    specs: Any
    dtype: str

    @nn.compact
    def __call__(self) -> dict[str, Any]:
        return {
            name: _leaf_or_tree(self, name, spec, self.dtype) for name, spec in self.specs.items()
        }


def _leaf_or_tree(module: nn.Module, name: str, spec: Any, dtype: str) -> Any:
    if is_spec(spec):
        return module.param(name, spec.init, spec.shape, dtype)
    return _Tree(specs=spec, dtype=dtype, name=name)()

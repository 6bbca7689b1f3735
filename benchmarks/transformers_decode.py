"""The step of transformers' ``generate`` with a static cache, for comparison; needs torch."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import jax
from measure import timed

from eet_jax import DecoderConfig
from eet_jax.checkpoint.families import write_config

if TYPE_CHECKING:
    import torch

MAX_CONTEXT = 4096
"""Each run has to prefill, and does so slowly."""


def available() -> bool:
    """Whether torch and transformers are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def make_model(config: DecoderConfig) -> torch.nn.Module:
    """A model with random weights on JAX's kind of device, from the ``config.json`` that
    ``save_pretrained`` writes.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity(logging.ERROR)
    torch.compiler.reset()  # what was compiled for the last model holds memory
    if _device() != "cpu":
        torch.cuda.empty_cache()
    _, entries = write_config(config)
    entries |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    with torch.device(_device()):
        described = transformers.AutoConfig.for_model(**entries)
        model = transformers.AutoModelForCausalLM.from_config(
            described, dtype=getattr(torch, config.dtype)
        )
    return model.eval()


class TransformersDecode:
    """``steps`` steps: a generation of so many tokens more than one, less that of one."""

    def __init__(self, model: Any, batch: int, start: int, steps: int) -> None:
        import torch

        self.model, self.steps = model, steps
        shape = (batch, start)
        self.prompt = torch.randint(model.config.vocab_size, shape, device=_device())
        self.seconds()  # the longest first: the static cache is kept for shorter ones

    def seconds(self) -> float:
        """Seconds of all steps."""
        return timed(lambda: self._generate(1 + self.steps)) - timed(lambda: self._generate(1))

    def peak_bytes(self) -> int | None:
        """As torch counts it, on a GPU."""
        import torch

        if _device() == "cpu":
            return None
        torch.cuda.reset_peak_memory_stats()
        self._generate(1 + self.steps)
        return int(torch.cuda.max_memory_allocated())

    def _generate(self, tokens: int) -> None:
        import torch

        out = self.model.generate(
            self.prompt,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            cache_implementation="static",
        )
        if out.shape[1] != self.prompt.shape[1] + tokens:
            raise RuntimeError(f"generate must make {tokens} tokens, got {out.shape}")
        if _device() != "cpu":
            torch.cuda.synchronize()


def _device() -> str:
    return "cpu" if jax.default_backend() == "cpu" else "cuda"

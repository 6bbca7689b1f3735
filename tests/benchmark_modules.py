"""The modules of benchmarks/, and runs of them."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from eet_jax import DecoderConfig

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))


def load(name: str) -> ModuleType:
    """A module of that directory, which is no package."""
    return importlib.import_module(name)


LLAMA = DecoderConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_seq_len=128,
    qk_norm=True,
)
GPT2 = load("shapes").gpt2(vocab_size=96, hidden_size=32, num_layers=2, num_heads=2)
MODELS = {"llama": LLAMA, "gpt2": GPT2}


def run(
    benchmark: ModuleType,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    **others: Any,
) -> Any:
    """The report of a benchmark's main."""
    output = tmp_path / f"{benchmark.__name__}.json"
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{benchmark.__name__}.py"])
    benchmark.main([*options, "--output", str(output)], **others)
    return json.loads(output.read_text())

"""Every example, as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import eet_jax

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(example: str, *arguments: object) -> str:
    """What the example prints; it must end well."""
    command = [sys.executable, str(EXAMPLES / example), *map(str, arguments)]
    done = subprocess.run(
        command,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", output)]


def test_finetune(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Call me Ishmael, said the owl, and went to sea in a pea-green boat.\n" * 3)
    output = run(
        "finetune.py", "--text", text, "--output", tmp_path / "tuned",
        "--steps", 12, "--seq", 24, "--report", 11, "--new-tokens", 8,
    )  # fmt: skip
    first, *_, last = losses(output)
    assert first > 4
    assert last < 1
    decoder, params = eet_jax.from_pretrained(tmp_path / "tuned")
    assert params["embedding"]["embedding"].dtype == np.float32
    llm = eet_jax.LLM(tmp_path / "tuned", dtype="bfloat16")
    assert llm.eos_token_id == [0]
    assert llm.generate("Call me", max_new_tokens=8) in text.read_text()
    assert decoder.config.vocab_size == 4096


def test_flax_model():
    output = run("flax_model.py", "--steps", 60)
    first, *_, last = losses(output)
    assert first > 2
    assert last < 0.5
    assert output.count(" is a ") == 8


def test_ops_in_jax():
    output = run("ops_in_jax.py")
    for op in ("rms_norm", "linear", "mlp", "rotary", "attention"):
        assert re.search(rf"^{op} +(\d\.\de-?\S+ *){{3}}$", output, re.MULTILINE)


def test_sharded_over_eight_devices():
    output = run("sharded.py", "--new-tokens", 4)
    assert "8 devices" in output
    assert "4 greedy tokens are the same: True" in output
    assert "a decode step of 2 layers has {'all-reduce': 4}" in output


def test_a_tiny_model_is_trained(tmp_path):
    """The tokenizer and the training of the model inside the package, on a text made here."""
    words = np.random.default_rng(0).choice(["sea", "owl", "boat", "ship", "whale"], 4000)
    (tmp_path / "corpus.txt").write_text(" ".join(words.tolist()))
    assert "1 documents" in run("tiny_tokenizer.py", tmp_path)
    output = run(
        "train_tiny.py", tmp_path, tmp_path / "model", "--steps", 1, "--batch", 2, "--seq", 16
    )
    assert "step      0  train" in output
    _, params = eet_jax.from_pretrained(tmp_path / "model")
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(params))

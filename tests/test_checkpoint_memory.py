"""Anonymous host memory while a checkpoint of about 200 MB is loaded and saved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from checkpoints import GPT2

from eet_jax.checkpoint import save
from eet_jax.config import DecoderConfig
from eet_jax.params import init_params

MEASURE = """
import sys, threading
import jax, jax.numpy as jnp, numpy as np
from eet_jax.checkpoint import load, save

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def growth(function):
    peak, done, before = [0], threading.Event(), anonymous()
    def watch():
        while not done.wait(0.0005):
            peak[0] = max(peak[0], anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    result = function()
    peak[0] = max(peak[0], anonymous())
    done.set(); thread.join()
    return result, peak[0] - before

np.asarray(jnp.ones((8, 8), jnp.bfloat16)[1])
(config, params), loading = growth(lambda: load(sys.argv[1], dtype=sys.argv[3]))
_, saving = growth(lambda: save(sys.argv[2], config, params))
sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
allowed = sum(sizes) if jax.default_backend() == "cpu" else max(sizes)
print(loading / allowed, saving / sum(sizes))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads RssAnon from /proc")
@pytest.mark.parametrize(
    ("fields", "dtype"), [({}, "bfloat16"), (GPT2, "float16")], ids=["llama", "gpt2"]
)
def test_memory(fields: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    big = {"vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 4096, "num_layers": 6,
           "num_heads": 16, "num_kv_heads": 16, "head_dim": 64, "max_seq_len": 64}  # fmt: skip
    config = DecoderConfig(**(fields | big), param_dtype="bfloat16")
    small = init_params(config.replace(num_layers=1), jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.repeat(leaf, 6, axis=0) if path[0].key == "layers" else leaf, small
    )
    save(tmp_path / "in", config, params)
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "in"), str(tmp_path / "out"), dtype]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    loading, saving = map(float, run.stdout.split())
    assert loading < 1.3
    assert saving < 0.3

"""Any config and any header: loaded, or refused by an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from checkpoints import small_checkpoint
from fuzzing import seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from eet_jax.checkpoint import load

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from((0, -1, 7, 8, 2**31, 2**62, 2**63, 10**30, 10**400, 1e308, "F32", "silu")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner,
                                                                max_size=3),
    max_leaves=6,
)  # fmt: skip


def loads_or_says_why(directory: Path) -> None:
    """Loads, or raises an error of the promised kinds that names the directory."""
    problem = str(directory)
    try:
        load(directory)
    except (ValueError, TypeError, FileNotFoundError) as error:
        problem = str(error)
    assert str(directory) in problem


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint of each family."""
    made = {}
    for family in checkpoints.FAMILIES:
        made[family] = tmp_path_factory.mktemp(family)
        fields = checkpoints.GPT2 | {"tie_word_embeddings": True} if family == "gpt2" else {}
        small_checkpoint(made[family], **fields)
        checkpoints.edit_config(made[family], model_type=family, architectures=None)
    return made


CONFIG_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "hidden_act",
    "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings", "sliding_window",
    "use_sliding_window", "max_window_layers", "layer_types", "attention_bias", "mlp_bias",
    "torch_dtype", "dtype", "model_type", "architectures", "n_embd", "n_layer", "n_head",
    "n_inner", "n_positions", "layer_norm_epsilon", "activation_function", "quantization_config",
)  # fmt: skip
ROPE_KEYS = ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
             "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate",
             "rope_theta")  # fmt: skip
rope = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(("linear", "llama3", "yarn"))},
    optional=dict.fromkeys(ROPE_KEYS, json_values),
)
entries = st.dictionaries(st.sampled_from(CONFIG_KEYS), json_values | rope, min_size=1, max_size=4)


@settings(max_examples=300)
@given(st.sampled_from(checkpoints.FAMILIES), entries)
def test_any_config(directories: dict[str, Path], family: str, entries: dict[str, Any]) -> None:
    path = directories[family] / "config.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | entries))
        loads_or_says_why(directories[family])
    finally:
        path.write_text(before)


entry = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(("F32", "F16", "I64", "BOOL")) | json_values,
        "shape": st.lists(st.integers(0, 2**64), max_size=40) | json_values,
        "data_offsets": st.lists(st.integers(-2, 2**64), min_size=2, max_size=2) | json_values,
    },
)


@settings(max_examples=200)
@given(seeds, st.dictionaries(st.integers(0, 30), json_values | entry, min_size=1, max_size=3))
def test_any_header(directories: dict[str, Path], seed: int, changes: dict[int, Any]) -> None:
    """Entries of a header replaced, or changed in part."""
    path = directories["llama"] / "model.safetensors"
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:end])
    header = dict(entries)
    names = np.random.default_rng(seed).permutation(list(header))
    for which, change in changes.items():
        name = str(names[which % len(names)])
        header[name] = entries[name] | change if isinstance(change, dict) else change
    text = json.dumps(header).encode()
    try:
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
        loads_or_says_why(directories["llama"])
    finally:
        path.write_bytes(content)

"""The benchmarks run on tiny models, and measure what they say."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eet_jax import DecoderConfig, prepare

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
attention_rows = importlib.import_module("attention_rows")
decode = importlib.import_module("decode")
decode_error = importlib.import_module("decode_error")
loops = importlib.import_module("loops")
ops = importlib.import_module("ops")
pure_jax = importlib.import_module("pure_jax")
random_model = importlib.import_module("random_model")
rows = importlib.import_module("rows")
sample = importlib.import_module("sample")
shapes = importlib.import_module("shapes")
stress = importlib.import_module("stress")
tables = importlib.import_module("tables")

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
GPT2 = shapes.gpt2(vocab_size=96, hidden_size=32, num_layers=2, num_heads=2)
MODELS = {"llama": LLAMA, "gpt2": GPT2}


def run(benchmark, options, monkeypatch, tmp_path, **others):
    """The report of a benchmark's main."""
    output = tmp_path / f"{benchmark.__name__}.json"
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{benchmark.__name__}.py"])
    benchmark.main([*options, "--output", str(output)], **others)
    return json.loads(output.read_text())


def test_decode(monkeypatch, tmp_path, capsys):
    tiny = [rows.Row(name, config, 2, 40) for name, config in MODELS.items()]
    monkeypatch.setattr(pure_jax, "attentions", lambda config: ("einsum", "xla", "cudnn"))
    options = ["--repeats", "2", "--loop-seconds", "0"]
    report = run(decode, options, monkeypatch, tmp_path, rows=tiny)
    assert report["benchmark"] == "decode"
    assert [row["row"] for row in report["results"]] == ["llama/2/40", "gpt2/2/40"]
    for row in report["results"]:
        assert row["eet_jax"]["us"] > 0
        assert row["pure_jax"]["us"] > 0
        assert row["repeats"] == 2
        tried = row["pure_jax"]["attentions_in_one_layer"]
        assert row["pure_jax"]["attention"] == min(("einsum", "xla"), key=tried.__getitem__)
        assert "Error: " in tried["cudnn"]  # it has no float32
        assert "met" not in row  # targets are an H200's
    assert "llama/2/40" in capsys.readouterr().out


def test_decode_selects_rows(monkeypatch, tmp_path):
    tiny = [rows.Row("llama", LLAMA, batch, 40) for batch in (1, 2)]
    options = ["--rows", "llama/2/*", "--no-baseline", "--repeats", "1", "--loop-seconds", "0"]
    report = run(decode, options, monkeypatch, tmp_path, rows=tiny)
    (row,) = report["results"]
    assert row["batch"] == 2
    assert "pure_jax" not in row
    with pytest.raises(SystemExit, match="no row is named gpt2"):
        decode.main(["--rows", "gpt2"], rows=tiny)


def test_the_table_has_its_floors():
    floors = {}
    for row in rows.ROWS:
        row_bytes = rows.bytes_per_step(row.config, row.batch, row.context)
        floors[row.name] = row_bytes / row.share / rows.READ_BANDWIDTH * 1e6
    assert len(floors) == 16
    expected = {
        "llama-3.2-1b/1/1024": 540,
        "llama-3.2-1b/64/1024": 995,
        "llama-3-8b/1/131072": 6937,
        "qwen3-0.6b/1/1024": 282,
        "eet-layer-1024/4/768": 8,
        "eet-layer-12288/4/768": 813,
    }
    for name, floor in expected.items():
        assert floors[name] == pytest.approx(floor, abs=1)


def test_targets():
    row = rows.Row("llama", LLAMA, 1, 40, target_floors=1.5)
    a_microsecond = rows.READ_BANDWIDTH / 1e6
    found = decode.judged(row, 100 * a_microsecond, 165.0)
    assert found == {"floor_us": 100.0, "target_us": 150.0, "of_target": 1.1, "met": False}
    row = rows.Row("llama", LLAMA, 1, 40, target_us=165)
    assert decode.judged(row, 100 * a_microsecond, 165.0)["met"]


def test_a_loop_that_stands_still_is_no_result():
    params = random_model.random_params(LLAMA, seed=0)
    loop = loops.EetLoop(LLAMA, prepare(LLAMA, params), 2, 32, loops.CHUNK_STEPS)
    loop.reset()
    with pytest.raises(RuntimeError, match="must reach"):
        loop.check()
    loop.run()
    loop.check()


def test_all_programs_decode_the_same(monkeypatch, tmp_path):
    options = ["--models", *MODELS, "--batches", "3", "--tokens", "20", "--dtypes", "float32"]
    report = run(decode_error, options, monkeypatch, tmp_path, models=MODELS)
    assert [row["model"] for row in report["results"]] == list(MODELS)
    for row in report["results"]:
        assert 0 < row["eet_jax"] < 1e-5
        assert 0 < row["pure_jax"] < 1e-5


def test_errors_are_those_of_the_dtype(monkeypatch, tmp_path):
    options = ["--models", "llama", "--batches", "2", "--tokens", "20"]
    report = run(decode_error, options, monkeypatch, tmp_path, models=MODELS)
    (row,) = report["results"]
    assert 1e-3 < row["eet_jax"] < 3e-2
    assert 1e-3 < row["pure_jax"] < 3e-2
    assert row["ratio"] == pytest.approx(row["eet_jax"] / row["pure_jax"], abs=1e-3)


def test_stress(monkeypatch, tmp_path):
    options = ["--model", "llama", "--batches", "1", "2", "--contexts", "40", "--steps", "64",
               "--run", "16"]  # fmt: skip
    report = run(stress, options, monkeypatch, tmp_path, models=MODELS)
    for row in report["results"]:
        assert row["equal"]
        assert row["steps"] == 32
        assert row["status"] == 0
    real, calls = stress.outcome, []

    def outcome(loop):
        logits, keys = real(loop)
        calls.append(loop)
        return [logits, keys + (len(calls) == 2)]

    monkeypatch.setattr(stress, "outcome", outcome)
    with pytest.raises(SystemExit, match="not give the bits of the first"):
        run(stress, options, monkeypatch, tmp_path, models=MODELS)


def test_the_baselines_attentions_agree():
    params = random_model.random_params(LLAMA, seed=0)
    weights = pure_jax.make_weights(LLAMA, params)
    caches = {name: pure_jax.make_cache(LLAMA, 3, 24, name) for name in ("einsum", "xla")}
    caches["xla"] = jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2).copy(), caches["einsum"])
    results = [
        pure_jax.decode_step(LLAMA, weights, jnp.arange(3), cache, np.int32(17), name)
        for name, cache in caches.items()
    ]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)


def test_the_baseline_refuses_what_it_lacks():
    config = LLAMA.replace(sliding_window=8)
    with pytest.raises(ValueError, match="does not have"):
        pure_jax.make_weights(config, random_model.random_params(config, seed=0))


def test_sample(monkeypatch, tmp_path):
    options = ["--batches", "1", "3", "--vocab", "128", "--steps", "4", "--repeats", "2"]
    report = run(sample, options, monkeypatch, tmp_path)
    settings = [(row["batch"], row["setting"]) for row in report["results"]]
    assert settings == [(batch, name) for batch in (1, 3) for name in sample.SETTINGS]
    assert "over_greedy_us" not in report["results"][0]
    assert "over_greedy_us" in report["results"][1]


TINY_ATTENTION = (
    attention_rows.Row("dense", (300, 300), 16, heads=4, kv_heads=2, over={"cudnn": 1.05}),
    attention_rows.Row("ragged", (7, 130, 64), 16, heads=4, kv_heads=2, over={"cudnn_padded": 2}),
)


def test_ops(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(attention_rows, "BASELINE", "xla")
    options = ["--repeats", "2", "--loop-seconds", "0"]
    report = run(ops, options, monkeypatch, tmp_path, rows=TINY_ATTENTION)
    dense, ragged = report["results"]
    assert (dense["row"], ragged["row"]) == ("dense", "ragged")
    for row, names in ((dense, ["cudnn"]), (ragged, ["cudnn_lengths", "cudnn_padded"])):
        for name in ("eet_jax", *names):
            assert row[name]["us"] > 0
            assert row[name]["tflops"] == pytest.approx(row["gigaflop"] / row[name]["us"], abs=0.1)
            # What bfloat16 rounds: another order of keys or queries would be off by as much as 1.
            assert 1e-4 < row[name]["error"]["relative"] < 1e-2
            assert row[name]["error"]["largest"] < 3e-2
        assert "met" not in row  # targets are an H200's
    assert dense["gigaflop"] == pytest.approx(2 * 2 * 300**2 * 16 * 4 / 1e9, abs=1e-3)
    assert "cudnn_padded" in capsys.readouterr().out


def test_ops_without_cudnn(monkeypatch, tmp_path):
    if jax.default_backend() != "cpu":
        pytest.skip("there may be cuDNN")
    options = ["--rows", "den*", "--repeats", "1", "--loop-seconds", "0", "--no-errors"]
    report = run(ops, options, monkeypatch, tmp_path, rows=TINY_ATTENTION)
    (row,) = report["results"]
    assert "Error: " in row["cudnn"]["refused"]
    assert "error" not in row["eet_jax"]
    with pytest.raises(SystemExit, match="no row is named"):
        ops.main(["--rows", "none"], rows=TINY_ATTENTION)


def test_ops_targets():
    row = attention_rows.Row("row", (8,), 8, target=630.0, over={"cudnn": 1.05})
    ours = {"tflops": 640.0, "error": {"relative": 1e-3}}
    theirs = {"tflops": 600.0, "error": {"relative": 2e-3}}
    found = ops.judged(row, {"eet_jax": ours, "cudnn": theirs})
    assert found == {"target_tflops": 630.0, "met": True, "as_exact": True}
    found = ops.judged(row, {"eet_jax": ours, "cudnn": theirs | {"tflops": 620.0}})
    assert found["target_tflops"] == 651.0
    assert not found["met"]
    found = ops.judged(row, {"eet_jax": ours, "cudnn": {"refused": "no"}})
    assert found == {"target_tflops": 630.0, "met": True}


def test_the_rows_of_ops_are_the_issues():
    flop = {row.name: row.flop for row in attention_rows.ROWS}
    assert flop["causal/128/32768"] == 2 * 32768**2 * 128 * 32
    assert flop["causal/64/4096/4"] == 4 * 2 * 4096**2 * 64 * 32
    assert len(flop) == 5


def test_tables(tmp_path):
    source = {"device": "GPU", "jax": "0.1", "commit": "abc"}
    row = {"model": "m", "dtype": "bfloat16", "batch": 1, "context": 8, "per": "step"}
    decoded = row | {"eet_jax": {"us": 612.4}, "pure_jax": {"us": 1418.0}, "floor_us": 54.02}
    errors = row | {"eet_jax": 0.011, "pure_jax": 0.012}
    drawn = {"setting": "top_k_top_p", "batch": 64, "eet_jax": {"us": 31.0}}
    rate = {"prompts": [64, 8], "head_dim": 128, "eet_jax": {"tflops": 610.5},
            "cudnn_lengths": {"refused": "x"}, "cudnn_padded": {"tflops": 300.0}}  # fmt: skip
    results = {"decode": decoded, "sample": drawn, "decode_error": errors, "ops": rate}
    text = "# Title\n"
    for name, result in results.items():
        report = {"benchmark": name, "command": f"run {name}", **source, "results": [result]}
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
        text += f"<!-- table: {name}.json -->\nold\n<!-- end of table -->\n"
    readme = tmp_path / "README.md"
    readme.write_text(text)
    options = [str(readme), "--results", str(tmp_path)]
    with pytest.raises(SystemExit, match="out of date"):
        tables.main([*options, "--check"])
    tables.main(options)
    tables.main([*options, "--check"])
    written = readme.read_text()
    assert "| m bfloat16, batch 1, context 8 | 612 µs | 1.42 ms | 54.0 µs |" in written
    assert "| top-k, top-p | 64 | 31.0 µs | - |" in written
    assert "| m bfloat16, batch 1 | 1.10e-02 | 1.20e-02 |" in written
    ops_line = (
        "| attention, 2 x 8 to 64 tokens, head_dim 128 | 610.5 TFLOP/s | - | 300.0 TFLOP/s | - |"
    )
    assert ops_line in written
    assert "`run sample` on GPU, jax 0.1, commit abc:" in written
    assert "old" not in written


def test_tables_want_a_mark(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n")
    with pytest.raises(SystemExit, match="has no"):
        tables.main([str(readme)])

"""Every benchmark runs on tiny shapes, and measures what it says."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmark_modules import GPT2, LLAMA, MODELS, load, run

from eet_jax import prepare

attention_rows = load("attention_rows")
baseline = load("baseline")
block_rows = load("block_rows")
decode = load("decode")
decode_error = load("decode_error")
decode_programs = load("decode_programs")
decode_rows = load("decode_rows")
memory = load("memory")
memory_rows = load("memory_rows")
op_rows = load("op_rows")
ops = load("ops")
prefill = load("prefill")
prefill_programs = load("prefill_programs")
prefill_rows = load("prefill_rows")
pure_jax = load("pure_jax")
pure_jax_decode = load("pure_jax_decode")
pure_jax_prefill = load("pure_jax_prefill")
random_model = load("random_model")
sample = load("sample")
stress = load("stress")
transformers_decode = load("transformers_decode")

QUICK = ["--repeats", "2", "--loop-seconds", "0"]
HERE = {"platforms": (jax.default_backend(),)}


def of_torch(test):
    """torch's compiler for GPUs uses what torch has deprecated, and warns of more."""
    for ignored in (
        "ignore::DeprecationWarning:torch",
        "ignore:TensorFloat32:UserWarning",
        "ignore:The CUDA Graph is empty:UserWarning",
    ):
        test = pytest.mark.filterwarnings(ignored)(test)
    return test


def test_decode(monkeypatch, tmp_path, capsys):
    forms = [pure_jax.Form(attention) for attention in ("einsum", "xla", "cudnn")]
    monkeypatch.setattr(pure_jax_decode, "forms", lambda config: forms)
    programs = ["eet_jax", "pure_jax", "python_loop"]
    rows = [decode_rows.Row("llama", LLAMA, 2, 40, **HERE)]
    report = run(decode, [*QUICK, "--programs", *programs], monkeypatch, tmp_path, rows=rows)
    assert report["benchmark"] == "decode"
    assert report["rates"]["read"] > 1e8
    (row,) = report["results"]
    assert row["row"] == "llama/float32/2/40"
    for name in programs:
        assert row[name]["us"] > 0
        assert row[name]["repeats"] == 2
        assert row[name]["peak_bytes"] > row["bytes"]
        percent = 100 * row["floor_us"] / row[name]["us"]
        assert row[name]["percent_of_floor"] == pytest.approx(percent, abs=0.1)
    tried = row["pure_jax"]["forms_us"]
    assert row["pure_jax"]["form"] == min(map(str, forms[:2]), key=tried.__getitem__)
    assert "Error: " in tried[str(forms[2])]  # cuDNN has no float32
    assert "met" not in row  # targets are an H200's
    assert "llama/float32/2/40" in capsys.readouterr().out


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU's rate is the same every minute")
def test_the_floor_of_a_cpu_takes_its_turns(monkeypatch, tmp_path):
    rows = [decode_rows.Row("llama", LLAMA, 2, 40, **HERE)]
    options = [*QUICK, "--programs", "eet_jax", "memory"]
    (row,) = run(decode, options, monkeypatch, tmp_path, rows=rows)["results"]
    assert row["floor_us"] == pytest.approx(row["memory"]["us"], rel=1e-3)
    assert row["memory"]["percent_of_floor"] == 100.0
    percent = 100 * row["memory"]["us"] / row["eet_jax"]["us"]
    assert row["eet_jax"]["percent_of_floor"] == pytest.approx(percent, abs=0.1)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU's rate is known")
def test_the_floor_of_prefill_on_a_cpu(monkeypatch, tmp_path):
    rows = [prefill_rows.Row("llama", LLAMA, 2, 40, **HERE)]
    monkeypatch.setattr(prefill_programs, "SQUARE", 64)
    options = [*QUICK, "--programs", "eet_jax", "products"]
    (row,) = run(prefill, options, monkeypatch, tmp_path, rows=rows)["results"]
    assert row["floor_us"] == pytest.approx(row["products"]["us"], rel=1e-3)
    percent = 100 * row["products"]["us"] / row["eet_jax"]["us"]
    assert row["eet_jax"]["percent_of_floor"] == pytest.approx(percent, abs=0.1)


@pytest.fixture
def exact_products():
    """GPUs would round float32 to TF32."""
    with jax.default_matmul_precision("float32"):
        yield


@of_torch
def test_decode_beside_transformers(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    rows = [decode_rows.Row("gpt2", GPT2, 2, 40, **HERE)]
    options = [*QUICK, "--programs", "eet_jax", "transformers"]
    (row,) = run(decode, options, monkeypatch, tmp_path, rows=rows)["results"]
    assert row["transformers"]["us"] > 0
    assert "pure_jax" not in row


@of_torch
def test_transformers_model_is_the_configs():
    pytest.importorskip("torch")
    for config in (LLAMA.replace(dtype="bfloat16"), GPT2):
        model = transformers_decode.make_model(config)
        elements = sum(parameter.numel() for parameter in model.parameters())
        params = random_model.random_params(config, seed=0)
        assert elements == sum(leaf.size for leaf in jax.tree.leaves(params))
        assert str(model.dtype) == f"torch.{config.dtype}"


def test_rows_are_selected(monkeypatch, tmp_path):
    rows = [decode_rows.Row("llama", LLAMA, batch, 40) for batch in (1, 2)]
    options = ["--rows", "llama/*/2/*", "--programs", "eet_jax", *QUICK]
    report = run(decode, options, monkeypatch, tmp_path, rows=rows)
    (row,) = report["results"]
    assert row["batch"] == 2
    assert "pure_jax" not in row
    with pytest.raises(SystemExit, match="no row is named gpt2"):
        decode.main(["--rows", "gpt2"], rows=rows)


def test_rows_have_names_of_their_own():
    for module in (decode_rows, prefill_rows, memory_rows, ops):
        names = [row.name for row in module.ROWS]
        assert len(names) == len(set(names))
        for platform in ("cpu", "gpu"):
            assert any(platform in row.platforms for row in module.ROWS)


def test_a_loop_that_stands_still_is_no_result():
    params = random_model.random_params(LLAMA, seed=0)
    loop = decode_programs.EetDecode(LLAMA, prepare(LLAMA, params), 2, 32, 4)
    loop.reset()
    with pytest.raises(RuntimeError, match="must reach"):
        loop.check()
    loop.run()
    loop.check()


def test_prefill(monkeypatch, tmp_path, capsys):
    rows = [prefill_rows.Row(name, config, 2, 40, **HERE) for name, config in MODELS.items()]
    options = [*QUICK, "--programs", "eet_jax", "pure_jax"]
    report = run(prefill, options, monkeypatch, tmp_path, rows=rows)
    assert [row["model"] for row in report["results"]] == [*MODELS]
    for row, asked in zip(report["results"], rows, strict=True):
        for name in ("eet_jax", "pure_jax"):
            expected = asked.cost.flop / row[name]["us"] / 1e6
            assert row[name]["tflops"] == pytest.approx(expected, rel=1e-3)
        if jax.default_backend() == "cpu":
            tried = row["pure_jax"]["forms_us"]
            assert row["pure_jax"]["form"] == min(tried, key=tried.__getitem__)
    assert "gpt2/float32/2/40" in capsys.readouterr().out


MEMORY_ROWS = tuple(
    memory_rows.Row("llama", LLAMA, 2, 100, budget, most, **HERE)
    for budget, most in ((None, 1 << 30), (150_000, 100_000))
)


def test_memory(monkeypatch, tmp_path):
    options = [*QUICK, "--programs", "eet_jax", "large_budget", "xla"]
    report = run(memory, options, monkeypatch, tmp_path, rows=MEMORY_ROWS)
    default, small = report["results"]
    assert small["row"] == "llama/float32/2/100/0MiB"
    for row, planned in zip((default, small), MEMORY_ROWS, strict=True):
        ours = row["eet_jax"]
        assert row["ran"]
        assert ours["as_planned"]
        assert ours["planned_bytes"] == planned.plan.activation_bytes
        assert ours["activation_bytes"] == ours["planned_bytes"] + ours["xla_temp_bytes"]
        assert ours["us"] > 0
        assert row["xla_within"]
        # The scores alone, `[batch, heads, length, length]` in float32, inside one layer.
        assert row["xla"]["inside_layer_bytes"] >= 4 * 2 * 4 * 100**2
    assert default["within"]
    assert not small["within"]
    assert small["eet_jax"]["chunk_tokens"] < default["eet_jax"]["chunk_tokens"]


def test_memory_by_shapes_alone(monkeypatch, tmp_path):
    rows = [
        dataclasses.replace(MEMORY_ROWS[0], config=LLAMA.replace(max_seq_len=length), length=length)
        for length in (1 << 17, 1 << 20)
    ]
    options = ["--shapes-only", "--programs", "eet_jax", "xla", "cudnn"]
    long, longer = run(memory, options, monkeypatch, tmp_path, rows=rows)["results"]
    assert not long["ran"]
    assert "us" not in long["eet_jax"]
    assert long["xla"]["activation_bytes"] > 1 << 39
    assert longer["xla"]["refused"] == "ValueError: the scores alone take 32 TiB"
    if jax.default_backend() == "cpu":
        assert "Error: " in long["cudnn"]["refused"]


def test_what_does_not_fit_is_not_run():
    large = dataclasses.replace(LLAMA, hidden_size=1 << 15, intermediate_size=1 << 22)
    assert memory.runs_here(MEMORY_ROWS[0])
    assert not memory.runs_here(dataclasses.replace(MEMORY_ROWS[0], config=large))


TINY_ATTENTION = tuple(
    attention_rows.Row(prompts, 16, heads=4, kv_heads=2, **HERE)
    for prompts in ((300, 300), (7, 130, 64))
)


def test_attention(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(attention_rows, "baseline", lambda: "xla")
    dense, ragged = run(ops, QUICK, monkeypatch, tmp_path, rows=TINY_ATTENTION)["results"]
    assert (dense["row"], ragged["row"]) == (
        "attention/bfloat16/16/2x300",
        "attention/bfloat16/16/ragged",
    )
    for row, names in ((dense, ["xla"]), (ragged, ["xla_lengths", "xla_padded"])):
        for name in ("eet_jax", *names):
            assert row[name]["us"] > 0
            # What bfloat16 rounds: another order of keys or queries would be off by as much as 1.
            assert 1e-4 < row[name]["error"]["relative"] < 1e-2
            assert row[name]["error"]["largest"] < 3e-2
    flop = 2 * 2 * 300**2 * 16 * 4
    assert dense["xla"]["tflops"] == pytest.approx(flop / dense["xla"]["us"] / 1e6, rel=1e-2)
    assert "xla_padded" in capsys.readouterr().out


def test_attention_without_cudnn(monkeypatch, tmp_path):
    if jax.default_backend() != "cpu":
        pytest.skip("there may be cuDNN")
    monkeypatch.setattr(attention_rows, "baseline", lambda: "cudnn")
    options = ["--rows", "*/2x300", *QUICK, "--no-errors"]
    (row,) = run(ops, options, monkeypatch, tmp_path, rows=TINY_ATTENTION)["results"]
    assert "Error: " in row["cudnn"]["refused"]
    assert "error" not in row["eet_jax"]


TINY_OPS = (
    op_rows.norm_row("rms_norm", 48, elements=480),
    op_rows.norm_row("layer_norm", 48, elements=480),
    op_rows.rotary_row(3, 8, elements=240),
    op_rows.embedding_row(50, 24, elements=240),
    op_rows.kv_append_row(128, 2, 8),
    op_rows.linear_row(3, 40, 24, dtype="float32"),
    op_rows.linear_row(70, 40, 24, activation="gelu_tanh"),
    op_rows.mlp_row(5, 24, 40),
    op_rows.mlp_row(70, 24, 40, gated=False),
    op_rows.decode_attention_row(2, 100, 4, 2, 16),
    block_rows.attention_block_row(2, 128, 48, 4, 2, 16),
)


def test_ops(monkeypatch, tmp_path):
    options = ["--rows", "*", *QUICK]
    found = run(ops, options, monkeypatch, tmp_path, rows=TINY_OPS)["results"]
    assert [row["row"] for row in found] == [row.name for row in TINY_OPS]
    for row in found:
        programs = {name: x for name, x in row.items() if isinstance(x, dict)}
        assert len(programs) >= 2
        for program in programs.values():
            assert program["us"] > 0
            assert {"tflops", "terabytes_per_second"} & program.keys()


@pytest.mark.parametrize("row", TINY_OPS, ids=lambda row: row.name)
def test_programs_of_an_op_agree(row):
    programs = row.make(2).programs
    results = {}
    for name, make in programs.items():
        program = make()
        program.seconds()
        results[name] = jax.tree.leaves(program.carry)
    ours = results.pop("eet_jax")
    if row.op == "kv_append":  # pages after the reserved one
        ours = [jnp.swapaxes(x[0, 1:], 1, 2).reshape(-1, *x.shape[2::2]) for x in ours]
    for theirs in results.values():
        if row.op == "attention_block":  # the caches differ in their order
            ours, theirs = ours[:1], theirs[:1]
        for mine, other in zip(ours, theirs, strict=True):
            mine, other = (np.asarray(x, np.float32) for x in (mine, other))
            assert np.std(mine) > 0.01
            np.testing.assert_allclose(mine, other, atol=3e-2 * np.abs(mine).max())


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


def test_sample(monkeypatch, tmp_path):
    options = ["--batches", "1", "3", "--vocab", "128", "--steps", "4", "--repeats", "2"]
    report = run(sample, options, monkeypatch, tmp_path)
    settings = [(row["batch"], row["setting"]) for row in report["results"]]
    assert settings == [(batch, name) for batch in (1, 3) for name in sample.SETTINGS]
    assert "over_greedy_us" not in report["results"][0]
    assert "over_greedy_us" in report["results"][1]


FORMS = (
    pure_jax.Form("einsum", "in_out", "float32"),
    pure_jax.Form("einsum", "out_in", "rounded", hoist=False),
    pure_jax.Form("xla", "out_in", "float32"),
)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_the_baselines_forms_agree(config, exact_products):
    weights = baseline.Baseline(config, random_model.random_params(config, seed=0))
    tokens = np.arange(60).reshape(3, 20)
    prompts, last = jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, -1])
    results = []
    for form in FORMS:
        cache = pure_jax.make_cache(config, 3, 24)
        given = weights.weights(form)
        prefilled = dataclasses.replace(form, attention="xla")
        first, cache = pure_jax_prefill.prefill(config, prefilled, given, prompts, cache)
        if form.attention == "einsum":
            cache = jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2), cache)
        position = np.int32(19)
        second, _ = pure_jax_decode.decode_step(config, form, given, last, cache, position)
        results.append((first, second))
    # A decode step continues a prefill: the same as a longer one.
    cache = pure_jax.make_cache(config, 3, 24)
    form = pure_jax.Form("xla")
    whole, _ = pure_jax_prefill.prefill(
        config, form, weights.weights(form), jnp.asarray(tokens), cache
    )
    for first, second in results:
        np.testing.assert_allclose(first, results[0][0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(second, whole, rtol=1e-5, atol=1e-5)


def test_the_baseline_refuses_what_it_lacks():
    config = LLAMA.replace(sliding_window=8)
    params = random_model.random_params(config, seed=0)
    with pytest.raises(ValueError, match="does not have"):
        pure_jax.make_weights(config, params, pure_jax.Form())


def test_the_environment_is_told(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--some_flag")
    found = load("harness").environment()
    assert found["variables"]["XLA_FLAGS"] == "--some_flag"
    assert found["versions"]["jax"] == jax.__version__
    if jax.default_backend() == "cpu":
        assert re.search(r"\w.*, \d+ threads$", found["device"])

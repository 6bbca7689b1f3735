"""Tables and plots are made from results, and known to be out of date."""

from __future__ import annotations

import json

import pytest
from benchmark_modules import load

report = load("report")
report_plots = load("report_plots")
report_tables = load("report_tables")

SOURCE = {"device": "GPU", "versions": {"jax": "0.1"}, "commit": "abc"}
MEDIAN = {"us": 612.4, "spread_us": 12.25, "percent_of_floor": 88.2, "peak_bytes": 3 << 30}
DECODED = {
    "row": "m/bfloat16/1/8",
    "model": "m",
    "dtype": "bfloat16",
    "batch": 1,
    "context": 8,
    "per": "step",
    "floor_us": 540.2,
    "target_us": 600.0,
    "met": False,
    "eet_jax": MEDIAN | {"terabytes_per_second": 4.1},
    "pure_jax": {"us": 1418.0, "percent_of_floor": 38.1},
    "transformers": {"refused": "no"},
}
PREFILLED = {
    "row": "m/bfloat16/2/64",
    "model": "m",
    "dtype": "bfloat16",
    "batch": 2,
    "length": 64,
    "eet_jax": MEDIAN | {"tflops": 610.5},
    "pure_jax": {"us": 1418.0, "tflops": 0.02},
}
ATTENDED = {
    "row": "attention/bfloat16/128/ragged",
    "op": "attention",
    "dtype": "bfloat16",
    "prompts": [64, 8],
    "head_dim": 128,
    "eet_jax": MEDIAN | {"tflops": 610.5},
    "cudnn_lengths": {"refused": "no"},
    "cudnn_padded": {"us": 900.0, "tflops": 300.0},
}
REMEMBERED = PREFILLED | {
    "budget_bytes": 64 << 20,
    "eet_jax": {"us": 20.0, "activation_bytes": 66 << 20, "planned_bytes": 65 << 20},
    "large_budget": {"us": 16.0, "activation_bytes": 500 << 20},
    "xla": {"activation_bytes": 6 << 40},
}
RESULTS = {
    "decode": DECODED,
    "prefill": PREFILLED,
    "ops": ATTENDED,
    "memory": REMEMBERED,
    "sample": {"setting": "top_k_top_p", "batch": 64, "eet_jax": {"us": 31.0}},
    "decode_error": DECODED | {"eet_jax": 0.011, "pure_jax": 0.012},
    "stress": {"model": "m", "layers": 2, "batch": 3, "context": 8, "steps": 64, "equal": True},
}
LINES = (
    "| m bfloat16, batch 1, context 8 | 612 µs ± 1.0 % | 1.42 ms | 540 µs | 88 % | 4.1 TB/s "
    "| 600 µs, missed | 3 GiB |",
    "| m bfloat16, 2 x 64 tokens | 612 µs ± 1.0 % | 1.42 ms | 88 % | 610 TFLOP/s | 20 GFLOP/s "
    "| 3 GiB |",
    "| attention bfloat16, 2 x 8 to 64 tokens, head_dim 128 | 612 µs ± 1.0 % | 900 µs "
    "| 610 TFLOP/s | 300 TFLOP/s | 88 % |",
    "| m bfloat16, 2 x 64 tokens, budget 64 MiB | 66 MiB | 65 MiB | 6 TiB | 0.80 |",
    "| top-k, top-p | 64 | 31 µs |",
    "| m bfloat16, batch 1 | 1.10e-02 | 1.20e-02 |",
    "| m, 2 layers | 3 | 8 | 64 | yes |",
)


@pytest.fixture
def marked(tmp_path):
    """A document with a mark for each result file, and the options that name them."""
    text = "# Title\n"
    for name, result in RESULTS.items():
        made = {"benchmark": name, "command": f"run {name}", **SOURCE, "results": [result]}
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
        text += f"<!-- table: {name}.json -->\nold\n<!-- end of table -->\n"
        if name in report_plots.PLOTS:
            text += f"<!-- plot: {name}.json -->\n<!-- end of plot -->\n"
    document = tmp_path / "text" / "README.md"
    document.parent.mkdir()
    document.write_text(text)
    return document, [str(document), "--results", str(tmp_path)]


def test_tables_and_plots(marked, tmp_path):
    pytest.importorskip("matplotlib")
    document, options = marked
    with pytest.raises(SystemExit, match="out of date"):
        report.main([*options, "--check"])
    report.main(options)
    report.main([*options, "--check"])
    written = document.read_text()
    for line in LINES:
        assert line in written
    assert "`run sample` on GPU, jax 0.1, commit abc:" in written
    assert "old" not in written
    assert "![decode](../decode.png)" in written
    for name in report_plots.PLOTS:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_changed_result_is_noticed(marked, tmp_path):
    pytest.importorskip("matplotlib")
    document, options = marked
    report.main(options)
    source = tmp_path / "decode.json"
    source.write_text(source.read_text().replace("612.4", "512.4"))
    with pytest.raises(SystemExit, match=r"decode\.png is out of date"):
        report.main([*options, "--check"])
    report_plots.draw(source)
    with pytest.raises(SystemExit, match=r"README\.md is out of date"):
        report.main([*options, "--check"])
    assert "612 µs ± 1.0 % | 1.42 ms" in document.read_text()  # check changes nothing


def test_bars_are_the_programs_numbers():
    bars = {name: plot.bars(RESULTS[name]) for name, plot in report_plots.PLOTS.items()}
    assert bars["decode"] == {"eet_jax": 88.2, "pure_jax": 38.1}
    assert bars["prefill"] == {"eet_jax": 610.5, "pure_jax": 0.02}
    assert bars["ops"] == {"eet_jax": 900 / 612.4}
    assert bars["memory"]["xla"] == 6 << 40


def test_a_mark_is_wanted(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n")
    with pytest.raises(SystemExit, match="there is no"):
        report.main([str(readme)])


def test_units():
    assert [report_tables.time(us) for us in (8.2, 999.4, 1418.0, 2.5e6)] == [
        "8.2 µs",
        "999 µs",
        "1.42 ms",
        "2.5 s",
    ]
    assert [report_tables.size(n) for n in (512, 3 << 20, 1023 << 20)] == [
        "0.5 KiB",
        "3 MiB",
        "1023 MiB",
    ]


def test_the_documents_are_up_to_date():
    if any(report._BLOCK.search(file.read_text()) for file in report.DOCUMENTS):
        report.main(["--check"])

"""eet-jax bench: what it counts, what it prints, what it draws."""

from __future__ import annotations

import json
import sys
import time
import types

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import fail, run, succeed

from eet_jax import DecoderConfig
from eet_jax.cli import bandwidth, measuring, plot
from eet_jax.cli.measuring import Case, Measurement, measure
from eet_jax.plan import step_read_bytes

QUICK = ["--new-tokens", "4", "--repeats", "1", "--prompt-length", "16", "--bandwidth", "1TB"]
CONFIG = DecoderConfig(**checkpoints.SMALL)


def test_what_is_counted(monkeypatch):
    """On a clock of our own: prefill 2 s, the first token 1 s later, every other one after 0.25 s;
    all ten times as slow while warming up, and in one of the three runs that count."""
    now, runs = [0.0], []

    class Run:
        def __init__(self, config, weights, request, sampling):
            self.request = request
            self.state = types.SimpleNamespace(lengths=jnp.zeros(1))
            runs.append(request)

        def arrivals(self):
            pair = (len(runs) - 1) // 2
            factor = 10.0 if pair < measuring.WARM_UPS or pair == measuring.WARM_UPS + 1 else 1.0
            now[0] += 2.0 * factor
            now[0] += 1.0 * factor if self.request.max_new_tokens else 0.0
            for tokens in (1, 1, 4, 3) if self.request.max_new_tokens else ():
                yield
                now[0] += 0.25 * tokens * factor

    monkeypatch.setattr(measuring, "Run", Run)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    # After the first token come 1 + 1 + 4; what follows the last of them is no token's time.
    case = Case(batch=3, prompt_length=20, new_tokens=7)
    found = measure(CONFIG, None, case, bandwidth=1e6, repeats=3)
    assert found == Measurement(case, 2.0, 3.0, 0.25, step_read_bytes(CONFIG, 3, 23.5) / 1e6)
    assert found.prefill_rate == 3 * 20 / 2.0
    assert found.decode_rate == 3 / 0.25
    assert found.percent_of_floor == pytest.approx(100 * found.floor_seconds / 0.25)
    assert {request.tokens.shape for request in runs} == {(3, 32)}
    assert all((request.lengths == 20).all() for request in runs)


def test_json():
    start = time.perf_counter()
    text = succeed(
        "bench", "--batch", "1", "--batch", "2", "--prompt-length", "24", *QUICK, "--json"
    )
    elapsed = time.perf_counter() - start
    found = json.loads(text)
    cases = [(r["prompt_length"], r["batch"], r["new_tokens"]) for r in found["results"]]
    assert cases == [(24, 1, 4), (24, 2, 4), (16, 1, 4), (16, 2, 4)]
    assert found["bytes_per_second"] == 10**12
    assert found["parameters"] == 4_885_760
    assert found["dtype"] == "bfloat16"
    assert found["device"] == jax.local_devices()[0].device_kind
    least = 0.0
    for result in found["results"]:
        rows, step = result["batch"], result["step_seconds"]
        assert result["decode_tokens_per_second"] == pytest.approx(rows / step)
        assert result["percent_of_floor"] == pytest.approx(100 * result["floor_seconds"] / step)
        prefill = rows * result["prompt_length"] / result["prefill_tokens_per_second"]
        least += prefill + result["first_token_seconds"] + 3 * step
    assert 0 < least < elapsed


def test_table():
    text = succeed("bench", "--batch", "1", "--batch", "2", *QUICK, "--dtype", "float32")
    title, *_, first, second, floor = text.splitlines()
    assert title.startswith("eet-tiny: 4.9 million parameters in float32 on ")
    assert first.split()[:2] == ["1", "16"]
    assert second.split()[:2] == ["2", "16"]
    assert floor.startswith("floor: ")
    assert floor.endswith("at 1 TB/s")


def test_more_than_the_floor_is_explained():
    text = succeed("bench", "--batch", "1", *QUICK, "--bandwidth", "1MB")
    assert text.endswith("above 100 %: the processor's caches hold what is read\n")


def test_directory_written_by_transformers(tmp_path):
    model = checkpoints.make("gpt2", tmp_path)
    found = json.loads(succeed("bench", str(tmp_path), "--batch", "2", *QUICK, "--json"))
    assert found["parameters"] == model.num_parameters()
    # All but the learned positions, and in the middle 18 tokens of each row's cache.
    weights = model.num_parameters() - model.transformer.wpe.weight.numel()
    cache = 2 * 3 * 64 * 2 * 18
    assert found["results"][0]["floor_seconds"] == pytest.approx(4 * (weights + cache) / 10**12)


def test_bandwidth_is_measured(monkeypatch):
    """It is no slower than a plain loop over as many bytes, and no miracle."""
    monkeypatch.setattr(bandwidth, "SIZE", 2**26)
    data = np.ones(2**26, np.uint8)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        data.view(np.int64).sum()
        times.append(time.perf_counter() - start)
    measured = bandwidth.read_bandwidth()
    assert measured > 0.3 * data.nbytes / min(times)
    assert measured < 1e13
    monkeypatch.setattr("eet_jax.cli.bench.read_bandwidth", lambda: 5e9)
    quick = QUICK[:-2]
    assert "at 5 GB/s" in succeed("bench", "--batch", "1", *quick)


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "bench.png"
    text = succeed("bench", "--batch", "1", "--batch", "2", *QUICK, "--plot", str(path))
    assert "of floor" in text
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
    assert (width, height) == (1800, 600)


def test_what_is_drawn(tmp_path, monkeypatch):
    """A line for each prompt length, and the floor beside decoding."""
    figures = []

    class Figure(plot.require_matplotlib().Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            figures.append(self)

    monkeypatch.setattr(plot, "require_matplotlib", lambda: types.SimpleNamespace(Figure=Figure))
    measurements = [
        Measurement(Case(batch, length, 8), batch * 0.1, length * 0.01, 0.02, 0.01)
        for length in (20, 10)
        for batch in (4, 1)
    ]
    plot.plot(tmp_path / "x.png", "a title", measurements)
    [figure] = figures
    lines = [
        {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        for axes in figure.axes
    ]
    assert figure.get_suptitle() == "a title"
    first, prefill, decode = lines
    assert first == {"prompt 10": [[1, 100], [4, 100]], "prompt 20": [[1, 200], [4, 200]]}
    assert prefill["prompt 10"] == [[1, 100], [4, 100]]
    assert decode["prompt 20"] == [[1, 50], [4, 200]]
    assert decode["floor, prompt 20"] == [[1, 100], [4, 400]]


def test_plot_needs_matplotlib(monkeypatch, tmp_path):
    """Said before anything is measured."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(measuring, "Run", None)
    line = fail("bench", *QUICK, "--plot", str(tmp_path / "x.png"))
    assert line == "--plot needs: pip install 'eet-jax[bench]'"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--plot", "no/where.png"], "no: no such directory, for --plot; make it, or name another"),
        (["--bandwidth", "0B"], "--bandwidth must be more than 0 bytes per second, got 0"),
        (["nowhere"], "model must be a directory or one of eet-tiny, got 'nowhere'"),
        (
            ["--prompt-length", "500"],
            "prompts and max_new_tokens must fit 512 tokens (max_seq_len 512), got 628; "
            "shorten the prompt, or ask for fewer new tokens",
        ),
    ],
)
def test_errors(monkeypatch, arguments, line):
    monkeypatch.setattr(measuring, "Run", None)
    assert fail("bench", *arguments) == line


@pytest.mark.parametrize(
    "arguments", [["--batch", "0"], ["--new-tokens", "1"], ["--bandwidth", "fast"]]
)
def test_wrong_options(arguments):
    assert f"'{arguments[0]}'" in fail("bench", *arguments, status=2)
    assert run("bench", *arguments).stdout == ""

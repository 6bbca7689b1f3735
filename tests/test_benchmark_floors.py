"""What benchmarks compare with: floors, targets, the rates of the device."""

from __future__ import annotations

import pytest
from benchmark_modules import load

decode_rows = load("decode_rows")
floors = load("floors")
measure = load("measure")
memory_rows = load("memory_rows")
ops = load("ops")
prefill_rows = load("prefill_rows")
rates = load("rates")
shapes = load("shapes")


@pytest.fixture
def h200(monkeypatch):
    """As if the device were one."""
    monkeypatch.setattr(floors, "is_h200", lambda: True)
    monkeypatch.setattr(floors, "rates", lambda: rates._H200)


def test_floors_of_decode(h200):
    found = {row.name: row.cost(row.context).floor_us() for row in decode_rows.ROWS}
    expected = {
        "llama-3.2-1b/bfloat16/1/1024": 540,
        "llama-3.2-1b/bfloat16/64/1024": 995,
        "llama-3-8b/bfloat16/1/131072": 6937,
        "qwen3-0.6b/bfloat16/1/1024": 282,
        "eet-layer-1024/float16/4/768": 8,
        "eet-layer-12288/float16/4/768": 813,
    }
    for name, floor in expected.items():
        assert found[name] == pytest.approx(floor, abs=1)


def test_floors_of_prefill(h200):
    found = {row.name: row.cost.floor_us() / 1e3 for row in prefill_rows.ROWS}
    expected = {
        "llama-3-8b/bfloat16/1/512": 9.16,
        "llama-3-8b/bfloat16/1/4096": 79.7,
        "llama-3-8b/bfloat16/1/32768": 1048,
        "gpt2-xl/bfloat16/1/1024": 4.09,
    }
    for name, floor in expected.items():
        assert found[name] == pytest.approx(floor, rel=2e-3)


def test_short_work_is_bound_by_memory(h200):
    cost = floors.Cost(read=4.64e6, copied=3.96e6, products=790e6)
    assert cost.floor_us() == pytest.approx(2)
    assert floors.Cost(products=790e6, attention=1200e6).floor_us() == pytest.approx(3)
    assert (cost / 2).floor_us() == pytest.approx(1)
    assert cost.rate(2.0) == {"tflops": 395.0}
    assert floors.Cost(read=4e6).rate(2.0) == {"terabytes_per_second": 2.0}


def test_flop_of_attention():
    flop = {row.name: row.cost.flop for row in ops.ROWS if row.name.startswith("attention")}
    assert flop["attention/bfloat16/128/1x32768"] == 2 * 32768**2 * 128 * 32
    assert flop["attention/bfloat16/64/4x4096"] == 4 * 2 * 4096**2 * 64 * 32


def test_targets(h200):
    cost = floors.Cost(read=4.64e8)  # 100 us
    ours = {"eet_jax": {"us": 165.0}}
    target = floors.Target(floors=1.5)
    assert floors.judged(target, cost, ours) == {"target_us": 150.0, "of_target": 1.1, "met": False}
    assert floors.judged(floors.Target(us=165.0), cost, ours)["met"]
    assert floors.judged(floors.NO_TARGET, cost, ours) == {}
    faster = ours | {"cudnn": {"us": 170.0}}
    target = floors.Target(us=165.0, over={"cudnn": 1.05})
    assert floors.judged(target, cost, faster)["target_us"] == 161.9
    refused = ours | {"cudnn": {"refused": "no"}}
    assert floors.judged(target, cost, refused)["met"]
    fast = floors.Target(tflops=1.0)
    assert floors.judged(fast, floors.Cost(products=2e8), ours)["target_us"] == 200.0


def test_targets_are_those_of_an_h200(monkeypatch):
    monkeypatch.setattr(floors, "is_h200", lambda: False)
    assert (
        floors.judged(floors.Target(us=1.0), floors.Cost(read=1.0), {"eet_jax": {"us": 2.0}}) == {}
    )


def test_rates_of_this_device():
    found = rates.rates()
    assert found.read > 1e8
    assert found.copy > 1e8
    assert floors.Cost(read=found.read).floor_us() == pytest.approx(1e6)


def test_a_copy_by_xla_counts_what_is_read_and_written(monkeypatch):
    monkeypatch.setattr(rates, "COPIED_BYTES", 1 << 20)
    monkeypatch.setattr(measure.Repeated, "seconds", lambda self: 1e-3 * self.steps)
    assert rates._gpu_copy() == pytest.approx((1 << 20) / 1e-3)


def test_numbers_are_beside_the_floor(h200):
    results = {"eet_jax": {"us": 200.0}, "cudnn": {"refused": "no"}}
    found = floors.rated(results, floors.Cost(read=4.64e8))
    assert found["floor_us"] == 100.0
    assert found["eet_jax"]["percent_of_floor"] == 50.0
    assert found["eet_jax"]["terabytes_per_second"] == 2.32
    assert found["cudnn"] == {"refused": "no"}


class Program:
    """Takes as many seconds as it is told."""

    steps = 2

    def __init__(self, *seconds):
        self.left = list(seconds)

    def seconds(self):
        return self.left.pop(0)

    def peak_bytes(self):
        return 7


def test_programs_are_compared_after_warming_up(monkeypatch):
    monkeypatch.setattr(measure, "warm_up", Program.seconds)

    def fail():
        raise RuntimeError("no\n  such kernel")

    found = measure.compare(
        {"eet_jax": lambda: Program(9, 2e-3, 4e-3, 8e-3), "other": fail}, repeats=3, parts=2
    )
    assert found["eet_jax"] == {
        "us": 1000.0, "spread_us": 1500.0, "steps": 2, "repeats": 3, "peak_bytes": 7,
    }  # fmt: skip
    assert found["other"] == {"refused": "RuntimeError: no such kernel"}
    with pytest.raises(RuntimeError, match="no"):
        measure.compare({"eet_jax": fail}, repeats=3)


def test_the_fastest_is_found(monkeypatch):
    monkeypatch.setattr(measure, "warm_up", Program.seconds)
    made = {"slow": Program(*[2.0] * 4), "fast": Program(*[1.0] * 4)}
    assert measure.fastest(list(made), made.get) == ("fast", {"slow": 1e6, "fast": 5e5})
    assert measure.fastest(["sole"], made.get) == ("sole", {})


def test_shapes_are_those_that_eet_published():
    assert shapes.EET_HIDDEN_SIZES == (1024, 2048, 4096, 12288)
    heads = [shapes.MODELS[f"eet-layer-{n}"].num_heads for n in shapes.EET_HIDDEN_SIZES]
    assert heads == [16, 32, 32, 96]
    assert shapes.MODELS["gpt2-xl"].head_dim == 64
    rows = [row for row in memory_rows.ROWS if "12288" in row.name]
    assert {row.most_inside or row.most for row in rows} == {64 << 20, 256 << 20}

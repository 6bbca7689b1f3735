"""What all commands share: errors, interruptions, output; and doctor."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys

import commands
import pytest
from commands import fail, run, succeed

import eet_jax
from eet_jax import installation, llm
from eet_jax.cli import output
from eet_jax.cli.units import format_bytes, format_seconds, parse_bytes
from eet_jax.pool import PoolExhausted


def test_without_a_command_there_is_help():
    text = succeed()
    assert text == succeed("--help")
    for command in ("generate", "chat", "inspect", "bench", "doctor"):
        assert command in text
        assert "Usage" in succeed(command, "--help")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["frobnicate"], "No such command 'frobnicate'; see `eet-jax --help`"),
        (["--loud"], "No such option: --loud; see `eet-jax --help`"),
        (["generate", "-x"], "No such option: -x; see `eet-jax generate --help`"),
        (["inspect"], "Missing argument 'DIR'; see `eet-jax inspect --help`"),
    ],
)
def test_wrong_command_lines(arguments, line):
    assert fail(*arguments, status=2) == line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("rows must be 1, got 2"), "rows must be 1, got 2"),
        (ValueError("one\ntwo"), "one; --debug shows the traceback"),
        (KeyError("layers"), "KeyError: 'layers'; --debug shows the traceback"),
        (AssertionError(), "AssertionError; --debug shows the traceback"),
        (OSError(28, "No space left", "file"), "file: No space left"),
        (PoolExhausted("cpu: needs 9"), "cpu: needs 9; `eet-jax inspect` says what fits"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nlong\n"),
            "RESOURCE_EXHAUSTED: Out of memory; `eet-jax inspect` says what fits",
        ),
        (
            RuntimeError("Unable to initialize backend 'cuda'"),
            "Unable to initialize backend 'cuda'; `eet-jax doctor` says what is missing",
        ),
    ],
)
def test_errors_are_one_line_unless_debug(monkeypatch, error, line):
    def load(*args, **kwargs):
        raise error

    monkeypatch.setattr(llm, "LLM", load)
    assert fail("generate", "A") == line
    for arguments in (["--debug", "generate", "A"], ["generate", "A", "--debug"]):
        with pytest.raises(type(error)):
            run(*arguments)
    assert fail("generate", "--", "--debug") == line  # a prompt


def test_error_of_a_process():
    with commands.start("generate", "--model", "nowhere") as process:
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (1, b"")
    assert stderr == b"error model must be a directory or one of eet-tiny, got 'nowhere'\n"


def test_interrupt_ends_quietly():
    with commands.start("generate", "The king", "--max-new-tokens", "500") as process:
        assert process.stdout.read(20).startswith(b"The king")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b""
    assert process.returncode == 130


def test_interrupt_in_a_callback():
    """Where Python only reports exceptions, as in finalizers."""
    program = """
import os, signal
from eet_jax import cli, llm

class Callback:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def load(*args, **kwargs):
    Callback()
    raise ValueError("went on")

llm.LLM = load
cli.main(["generate"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_closed_pipe_ends_quietly():
    """Both while text is streamed, and where nothing is written until the end."""
    for arguments in (["generate", "--max-new-tokens", "500"], ["inspect", "eet-tiny", "--json"]):
        with commands.start(*arguments) as process:
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 1


def test_progress_is_shown_after_a_second_at_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    for stream, patience, shown in (
        (Terminal(), 0.0, True),
        (Terminal(), 60.0, False),
        (io.StringIO(), 0.0, False),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(output, "PATIENCE", patience)
        with output.progress("Reading") as report:
            report(1, 4)
            if shown:
                while "25%" not in stream.getvalue():
                    pass
        assert ("Reading" in stream.getvalue()) == shown


def test_loading_is_reported():
    reports = []
    model = eet_jax.LLM("eet-tiny", progress=lambda done, total: reports.append((done, total)))
    done, totals = zip(*reports, strict=True)
    assert set(totals) == {done[-1]} == {eet_jax.plan(model.config, 1).weight_bytes}
    assert list(done) == sorted(set(done))
    assert len(done) > model.config.num_layers


def test_doctor():
    result = run("doctor", "--json")
    report = json.loads(result.stdout)
    assert report["libraries"]["cpu"].startswith("loaded")
    assert len(report["persistent_decode"]) == len(report["devices"])
    assert result.status == (1 if report["problems"] else 0)
    text = run("doctor").stdout
    for problem in report["problems"]:
        assert f"problem {problem}\n" in text
    assert "eet-jax" in text


def test_doctor_is_content(monkeypatch):
    monkeypatch.setattr(installation, "_problems", lambda devices: [])
    assert succeed("doctor").endswith("everything is in place\n")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000000", 10**6),
        ("141GB", 141 * 10**9),
        ("512MiB", 2**29),
        ("1.5 kB", 1500),
        ("2t", 2 * 10**12),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


def test_sizes_are_written():
    sizes = {
        0: "0 B",
        999: "999 B",
        1000: "1 kB",
        999_600: "1 MB",
        9.77e6: "9.77 MB",
        5e15: "5,000 TB",
    }
    assert {size: format_bytes(size) for size in sizes} == sizes
    times = {2e-6: "2 µs", 0.0123: "12.3 ms", 0.99951: "1 s", 2000: "2,000 s"}
    assert {seconds: format_seconds(seconds) for seconds in times} == times


def test_import_is_quick_and_quiet():
    """Importing starts no backend and brings in nothing that only commands need."""
    program = """
import sys, time
import jax, flax.linen, flax.nnx, rich.console, rich.progress, rich.table, typer
start = time.process_time()
import eet_jax, eet_jax.cli
seconds = time.process_time() - start
from jax._src import xla_bridge
assert not xla_bridge._backends, "a backend was started"
assert not {"torch", "transformers", "tokenizers", "matplotlib"} & set(sys.modules)
print(seconds)
"""
    best = min(
        float(
            subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(5)
    )
    assert best < 0.2

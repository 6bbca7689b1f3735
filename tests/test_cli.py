"""The commands, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import eet_jax
from eet_jax import cli

runner = CliRunner()


def test_generate_prints_prompt_and_text():
    result = runner.invoke(
        cli.app, ["generate", "The king", "--max-new-tokens", "20", "--temperature", "0"]
    )
    assert result.exit_code == 0, result.output
    want = eet_jax.LLM("eet-tiny").generate("The king", max_new_tokens=20)
    assert result.output == f"The king{want}\n"


def test_doctor():
    result = runner.invoke(cli.app, ["doctor", "--json"])
    report = json.loads(result.output)
    assert report["libraries"]["cpu"].startswith("loaded")
    assert len(report["persistent_decode"]) == len(report["devices"])
    assert result.exit_code == (1 if report["problems"] else 0)
    assert "eet-jax" in runner.invoke(cli.app, ["doctor"]).output


@pytest.mark.parametrize("arguments", [["generate", "--model", "nowhere"], ["generate", ""]])
def test_errors_are_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["eet-jax", *arguments])
    with pytest.raises(SystemExit) as error:
        cli.main()
    assert error.value.code == 1
    text = capsys.readouterr().err
    assert text.startswith("error ")
    assert "Traceback" not in text


def test_import_is_quick_and_quiet():
    """Importing starts no backend and brings in neither torch nor transformers."""
    program = """
import sys, time
import jax, flax.linen, flax.nnx
start = time.process_time()
import eet_jax
seconds = time.process_time() - start
from jax._src import xla_bridge
assert not xla_bridge._backends, "a backend was started"
assert not {"torch", "transformers"} & set(sys.modules)
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

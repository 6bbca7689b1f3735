"""Runs commands, in this process or as a user's shell does."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eet_jax import cli, models

PROGRAM = (sys.executable, "-m", "eet_jax")

TEMPLATE = "{% for m in messages %}{{ m.role }} said {{ m.content }}\n{% endfor %}"


@dataclasses.dataclass(frozen=True)
class Result:
    status: int
    stdout: str
    stderr: str


def run(*arguments: str, stdin: str = "") -> Result:
    """What a command printed and its exit status."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
    return Result(ended.value.code or 0, stdout.getvalue(), stderr.getvalue())


def succeed(*arguments: str, stdin: str = "") -> str:
    """What a command printed that has nothing to complain about."""
    result = run(*arguments, stdin=stdin)
    assert (result.status, result.stderr) == (0, "")
    return result.stdout


def fail(*arguments: str, stdin: str = "", status: int = 1) -> str:
    """The one line of a command's error."""
    result = run(*arguments, stdin=stdin)
    assert result.status == status, result
    line, *more = result.stderr.splitlines()
    assert line.startswith("error ")
    assert not more
    return line.removeprefix("error ")


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """A command as a process of its own, with pipes, which Python buffers as it does for users."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    return subprocess.Popen([*PROGRAM, *arguments], env=environment, **(pipes | options))


def chat_model(directory: Path, template: str = TEMPLATE) -> Path:
    """The model inside the package, with a chat template."""
    shutil.copytree(models.resolve("eet-tiny"), directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return directory

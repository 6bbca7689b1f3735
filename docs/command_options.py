"""The arguments and options of a command as a table, from the command itself."""

from __future__ import annotations

from typing import Any

import typer

from eet_jax.cli import app

_HEADER = "| | | default |\n|---|---|---|\n"


def markdown(command: str) -> str:
    """A row for each argument and option of ``eet-jax COMMAND``."""
    parameters = typer.main.get_command(app).commands[command].params
    shown = [parameter for parameter in parameters if "--help" not in parameter.opts]
    return _HEADER + "".join(_row(parameter) for parameter in shown)


def _row(parameter: Any) -> str:
    argument = parameter.param_type_name == "argument"
    names = [parameter.metavar or parameter.name.upper()] if argument else parameter.opts
    names = [*names, *parameter.secondary_opts]
    help_text = (parameter.help or "").replace("|", "\\|")
    return f"| {', '.join(f'`{name}`' for name in names)} | {help_text} | {_default(parameter)} |\n"


def _default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    default = parameter.default
    if default is None or default is False or callable(default):
        return ""
    return f"`{default}`"

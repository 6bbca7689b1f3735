"""eet-jax inspect."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import typer
from rich.table import Table
from rich.text import Text

from eet_jax import checkpoint, models
from eet_jax.capacity import largest_batch, longest_context
from eet_jax.cli import options
from eet_jax.cli.output import print_json, progress, stdout
from eet_jax.cli.units import format_bytes, parse_bytes
from eet_jax.config import DecoderConfig
from eet_jax.params import param_count
from eet_jax.plan import kv_bytes_per_token, plan
from eet_jax.pool import DEFAULT_SHARE, device_bytes


def inspect(
    model: options.Directory,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of each sequence, prompt and generated; by default as many as the model "
            "can take.",
        ),
    ] = None,
    dtype: options.Dtype = None,
    activation_budget: Annotated[
        int | None,
        typer.Option(
            parser=parse_bytes,
            metavar="BYTES",
            help="For activations, such as 512MiB; by default 256 MiB or what is needed.",
        ),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            parser=parse_bytes,
            metavar="BYTES",
            help="Of a GPU to plan for, such as 141GB; by default that of this device.",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Tell how much memory a model takes, and what fits, before anything is loaded.

    Reads config.json and the headers of safetensors, if there are any; no tensor.
    """
    with progress("reading headers"):
        facts = examine(model, batch, context, dtype, activation_budget, memory)
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def examine(
    model: str,
    batch: int,
    context: int | None,
    dtype: str | None,
    activation_budget: int | None,
    memory: int | None,
) -> dict[str, Any]:
    """What ``inspect`` tells, as it is in JSON.

    Raises:
        FileNotFoundError: if the directory or its config.json is missing.
        ValueError: for checkpoints that are not supported, and sizes out of range.
    """
    description = checkpoint.describe(models.resolve(model), dtype=dtype)
    config = description.config
    context = config.max_seq_len if context is None else context
    planned = plan(config, batch, context, activation_budget)
    device = _device() if memory is None else _given(memory)
    usable = device["usable_bytes"]
    return {
        "model": model,
        "family": description.family.model_type,
        "architecture": description.family.architecture,
        **_shape(config),
        "stored": _stored(description),
        "kv_bytes_per_token": kv_bytes_per_token(config),
        "batch": batch,
        "context": context,
        "plan": dataclasses.asdict(planned)
        | {"activation_bytes": planned.activation_bytes, "peak_bytes": planned.peak_bytes},
        "device": device,
        "fits": planned.peak_bytes <= usable,
        "longest_context": longest_context(config, batch, usable, activation_budget),
        "largest_batch": largest_batch(config, context, usable, activation_budget),
    }


def _shape(config: DecoderConfig) -> dict[str, Any]:
    names = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads",
             "head_dim", "vocab_size", "max_seq_len", "dtype")  # fmt: skip
    return {"parameters": param_count(config)} | {name: getattr(config, name) for name in names}


def _stored(description: checkpoint.Description) -> dict[str, Any] | None:
    """What the safetensors hold; None where there are none."""
    tensors = description.tensors.values()
    if not tensors:
        return None
    return {
        "bytes": sum(tensor.data.nbytes for tensor in tensors),
        "files": len({tensor.path for tensor in tensors}),
        "dtypes": sorted({tensor.dtype for tensor in tensors}),
    }


def _device() -> dict[str, Any]:
    """JAX's default device, of which the pool's share can be used."""
    device = jax.local_devices()[0]
    size = device_bytes(device)
    usable = int(size * DEFAULT_SHARE[device.platform])
    return {"name": device.device_kind, "memory_bytes": size, "usable_bytes": usable}


def _given(size: int) -> dict[str, Any]:
    usable = int(size * DEFAULT_SHARE["gpu"])
    return {"name": None, "memory_bytes": size, "usable_bytes": usable}


def _print(facts: dict[str, Any]) -> None:
    console = stdout()
    sections = {
        facts["model"]: _model_rows(facts),
        f"batch {facts['batch']}, context {facts['context']:,}": _memory_rows(facts),
        _device_title(facts["device"]): _capacity_rows(facts),
    }
    for i, (title, rows) in enumerate(sections.items()):
        console.print(Text(("\n" if i else "") + title, style="bold"))
        table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(min_width=16)
        for cells in rows:
            table.add_row(*cells)
        console.print(table)


def _model_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    heads = f"{facts['num_heads']} heads ({facts['num_kv_heads']} KV) of {facts['head_dim']}"
    return [
        ("family", f"{facts['family']} ({facts['architecture']})"),
        ("parameters", f"{facts['parameters']:,}"),
        ("shape", f"{facts['num_layers']} layers of {facts['hidden_size']}, {heads}"),
        ("vocabulary", f"{facts['vocab_size']:,} tokens"),
        ("longest sequence", f"{facts['max_seq_len']:,} tokens"),
        ("stored", _stored_text(facts["stored"])),
    ]


def _stored_text(stored: dict[str, Any] | None) -> str:
    if stored is None:
        return "no safetensors here"
    files = f"{stored['files']} file" + ("s" if stored["files"] > 1 else "")
    return f"{format_bytes(stored['bytes'])} of {', '.join(stored['dtypes'])} in {files}"


def _memory_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    plan = facts["plan"]
    token = format_bytes(facts["kv_bytes_per_token"])
    chunk = f"prefill in chunks of {plan['chunk_tokens']:,} tokens"
    verdict = "[green]fits[/green]" if facts["fits"] else "[red]does not fit[/red]"
    return [
        ("weights", format_bytes(plan["weight_bytes"]), facts["dtype"]),
        ("KV cache", format_bytes(plan["kv_bytes"]), f"{token} per token"),
        ("workspace", format_bytes(plan["workspace_bytes"]), "inside a layer, or a decode step"),
        ("residual stream", format_bytes(plan["residual_bytes"]), chunk),
        ("together", format_bytes(plan["peak_bytes"]), verdict),
    ]


def _device_title(device: dict[str, Any]) -> str:
    size, usable = format_bytes(device["memory_bytes"]), format_bytes(device["usable_bytes"])
    name = device["name"] or "a GPU"
    return f"{name} with {size}, {usable} of it to use"


def _capacity_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    context, batch = facts["longest_context"], facts["largest_batch"]
    whole = ", all that the model can take" if context == facts["max_seq_len"] else ""
    longest = f"{context:,} tokens at batch {facts['batch']}{whole}" if context else "none"
    largest = f"{batch:,} at context {facts['context']:,}" if batch else "none"
    return [("longest context", longest), ("largest batch", largest)]

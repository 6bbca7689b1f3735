"""Each room imports only rooms below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the top floor to the ground; modules of one floor may import each other.
FLOORS = [
    {"__main__", "cli"},
    {"installation", "llm"},
    {"text", "generation", "requests", "pretrained"},
    {"decode_loop"},
    {"linen", "nnx", "module_call", "forward"},
    {"decoder", "layers", "embed_and_head", "positions"},
    {"arguments", "packing"},
    {"partition", "tensor_parallel", "capacity"},
    {"state", "placement", "plan", "pool", "persistent", "prepare", "masks", "checkpoint"},
    {"params", "rotary", "models", "compilation", "huge_pages"},
    {"config"},
]
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}


def imports(path: Path) -> set[str]:
    """Absolute names of all that a module imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT / "eet_jax").with_suffix("").parts[0]


MODULES = sorted((ROOT / "eet_jax").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_eet_jax_imports_downwards(path):
    if path == ROOT / "eet_jax" / "__init__.py":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "eet_jax" or len(parts) < 2:
            continue
        assert FLOOR[parts[1]] >= FLOOR[room(path)], f"{path.name} imports {name} from above"


@pytest.mark.parametrize("path", sorted((ROOT / "xla_ops").glob("*.py")), ids=lambda p: p.name)
def test_xla_ops_stand_alone(path):
    names = imports(path)
    assert not [name for name in names if name.startswith("eet_jax")]
    if path.name != "_ffi.py":
        seam = ("jax.ffi", "jax.extend", "jax.interpreters")
        assert not [name for name in names if name.startswith(seam)]


def test_kernels_do_not_include_xla():
    for path in (ROOT / "csrc" / "ops").iterdir():
        if "_cpu" in path.name or path.suffix in (".cu", ".cuh"):
            assert "xla/ffi" not in path.read_text()
            assert "core/ffi.h" not in path.read_text()


def test_nothing_imports_torch():
    for path in [*MODULES, *(ROOT / "xla_ops").glob("*.py")]:
        assert not [name for name in imports(path) if name.split(".")[0] == "torch"]

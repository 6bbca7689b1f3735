"""The pages are true: their examples run, their messages are raised, the reference is complete."""

from __future__ import annotations

import ast
import contextlib
import doctest
import os
import re
import shlex
from pathlib import Path
from unittest import mock

import jax
import pytest
from sybil.document import Document
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

from eet_jax import models
from eet_jax.cli import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WITH_EXAMPLES = [page for page in PAGES if "```python" in page.read_text()]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples(page, tmp_path, monkeypatch):
    directory = tmp_path / "path" / "to" / "hf-model"  # as the pages call it
    directory.parent.mkdir(parents=True)
    directory.symlink_to(models.resolve("eet-tiny"), target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    python = PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS)
    document = Document.parse(str(page), python, SkipParser())
    with plain_errors():
        for example in document.examples():
            example.evaluate()


@contextlib.contextmanager
def plain_errors():
    """Without the note on removed frames that JAX adds to errors."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    try:
        yield
    finally:
        jax.config.update("jax_traceback_filtering", before)


def public_names(package: str) -> set[str]:
    """Names that ``__init__`` imports as themselves, or lazily: `from a import b as b`."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }


@pytest.mark.parametrize("package", ["eet_jax", "xla_ops"])
def test_reference_has_every_public_name(package):
    text = (DOCS / "reference" / f"{package}.md").read_text()
    documented = set(re.findall(rf"^\.\. auto\w+:: {package}\.(\w+)", text, re.M))
    assert public_names(package) - documented == set()


def python_texts(path: Path) -> list[str]:
    """The strings of a module, with … for what is filled in."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
            texts.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


def native_texts(path: Path) -> list[str]:
    """The strings of a C++ file; what is filled in between them becomes …"""
    quote = "\0"
    joined = re.sub(r'"\s*"', "", path.read_text().replace('\\"', quote))
    filled = (re.sub(r'"\s*\+[^;"]*\+\s*"', "…", statement) for statement in joined.split(";"))
    return [text.replace(quote, '"') for text in filled]


def sources() -> list[str]:
    python = [*(ROOT / "eet_jax").rglob("*.py"), *(ROOT / "xla_ops").glob("*.py")]
    native = [*(ROOT / "csrc").rglob("*.cc"), *(ROOT / "csrc").rglob("*.h")]
    texts = [text for path in python for text in python_texts(path)]
    return texts + [text for path in native for text in native_texts(path)]


def messages() -> list[str]:
    """What the page on troubleshooting quotes in its headings, but for JAX's own messages."""
    text = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r"^### `(.+)`$", text, re.M)
    return [message for message in quoted if not message.startswith("Array has been deleted")]


def test_messages_are_raised():
    texts = sources()
    assert len(messages()) > 50
    assert [m for m in messages() if not any(m.strip("… ") in text for text in texts)] == []


def recorded_errors() -> list[tuple[str, str]]:
    """Command lines of the page on commands, and the errors that stand below them."""
    text = (DOCS / "commands.md").read_text()
    found = re.findall(r"^\$ eet-jax (.+)\n(error .+)$", text, re.M)
    return [(arguments, error) for arguments, error in found if "my-" not in arguments]


def test_recorded_errors(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.jsonl").write_text('"The king"\n{"text": 3}\n')
    monkeypatch.chdir(tmp_path)
    got = {}
    for arguments, _ in recorded_errors():
        with pytest.raises(SystemExit), mock.patch.dict(os.environ):
            main(shlex.split(arguments))
        got[arguments] = capsys.readouterr().err.strip().replace(f"{ROOT}/", "…/")
    assert len(got) > 10
    assert got == dict(recorded_errors())

"""What the pages need beyond Sphinx: pictures and tables made while building."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import command_options
import memory_table
from docutils import nodes
from flax import linen, nnx
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Picture(SphinxDirective):
    """A drawing of docs/pictures, inline so that it follows the theme; the content is a caption."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(f"pictures.{self.arguments[0]}")
        figure = nodes.figure("", nodes.raw("", module.draw().svg(), format="html"))
        text = self.parse_content_to_nodes()
        if text:
            figure += nodes.caption("", "", *text[0].children)
        return [figure]


class MemoryTable(SphinxDirective):
    """What ``eet_jax.plan`` says of the models that benchmarks and tests speak of."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(memory_table.markdown())


class CommandOptions(SphinxDirective):
    """What a command of the command line takes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(command_options.markdown(self.arguments[0]))


def _module_signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    annotation: str | None,
) -> tuple[str, None] | None:
    """A Flax module's own arguments: NNX hides them, Linen adds some. Types are in the text."""
    if what != "class" or not issubclass(obj, (linen.Module, nnx.Module)):
        return None
    parameters = list(inspect.signature(obj.__init__).parameters.values())
    own = [p.replace(annotation=p.empty) for p in parameters if p.name not in _NOT_OWN]
    return str(inspect.Signature(own)), None


_NOT_OWN = ("self", "parent", "name")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("picture", Picture)
    app.add_directive("memory-table", MemoryTable)
    app.add_directive("command-options", CommandOptions)
    app.connect("autodoc-process-signature", _module_signature)
    return {"parallel_read_safe": True}

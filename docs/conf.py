"""Sphinx: reference from docstrings, pages in MyST, pictures and tables made while building."""

from __future__ import annotations

import sys
from pathlib import Path

import eet_jax

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "benchmarks")]

project = "eet_jax"
author = "the eet_jax authors"
copyright = author
version = release = eet_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "extension",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["eet.css"]
html_title = f"eet_jax {release}"
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

smartquotes_action = "De"  # dashes and ellipses; "rms" is a string

# Docstrings write shapes as `[batch, seq]`.
default_role = "code"
napoleon_numpy_docstring = False
# As a list, in which one entry may describe several arguments.
napoleon_use_param = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
python_use_unqualified_type_names = True

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

nitpick_ignore_regex = [
    # Other libraries' names: their pages are not here.
    ("py:.*", r"(jax|jaxlib|flax|numpy|np|tokenizers|typing|pathlib|collections)\b.*"),
]

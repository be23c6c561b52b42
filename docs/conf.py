"""Sphinx: `make docs` builds the pages of this folder into build/docs."""

import re
from typing import Any

from sphinx.application import Sphinx

from mim4d import __version__

project = "mim4d"
copyright = author = "the mim4d developers"
version = release = __version__

exclude_patterns = ["evidence/details.md"]  # included in another page
extensions = [
    "myst_parser",  # Markdown pages can also be read in the repository
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autoclass_content = "both"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_title = f"mim4d {version}"
html_copy_source = False


def plain_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Mark command-line flags as code: docstrings leave them plain, because --help shows them too."""
    for number, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [re.sub(r"(?<![\w-])--[a-z][\w.-]*\b", r"``\g<0>``", part) for part in parts[::2]]
        lines[number] = "``".join(parts)
    if what in ("attribute", "data", "property"):
        # Napoleon reads "words: more words" as type and description unless something precedes it: an empty comment.
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    """Register the hooks; called by Sphinx."""
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon's, at 500

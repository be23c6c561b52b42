"""Sphinx: `make docs` builds the pages of this folder into build/docs."""

from typing import Any

from sphinx.application import Sphinx

from mim4d import __version__

project = "mim4d"
author = "the mim4d authors"
version = release = __version__

extensions = [
    "myst_parser",  # the pages are markdown, so that they also read well where the repository is browsed
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autoclass_content = "both"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False

html_theme = "furo"
html_title = f"mim4d {version}"
html_copy_source = False


def not_a_type(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes "type: meaning" for the form of an attribute's docstring; here a colon is just a colon."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", not_a_type, priority=400)  # before napoleon's, at 500

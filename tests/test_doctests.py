"""The examples in docstrings produce the output that stands below them."""

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "mim4d").rglob("*.py"))
}
NUMERIC = (
    *("geometry", "backbones.encoder", "backbones.convnext"),
    *("method.mask", "method.rng", "method.lift", "method.warp", "method.deformable", "method.temporal"),
    *("method.sampling", "method.field", "method.render", "method.losses", "method.model"),
)
"""Packages and modules whose public functions compute what can be checked by hand."""


def docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str, int]]:
    """The name, docstring and line of a module and of all classes and functions in it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield from docstrings(child, f"{name}.{child.name}")
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node, clean=False)):
        yield name, text, node.body[0].lineno - 1


# Found in the source, because doctest's own finder silently skips functions that a decorator of another module wraps.
EXAMPLES = [
    (module, *found)
    for module, path in MODULES.items()
    for found in docstrings(ast.parse(path.read_text()), module)
    if ">>>" in found[1]
]


@pytest.mark.parametrize(("module", "name", "text", "line"), EXAMPLES, ids=[name for _, name, *_ in EXAMPLES])
def test_an_example_produces_the_output_shown(module, name, text, line):
    names = {"torch": torch, **vars(importlib.import_module(module))}
    example = doctest.DocTestParser().get_doctest(text, names, name, str(MODULES[module]), line)
    output: list[str] = []
    results = doctest.DocTestRunner().run(example, out=output.append)
    assert results.failed == 0, "".join(output)


@pytest.mark.parametrize("module", NUMERIC)
def test_numeric_modules_have_examples(module):
    assert any(f"{name}.".startswith(f"mim4d.{module}.") for _, name, *_ in EXAMPLES)

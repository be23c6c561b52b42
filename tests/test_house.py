"""The package's imports: no circle, and none from a lower layer to a higher one, wherever in a file they stand."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    ("version", "errors", "bounds", "geometry"),
    ("clip", "io", "flags"),
    ("settings",),
    ("hub",),
    ("backbones",),
    ("method", "optim", "data", "world", "deploy"),
    ("roots",),
    ("eval",),
    ("pretrain", "integrations", "release", "show"),
    ("commands",),
)
"""What stands on what, from the ground up. Parts of one layer do not import each other."""
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "mim4d").rglob("*.py"))
}


def imports_of(module: str) -> Iterator[str]:
    """Modules of the package that one imports: at its top, in functions, and for type checkers."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        yield from (name for name in names if name in MODULES and name != module)


def part_of(module: str) -> str:
    """The part of the package that a module belongs to: the second word of its name."""
    return "commands" if module.endswith(".__main__") else module.split(".")[1]


def test_every_part_has_its_layer():
    parts = {part_of(module) for module in MODULES if "." in module}
    assert parts == {part for layer in LAYERS for part in layer}


def test_no_import_closes_a_circle():
    order = TopologicalSorter({module: set(imports_of(module)) for module in MODULES}).static_order()
    assert set(order) == set(MODULES)  # it raises CycleError, which names the circle


@pytest.mark.parametrize("module", [module for module in MODULES if "." in module])
def test_imports_go_down(module):
    level = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    for other in imports_of(module):
        if other == "mim4d":  # its public names
            continue
        same = part_of(other) == part_of(module)
        assert same or level[part_of(other)] < level[part_of(module)], f"{module} imports {other}"


def test_the_method_knows_neither_trainer_nor_settings_of_a_run():
    own = {"bounds", "clip", "geometry", "backbones", "method"}
    assert {part_of(other) for module in MODULES if ".method." in module for other in imports_of(module)} <= own


def test_data_and_geometry_know_no_flag_of_a_command():
    commands = {"mim4d.data.cli", "mim4d.data.check"}  # what mim4d-data itself prints
    texts = {
        f"{module}: {node.value}"
        for module in MODULES
        if part_of(f"{module}.") in ("data", "geometry", "method", "io", "world", "backbones")
        and module not in commands | {"mim4d.world.cli"}
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " --" in f" {node.value}"
    }
    assert {text for text in texts if "docker" not in text} == set()

"""Roots in nuScenes format with accidents in tables, files and names. Seeded."""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from tests.data.roots import VERSION
from tests.fuzz.files import image_files, lidar_files

TABLES = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor", "splits")
TEXTS = (
    "",
    " ",
    "..",
    "/etc/passwd",
    "../../x",
    "~",
    "a\0b",
    "a\nb",
    "\x1b[31mred",
    "\ud800",
    "x" * 3000,
    "null",
    "ä/ö",
    "C:\\x",
)
NUMBERS = (0, -1, 1, 0.5, 1e300, -1e300, 1e-300, 10**30, -(10**30), 2**63, float("nan"), float("inf"), 1e18, 1e9, 65536)
OTHERS = (None, True, False, [], {}, [[]], [None], {"a": 1}, [1, 2, 3], [0, 0, 0, 0], [[1, 0, 0], [0, 1, 0], [0, 0, 1]])


def mutate(base: Path, root: Path, seed: int) -> list[str]:
    """Copy a root and let one to three accidents happen to it; what they were."""
    rng = np.random.default_rng(seed)
    shutil.copytree(base, root)
    accidents = (_value, _value, _value, _column, _rows, _table, _file, _file, _names, _whole_column)
    return [accidents[rng.integers(len(accidents))](root, rng) for _ in range(rng.integers(1, 4))]


def pick(rng, choices):
    """One of some choices."""
    return choices[int(rng.integers(len(choices)))]


def value(rng):
    """A value that a column seldom has."""
    return pick(rng, pick(rng, (TEXTS, NUMBERS, OTHERS)))


def _edit(root, table, edit):
    """Change a table's rows; a table that another accident has spoilt stays."""
    path = root / VERSION / f"{table}.json"
    if not path.is_file():  # such as a pipe
        return
    try:
        rows = json.loads(path.read_bytes())
        rows = edit(rows)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError):
        return
    path.write_text(json.dumps(rows))


def _value(root, rng):
    """One value of one row, or a number within it."""
    table, new = pick(rng, TABLES[:-1]), value(rng)
    place, within = int(rng.integers(1000)), rng.random() < 0.3

    def edit(rows):
        row = rows[place % len(rows)]
        name = pick(rng, sorted(row))
        if within and isinstance(row[name], list) and row[name]:
            row[name][place % len(row[name])] = new
        else:
            row[name] = new
        return rows

    _edit(root, table, edit)
    return f"{table}: a value is {new!r:.40}"


def _whole_column(root, rng):
    table = pick(rng, TABLES[:-1])
    factor = pick(rng, (0, 1e-6, 1e-3, 1e3, -1, 1e30))

    def edit(rows):
        name = pick(rng, sorted(rows[0]))
        return [row | {name: row[name] * factor if isinstance(row[name], (int, float)) else row[name]} for row in rows]

    _edit(root, table, edit)
    return f"{table}: a column times {factor}"


def _column(root, rng):
    table = pick(rng, TABLES[:-1])

    def edit(rows):
        name, all_rows = pick(rng, sorted(rows[0])), rng.random() < 0.5
        for row in rows if all_rows else rows[:1]:
            row.pop(name, None)
        return rows

    _edit(root, table, edit)
    return f"{table}: a column is missing"


def _rows(root, rng):
    table, kind = pick(rng, TABLES[:-1]), pick(rng, ("doubled", "removed", "none", "mixed", "another type"))
    place = int(rng.integers(1000))

    def edit(rows):
        number = place % len(rows)
        if kind == "doubled":
            return [*rows, rows[number]]
        if kind == "removed":
            return rows[:number] + rows[number + 1 :]
        if kind == "none":
            return []
        if kind == "mixed":
            return [rows[i] for i in rng.permutation(len(rows))]
        return [*rows, value(rng)]

    _edit(root, table, edit)
    return f"{table}: rows {kind}"


def _table(root, rng):
    """The table's file."""
    table = pick(rng, TABLES)
    path = root / VERSION / f"{table}.json"
    kind = pick(
        rng, ("missing", "cut", "empty", "deep", "digits", "utf-16", "bytes", "folder", "pipe", "loop", "other")
    )
    content = path.read_bytes() if path.is_file() else b"{}"
    if path.is_dir():
        return "nothing"
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind != "missing":
        place = int(rng.integers(len(content) + 1))
        path.write_bytes(
            {
                "cut": content[:place],
                "empty": b"",
                "deep": b"[" * 200_000,
                "digits": b"[" + b"9" * 10_000 + b"]",
                "utf-16": content.decode(errors="replace").encode("utf-16"),
                "bytes": content[:place] + rng.bytes(3) + content[place:],
                "other": json.dumps(value(rng)).encode(),
            }[kind]
        )
    return f"{table}: {kind}"


def _file(root, rng):
    """An image or sweep."""
    files = sorted(path for path in (root / "samples").rglob("*.*") if not path.is_dir())
    path = pick(rng, files)
    make = lidar_files if path.name.endswith(".bin") else image_files
    ((name, write),) = make(int(rng.integers(1 << 30)), 1)
    path.unlink()
    write(path)
    return f"{path.name}: {name}"


def _names(root, rng):
    """Names of scenes and sensors."""
    table, column = pick(rng, (("scene", "name"), ("sensor", "channel"), ("sensor", "modality")))
    new = pick(rng, (*TEXTS, "train", "LIDAR_TOP", "CAM_FRONT", "lidar", "camera", "radar", "a,b", "-x", "--cameras"))
    _edit(root, table, lambda rows: [row | {column: new} if i == 0 else row for i, row in enumerate(rows)])
    return f"{table}: {column} is {new!r:.40}"

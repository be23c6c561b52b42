"""Access to the nuscenes-devkit: its official splits, and its reader of a root."""

from pathlib import Path
from typing import Any

from ..errors import UserError
from .columns import Fault, is_name, read_json, shown


def read_splits(folder: Path, faults: list[Fault]) -> dict[str, list[str]]:
    """Read the official splits, and those of a root in ``splits.json``, in the format of the devkit.

    Args:
        folder: Folder of the tables.
        faults: Faults found so far; those of ``splits.json`` are added.

    Returns:
        Scene names of each split.

    Raises:
        UserError: If the devkit is not installed.
    """
    try:
        from nuscenes.utils.splits import create_splits_scenes
    except ModuleNotFoundError as error:
        raise UserError(f"reading nuScenes needs {error.name}: pip install 'mim4d[pretrain]'") from error

    splits = {name: list(scenes) for name, scenes in create_splits_scenes().items()}
    path = folder / "splits.json"
    if not path.exists():
        return splits
    expected = 'expected {"split": ["scene name", ...], ...}'
    try:
        own = read_json(path)
    except ValueError as error:
        faults.append(Fault(path.name, f"{error}; {expected}"))
        return splits
    if not isinstance(own, dict):
        faults.append(Fault(path.name, expected, "", shown(own)))
        return splits
    bad = [
        name
        for name, scenes in own.items()
        if not is_name(name) or not isinstance(scenes, list) or not all(map(is_name, scenes))
    ]
    if bad:
        faults.append(Fault(path.name, expected, f"split {shown(bad[0])}", shown(own[bad[0]]), len(bad)))
    return splits | {name: scenes for name, scenes in own.items() if name not in bad}


def open_devkit(root: Path, version: str) -> Any:
    """Open a root with the nuscenes-devkit.

    Raises:
        UserError: If the devkit is not installed or cannot open the root.
    """
    try:
        from nuscenes.nuscenes import NuScenes  # an extra, and slow to import
    except ModuleNotFoundError as error:
        raise UserError(f"reading nuScenes needs {error.name}: pip install 'mim4d[pretrain]'") from error
    for path in sorted((root / version).glob("*.json")):
        if path.is_file() and _first_bytes(path) in (b"\xef\xbb", b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path}: the nuscenes-devkit expects UTF-8 without a byte order mark: convert the table")
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except Exception as error:  # a broken root makes the devkit raise errors of any type
        raise UserError(
            f"the nuscenes-devkit cannot open {root / version} ({type(error).__name__}: {error}): "
            "is the download complete?"
        ) from error


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)

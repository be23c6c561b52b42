"""The team's hub: the one place that names without packaged weights are loaded from.

It is an organisation on the Hub (``MIM4D_HUB=acme``, whose repositories are ``acme/mim4d_convnext_base``, ...) or a
folder (``MIM4D_HUB=/shared/zoo`` with ``mim4d_convnext_base/config.json``, ...). Only the user names it. Without it no
name is looked up anywhere, so weights that a stranger publishes under the name of a model are never loaded.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError

VARIABLE = "MIM4D_HUB"


@dataclass(frozen=True)
class TeamHub:
    """An organisation on the Hub, or a folder."""

    place: str
    """Name of the organisation, or path of the folder."""
    set_by: str
    """What the user set, for error messages."""

    @property
    def folder(self) -> Path | None:
        """The folder; None for an organisation."""
        return Path(self.place).expanduser() if _is_path(self.place) else None

    def where(self, model: str, tag: str | None = None) -> str:
        """Name of the place of a model: ``acme/mim4d_convnext_base@v1``, or a folder ``.../mim4d_convnext_base.v1``.

        Raises:
            UserError: If the tag has characters that names of tags do not have.
        """
        if tag is not None and not re.fullmatch(r"\w[\w.-]*", tag):
            raise UserError(f"{model}.{tag}: a tag has letters, digits and - _ . only")
        if self.folder:
            return str(self.folder / (f"{model}.{tag}" if tag else model))
        return f"{self.place}/{model}{f'@{tag}' if tag else ''}"


_used: list[TeamHub | None] = []
"""What :func:`set_hub` has set in this process; empty if it was not called."""


def set_hub(place: str | Path | None) -> None:
    """Name the hub of this process; see :func:`mim4d.hub.use`, which also lists its names."""
    if isinstance(place, Path) and not _is_path(str(place)):
        place = f"./{place}"
    _used[:] = [_hub(str(place), "mim4d.hub.use") if place is not None else None]


def team_hub() -> TeamHub | None:
    """Return the team's hub from :func:`mim4d.hub.use`, ``MIM4D_HUB`` or the config file, in this order; None if unset.

    Raises:
        UserError: If the value is neither an organisation nor a folder, or the config file cannot be read.
    """
    if _used:
        return _used[0]
    if value := os.environ.get(VARIABLE, "").strip():
        return _hub(value, f"{VARIABLE}={value}")
    file = config_file()
    filed = _read(file).get("hub") if file.is_file() else None
    return _hub(str(filed), f"hub: {filed} in {file}") if filed is not None else None


def config_file() -> Path:
    """Return the user's config file: ``mim4d/config.yaml`` in ``XDG_CONFIG_HOME``, which is ``~/.config`` if unset."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "mim4d" / "config.yaml"


def _read(file: Path) -> dict[str, Any]:
    import yaml  # comes with huggingface_hub; imported only if there is a file

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not values.keys() <= {"hub"}:
        raise UserError(f"{file}: expected one line, such as hub: ORG or hub: /path/of/a/folder")
    return values


def _hub(place: str, set_by: str) -> TeamHub:
    if not _is_path(place) and not re.fullmatch(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?", place):
        raise UserError(f"{set_by}: expected an organisation on the Hub, or a folder such as /shared/zoo or ./zoo")
    return TeamHub(place, set_by)


def _is_path(place: str) -> bool:
    """Return whether a place is written as a path; an organisation's name is none, even if such a folder exists."""
    return "://" not in place and ("/" in place or place.startswith(("~", ".")))

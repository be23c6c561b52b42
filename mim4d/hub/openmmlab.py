"""Read OpenMMLab checkpoints, such as the MIM4D and UniPAD releases, and write them for mmdet and mmpretrain.

These checkpoints are pickles with a ``state_dict``. They are read with torch's ``weights_only``, which runs no code,
and written with tensors and text only, so that others can read them in the same way.
"""

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor

from ..errors import WeightsError
from ..io.files import make_folder, write_file
from ..io.tensors import differences, read_tensors
from ..version import __version__
from .names import BACKBONES, CLASSIFIERS, split_backbone, to_openmmlab_names, to_timm_names


@dataclass(frozen=True)
class Converted:
    """The image backbone of a checkpoint."""

    model: str
    """mim4d's name of the architecture."""
    tensors: dict[str, Tensor]
    """By timm's names."""
    dropped: list[str]
    """The checkpoint's names of all other tensors."""
    added: list[str]
    """timm's names of a head norm that the checkpoint lacks; it is the identity, as in a new model."""

    def report(self) -> str:
        """Describe what was kept, dropped and added, in one line."""
        parts = Counter(_part(name) for name in self.dropped)
        dropped = ", ".join(f"{count} of {part}" for part, count in parts.most_common()) or "nothing"
        report = f"{len(self.tensors)} tensors of the image backbone, a {self.model}; dropped: {dropped}"
        return f"{report}; not in the file, so initialised: {', '.join(self.added)}" if self.added else report


def _part(name: str) -> str:
    """Return the part of a checkpoint that a dropped tensor belongs to: its module, or in the backbone its own name."""
    for prefix in BACKBONES:
        if name.startswith(prefix):
            return prefix + name.removeprefix(prefix).partition(".")[0]
    return name.partition(".")[0]


def convert_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Convert the image backbone of an OpenMMLab checkpoint to a state dict of timm.

    ``timm.create_model("convnext_small", num_classes=0).load_state_dict(convert_checkpoint(path))`` then computes the
    features of the checkpoint's backbone. The output norm ``norm3`` becomes ``head.norm``, which timm applies after
    pooling. A ResNet must have mmdet's ``style="pytorch"``: the other style has the same names and shapes, but computes
    another function.

    Args:
        path: A ``.pth`` file of MIM4D, UniPAD, mmdet or mmpretrain, or another file of ConvNeXt or ResNet weights.

    Returns:
        The tensors by timm's names.

    Raises:
        WeightsError: If the file cannot be read, would run code, or has no backbone that mim4d knows.
    """
    return read_backbone(Path(path)).tensors


def read_backbone(path: Path) -> Converted:
    """Convert a checkpoint as :func:`convert_checkpoint` does, and report its architecture and what was dropped.

    Args:
        path: As for :func:`convert_checkpoint`.

    Raises:
        WeightsError: As for :func:`convert_checkpoint`.
    """
    tensors = read_tensors(path)
    backbone, dropped = split_backbone(tensors, str(path))
    nearest: tuple[str, list[str]] = ("", [])
    for name in timm.list_models(_family(backbone, path)):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        try:
            renamed = to_timm_names(backbone, model, str(path))
        except WeightsError:
            continue
        own = model.state_dict()
        kept = {key: tensor for key, tensor in renamed.items() if not key.startswith(CLASSIFIERS)}
        norm = {"head.norm.weight": torch.ones, "head.norm.bias": torch.zeros}
        added = [key for key in norm if key in own and key not in kept]
        kept |= {key: norm[key](own[key].shape) for key in added}
        problems = differences(own, kept)
        if not problems:
            return Converted(name, kept, [*dropped, *(key for key in renamed if key not in kept)], added)
        if not nearest[1] or len(problems) < len(nearest[1]):
            nearest = name, problems
    hint = f"; the closest is {nearest[0]}, but {nearest[1][0]}" if nearest[1] else ""
    raise WeightsError(f"{path}: mim4d does not have the architecture of its image backbone{hint}")


def _family(backbone: Mapping[str, Tensor], path: Path) -> str:
    """Return a pattern for mim4d's names of the architectures that a backbone may have."""
    if "layer1.0.conv1.weight" in backbone:
        return "mim4d_resnet*"
    if any(name.startswith(("downsample_layers.", "stem.")) for name in backbone):
        return "mim4d_convnextv2_*" if any(".grn." in name for name in backbone) else "mim4d_convnext_*"
    raise WeightsError(f"{path} has no ConvNeXt or ResNet: expected one under {' or '.join(BACKBONES)}, or on its own")


def write_checkpoint(
    tensors: Mapping[str, Tensor], path: Path, *, prefix: str = "backbone.", release: bool = False
) -> None:
    """Write a backbone as an OpenMMLab checkpoint, atomically.

    Args:
        tensors: By timm's names.
        path: The ``.pth`` file.
        prefix: Prefix of the names: ``backbone.`` for ``init_cfg=dict(type="Pretrained", checkpoint=path,
            prefix="backbone.")``, ``img_backbone.`` for ``load_from`` of a BEV detector.
        release: Whether to use the names of the MIM4D and UniPAD releases for ConvNeXt blocks, not mmpretrain's.

    Raises:
        UserError: If the file cannot be written; an old file stays.
    """
    checkpoint = {
        "meta": {"mim4d": __version__},
        "state_dict": to_openmmlab_names(tensors, prefix=prefix, release=release),
    }
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    make_folder(path.parent)
    write_file(path, lambda partial: partial.write_bytes(buffer.getbuffer()))

"""OpenMMLab checkpoints: those of the MIM4D and UniPAD releases read, those for mmdet and mmpretrain written.

A checkpoint of theirs is a pickle with a ``state_dict``. It is read with torch's ``weights_only``, so nothing in it is
run, and written with tensors and text alone, so others can read it that way.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor

from ..errors import UserError, WeightsError
from ..io.tensors import differences, read_tensors
from ..version import __version__
from .names import BACKBONES, CLASSIFIERS, split_backbone, to_openmmlab_names, to_timm_names


@dataclass(frozen=True)
class Converted:
    """An image backbone taken out of a checkpoint."""

    model: str
    """Our name of its architecture."""
    tensors: dict[str, Tensor]
    """By timm's names."""
    dropped: list[str]
    """The checkpoint's names of everything else."""
    made_up: list[str]
    """timm's names of head norms that the checkpoint has not: they are as in a new model, the identity."""

    def report(self) -> str:
        """What was kept and dropped, in one line."""
        parts = Counter(_part(name) for name in self.dropped)
        dropped = ", ".join(f"{count} of {part}" for part, count in parts.most_common()) or "nothing"
        told = f"{len(self.tensors)} tensors of the image backbone, a {self.model}; dropped: {dropped}"
        return f"{told}; not in it, so as in a new model: {', '.join(self.made_up)}" if self.made_up else told


def _part(name: str) -> str:
    """What to count a dropped tensor under: the module it is of, and within the backbone the tensor's own name."""
    for prefix in BACKBONES:
        if name.startswith(prefix):
            return prefix + name.removeprefix(prefix).partition(".")[0]
    return name.partition(".")[0]


def convert_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The image backbone of an OpenMMLab checkpoint as timm's state dict.

    ``timm.create_model("convnext_small", num_classes=0).load_state_dict(convert_checkpoint(path))`` then computes what
    the checkpoint's backbone does; the output norm ``norm3`` becomes ``head.norm``, which timm applies after pooling.
    A ResNet has to be of mmdet's ``style="pytorch"``: those of the other style look the same, but are another network.

    Args:
        path: A ``.pth`` file of MIM4D, UniPAD, mmdet or mmpretrain; other ConvNeXt and ResNet weights do as well.

    Raises:
        WeightsError: If it cannot be read, wants code to be run, or has no backbone of an architecture of ours.
    """
    return read_backbone(Path(path)).tensors


def read_backbone(path: Path) -> Converted:
    """Like :func:`convert_checkpoint`, and say which architecture it is and what was dropped."""
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
        made_up = [key for key in norm if key in own and key not in kept]
        kept |= {key: norm[key](own[key].shape) for key in made_up}
        problems = differences(own, kept)
        if not problems:
            return Converted(name, kept, [*dropped, *(key for key in renamed if key not in kept)], made_up)
        if not nearest[1] or len(problems) < len(nearest[1]):
            nearest = name, problems
    hint = f"; nearest is {nearest[0]}, but {nearest[1][0]}" if nearest[1] else ""
    raise WeightsError(f"{path}: its image backbone is of no architecture of mim4d's{hint}")


def _family(backbone: Mapping[str, Tensor], path: Path) -> str:
    """A pattern for our names of the architectures that a backbone can be of."""
    if "layer1.0.conv1.weight" in backbone:
        return "mim4d_resnet*"
    if any(name.startswith(("downsample_layers.", "stem.")) for name in backbone):
        return "mim4d_convnextv2_*" if any(".grn." in name for name in backbone) else "mim4d_convnext_*"
    raise WeightsError(f"{path} holds no ConvNeXt or ResNet, neither under {' or '.join(BACKBONES)} nor on its own")


def write_checkpoint(
    tensors: Mapping[str, Tensor], path: Path, *, prefix: str = "backbone.", release: bool = False
) -> None:
    """Write an OpenMMLab checkpoint of a backbone, whole or not at all.

    Args:
        tensors: By timm's names.
        path: The ``.pth`` file.
        prefix: What the names shall begin with: ``backbone.`` for ``init_cfg=dict(type="Pretrained", checkpoint=path,
            prefix="backbone.")``, ``img_backbone.`` for ``load_from`` of a BEV detector.
        release: ConvNeXt blocks as the MIM4D and UniPAD releases name them, not as mmpretrain does.

    Raises:
        UserError: If the file cannot be written; what was there stays.
    """
    checkpoint = {
        "meta": {"mim4d": __version__},
        "state_dict": to_openmmlab_names(tensors, prefix=prefix, release=release),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = Path(folder) / path.name
            torch.save(checkpoint, partial)
            partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError when the disk is full
        raise UserError(f"cannot write {path}: {error}") from error

"""``mim4d-show``: the features of a backbone in colour."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ..backbones.named import open_backbone
from ..backbones.pyramid import patch_of
from ..errors import UserError, printable
from ..flags import ArgumentParser, report_user_errors, text
from .features import stages_of
from .page import save_pages

if TYPE_CHECKING:
    from .depth import Depth

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MOST = 6
"""Images that are chosen from a folder."""
TARGET = 704
"""Width to which images are resized without ``--size``, pixels; rounded to a multiple of the patch."""


def main(argv: list[str] | None = None) -> None:
    """Run the command; a UserError is one line on stderr and exit code 2."""
    given = make_parser().parse_args(argv)
    with report_user_errors():
        _show(given)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of :func:`main`."""
    parser = ArgumentParser(
        prog="mim4d-show",
        description="Show the features of a backbone in colour: for each stage, the first three principal components "
        "over all images together are red, green and blue. For a folder in nuScenes format with LiDAR, also show the "
        "depth that a linear function reads off the features. Writes features.png and index.html.",
    )
    parser.add_argument(
        "backbone", type=text, metavar="BACKBONE", help="a run, an encoder folder, a timm name, or ORG/NAME on the Hub"
    )
    parser.add_argument(
        "images",
        type=_path,
        nargs="+",
        metavar="IMAGES",
        help=f"image files; a folder of images ({MOST} of them); or a folder in nuScenes format (one per camera)",
    )
    parser.add_argument("--out", type=_path, default=Path("runs/show"), metavar="DIR", help="folder (runs/show)")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help=f"resize images to this; default: {TARGET} pixels wide"
    )
    return parser


def _path(value: str) -> Path:
    return Path(text(value)).expanduser()


def _show(given: argparse.Namespace) -> None:
    files = [file for path in given.images for file in find_images(path)]
    model = open_backbone(given.backbone)
    images = read_images(files, patch_of(model), given.size)
    expected = resolve_model_data_config(model)
    mean, std = (torch.tensor(expected[name]).view(3, 1, 1) for name in ("mean", "std"))

    def normalise(x: Tensor) -> Tensor:
        return (x - mean) / std

    stages, visible = stages_of(model, normalise(images))
    depth = None
    if len(given.images) == 1 and next(given.images[0].glob("*/sample.json"), None):
        depth = _read_depth(model, normalise, given.images[0], files, images)
    names = [f"{file.parent.name}/{file.name}" for file in files]
    save_pages(given.out, given.backbone, names, images, stages, visible, depth)
    for stage in stages:
        print(f"stride {stage.stride}: three components have {stage.explained:.0%} of the variance")
    print(printable(f"written: {given.out / 'features.png'} and {given.out / 'index.html'}"))


def _read_depth(
    model: Any, normalise: Callable[[Tensor], Tensor], root: Path, files: list[Path], images: Tensor
) -> "Depth | None":
    """Depth of the images, where the folder has what that takes; else say why there is none."""
    try:
        from .depth import depth_by_probe  # it needs what reads nuScenes' tables, which features do not

        return depth_by_probe(model, normalise, root, files, images)
    except ImportError:
        print("no depth is shown: that needs pip install 'mim4d[pretrain]'")
    except UserError as error:
        print(printable(f"no depth is shown: {error}"))
    return None


def find_images(path: Path) -> list[Path]:
    """Return the images to show: a file, some of a folder, or the middle one of each camera of a nuScenes folder.

    Raises:
        UserError: If there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no such file or folder: {path}")
    folders = sorted(each for each in (path / "samples").glob("*") if each.is_dir())
    per_camera = [files for each in folders if (files := _images_in(each))]
    if per_camera:
        return [files[len(files) // 2] for files in per_camera]
    files = _images_in(path)
    if not files:
        raise UserError(f"no images in {path}: expected files such as .jpg or .png, or samples/CAMERA/ with them")
    count = min(MOST, len(files))
    return [files[(2 * i + 1) * len(files) // (2 * count)] for i in range(count)]


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def read_images(files: list[Path], patch: int, size: Any) -> Tensor:
    """Read images and resize them to one size.

    Args:
        files: The images.
        patch: Height and width are multiples of it, pixels.
        size: (H, W); None for :data:`TARGET` pixels in width, with the proportions of the first image.

    Returns:
        [N, 3, H, W] from 0 to 1.

    Raises:
        UserError: If a file is not an image, or the size is not a multiple of the patch.
    """
    found = []
    for file in files:
        try:
            with Image.open(file) as image:
                found.append(image.convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read {file}: {error}") from error
    if size is None:
        ratio = found[0].height / found[0].width
        size = [max(patch, round(side / patch) * patch) for side in (TARGET * ratio, TARGET)]
    if any(not patch <= side <= 8192 or side % patch for side in size):
        near = " ".join(str(min(8192 // patch, max(1, round(side / patch))) * patch) for side in size)
        raise UserError(f"`size` {size[0]} {size[1]}: both must be multiples of {patch}, such as {near}")
    resized = [image.resize((size[1], size[0]), Image.Resampling.BICUBIC) for image in found]
    return torch.stack([pil_to_tensor(image) for image in resized]).float() / 255

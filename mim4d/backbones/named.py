"""Pretrained backbones by name, from a folder or from the Hub, as models that return their maps."""

from pathlib import Path
from typing import Any

import timm
from timm.layers import Format

from ..errors import UserError
from ..hub.folder import FAMILY
from ..hub.load import layers_left_out
from ..hub.pull import encoder_from_pretrained
from ..hub.sources import from_anywhere, looks_like_path
from ..io.tensors import first_line
from .pyramid import any_size, pyramid_of


def open_backbone(source: str, image_size: tuple[int, int] | None = None) -> Any:
    """Load a pretrained backbone that returns a list of feature maps, in evaluation mode.

    Args:
        source: A timm name, mim4d's among them; a run; an encoder folder; or ``org/name`` or ``hf-hub:org/name`` on the
            Hub, with ``@revision`` for another than the newest.
        image_size: (H, W) of all images, pixels: the position embeddings of a ViT are resampled once, on loading. None
            accepts images of any size: they are resampled in each forward pass.

    Returns:
        A timm model created with ``features_only=True``; :func:`pyramid_of` says which maps to use.

    Raises:
        UserError: If there are no such weights, they are damaged, the maps have channels last, or the size is not a
            multiple of the coarsest stride.
    """
    model = _load(source)
    if getattr(model, "output_fmt", Format.NCHW) != Format.NCHW:
        raise UserError(f"{source}: its maps have channels last, as those of Swin do; expected channels first")
    stride = pyramid_of(model).strides[-1]
    if image_size and any(side < stride or side % stride for side in image_size):
        near = " ".join(str(max(stride, round(side / stride) * stride)) for side in image_size)
        raise UserError(f"`size` {image_size[0]} {image_size[1]}: both must be multiples of {stride}, such as {near}")
    if image_size and getattr(getattr(model, "model", model), "dynamic_img_size", False):
        return _load(source, img_size=image_size, dynamic_img_size=False)
    return model


def _load(source: str, **arguments: Any) -> Any:
    """Return the model of a source, with arguments for timm."""
    try:
        if looks_like_path(source) or "/" in source or Path(source).expanduser().exists():
            return encoder_from_pretrained(source, features_only=True, **arguments)
        if not source.startswith(FAMILY):
            from_anywhere(source)  # downloads and verifies the weights, with errors of one line
        arguments = {**any_size(source), **arguments}
        with layers_left_out():
            return timm.create_model(source, pretrained=True, features_only=True, **arguments).eval()
    except UserError:
        raise
    except Exception as error:  # timm, the Hub's client and the models raise all kinds
        raise UserError(f"{source}: {first_line(error)}") from error

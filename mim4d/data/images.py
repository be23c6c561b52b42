"""JPEG files to images of the size the model sees, with the intrinsics that belong to them."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import BadDataError, UserError
from ..geometry import crop_intrinsics, resize_intrinsics
from .files import read_bytes

END_OF_JPEG = b"\xff\xd9"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How an image is made to fit: scaled to the full width, then rows cut from the top, where the sky is.

    Both may be fractional, so that the scale is the same along both axes whatever the sizes.
    """

    scale: float
    """New size / size in the tables."""
    top: float
    """Rows cut off the scaled image, in its pixels."""

    @classmethod
    def of(cls, size: tuple[int, int], image_size: tuple[int, int]) -> "Fit":
        """The fit of an image of ``size`` (height, width) to ``image_size`` (height, width), pixels.

        Raises:
            UserError: If the scaled image is lower than asked for.
        """
        scale = image_size[1] / size[1]
        top = scale * size[0] - image_size[0]
        if top < -1e-6:
            raise UserError(
                f"images of {size[1]}x{size[0]} scaled to {image_size[1]} wide are {scale * size[0]:.0f} high, "
                f"lower than --image-size {image_size[0]} {image_size[1]}: ask for fewer rows"
            )
        return cls(scale=scale, top=max(top, 0.0))

    def intrinsics(self, intrinsics: Tensor) -> Tensor:
        """Intrinsics [..., 3, 3] of the image that fits, from those of the image in the tables."""
        return crop_intrinsics(resize_intrinsics(intrinsics, self.scale, self.scale), 0.0, self.top)


def read_image(path: Path, size: tuple[int, int], image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read an image and make it fit.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is still large enough (the decoder then skips the
    high frequencies, which is both the fastest and a properly filtered reduction); one filtered resize does the rest.

    Args:
        path: The file.
        size: (height, width) in the tables, to which the calibration belongs. The file itself may have been scaled.
        image_size: (H, W) wanted, pixels.

    Returns:
        [3, H, W] uint8, RGB.

    Raises:
        BadDataError: If the file is missing, truncated or no image, or has other proportions than the tables say.
        UserError: If the image is lower than wanted, see :meth:`Fit.of`.
    """
    height, width = image_size
    fit = Fit.of(size, image_size)
    data = read_bytes(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            full_width, full_height = image.size
            if abs(full_width * size[0] - full_height * size[1]) > max(full_width, full_height, *size):
                raise BadDataError(
                    str(path), f"the image is {full_width}x{full_height} where the tables say {size[1]}x{size[0]}"
                )
            if image.format == "JPEG" and END_OF_JPEG not in data[-1024:]:
                # Pillow refuses these too, but any library of the process can tell it not to.
                raise BadDataError(str(path), "the image is truncated")
            drafted = image.draft("RGB", (width, int(fit.scale * size[0])))
            # How far the picture reaches in the decoded image, whose last row and column may be partly padding.
            right, bottom = drafted[1][2:] if drafted else image.size
            box = (0.0, bottom * fit.top / (fit.scale * size[0]), right, bottom)
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR, box=box)
            return np.stack([np.asarray(channel) for channel in resized.split()])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadDataError(str(path), f"the image cannot be decoded ({error})") from error

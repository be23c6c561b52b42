"""Image files to images of the size the model sees, with the intrinsics that belong to them."""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from ..errors import BadDataError, UserError
from ..geometry import crop_intrinsics, resize_intrinsics
from .files import read_bytes
from .lenses import Lens, undistort

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000")
"""Of Pillow's formats, those that cameras' images come in. Every further decoder would be more to attack."""
MOST_PIXELS = 89_478_485
"""Of an image, whatever the tables say; Pillow's own limit, which other libraries switch off for the whole process."""
MOST_ENLARGED = 4
"""How many times wider than in the tables a file's image may be."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bits per pixel that cameras deliver in 16-bit files, in the low bits."""
WHITE_IS_ZERO = (262, 0)
"""TIFF's tag PhotometricInterpretation, and its value for grey that runs from white to black."""
MARKER = re.compile(rb"\xff+([^\x00\xff])")
"""What is neither data of a JPEG's scan nor fill."""


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
                f"lower than `image_size` {image_size[0]} {image_size[1]}: ask for fewer rows"
            )
        return cls(scale=scale, top=max(top, 0.0))

    def intrinsics(self, intrinsics: Tensor) -> Tensor:
        """Intrinsics [..., 3, 3] of the image that fits, from those of the image in the tables."""
        return crop_intrinsics(resize_intrinsics(intrinsics, self.scale, self.scale), 0.0, self.top)


def read_image(
    path: Path,
    size: tuple[int, int],
    image_size: tuple[int, int],
    lens: Lens | None = None,
    bits: int | None = None,
) -> NDArray[np.uint8]:
    """Read an image, undistort it and make it fit.

    The pixels are taken as they are stored, because that is what a calibration is of: a tag that tells viewers to turn
    the image is ignored, and so is transparency.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is still large enough (the decoder then skips the
    high frequencies, which is both the fastest and a properly filtered reduction); one filtered resize does the rest.

    Args:
        path: The file, in one of :data:`FORMATS`.
        size: (height, width) in the tables, to which the calibration belongs. The file itself may have been scaled.
        image_size: (H, W) wanted, pixels.
        lens: How the camera distorts, if it does.
        bits: Bits per pixel of the camera's 16-bit grey, as :func:`find_bits` finds them; brighter pixels become white.
            None takes the fewest that hold this image.

    Returns:
        [3, H, W] uint8, RGB.

    Raises:
        BadDataError: If the file is missing, truncated or no image, holds what is not 8-bit or 16-bit colour or grey,
            or has other proportions than the tables say.
        UserError: If the image is lower than wanted, see :meth:`Fit.of`.
    """
    height, width = image_size
    fit = Fit.of(size, image_size)
    full_height = fit.scale * size[0]
    rgb, right, bottom = _decode(path, size, (int(full_height), width), bits)
    if lens is not None:
        whole = rgb.resize((width, round(full_height)), Image.Resampling.BILINEAR, box=(0, 0, right, bottom))
        return undistort(np.array(whole), lens, size, image_size, fit.top / fit.scale)
    box = (0.0, bottom * fit.top / full_height, right, bottom)
    resized = rgb.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.stack([np.asarray(channel) for channel in resized.split()])


def find_bits(images: Iterable[tuple[Path, tuple[int, int]]]) -> int | None:
    """Find how many bits of its 16-bit grey a camera uses, so that all its images have one scale.

    A scale per image would make the brightness jump between images, by a factor of 4 where one of 12 bits is dark.

    Args:
        images: File and (height, width) in the tables of some images of one camera. Those that cannot be read are left
            out.

    Returns:
        The fewest of :data:`DEPTHS` that hold all of the images; None if they are not integers of more than 8 bits.
    """
    bits = None
    for path, size in images:
        try:
            with Image.open(io.BytesIO(read_bytes(path)), formats=FORMATS) as image:
                if not image.mode.startswith("I"):
                    return None
                _check_header(image, size)
                high = int(np.asarray(image).max())
        except Exception:  # named when it is read for a clip
            continue
        bits = max(bits or 0, _depth(high))
    return bits


class _RefusedError(Exception):
    """What is wrong with an image that could be decoded."""


def _decode(
    path: Path, size: tuple[int, int], wanted: tuple[int, int], bits: int | None
) -> tuple[Image.Image, float, float]:
    """Decode a file to 8-bit RGB, no smaller than ``wanted`` (height, width) unless it is smaller itself.

    Returns:
        The image, and how far the picture reaches in it: its last column and row may be partly padding.
    """
    data = read_bytes(path)
    # Any library of the process can tell Pillow to fill what is cut off with grey.
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, size)
            if image.format in ("JPEG", "MPO") and not _jpeg_is_whole(data):
                raise _RefusedError("the image is truncated")
            drafted = image.draft("RGB", (wanted[1], wanted[0]))
            right, bottom = drafted[1][2:] if drafted else image.size
            return _to_rgb(image, bits), right, bottom
    except MemoryError:
        raise
    except _RefusedError as error:
        raise BadDataError(str(path), str(error)) from None
    except UnidentifiedImageError:
        raise BadDataError(str(path), f"the image is none of {', '.join(FORMATS)} that can be read") from None
    except Image.DecompressionBombError:
        raise BadDataError(str(path), f"the image has more than {MOST_PIXELS / 1e6:.0f} million pixels") from None
    except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
        # An object's address would make the same problem look new each time.
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split())) or type(error).__name__
        raise BadDataError(str(path), f"the image cannot be decoded ({text})") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def _check_header(image: Image.Image, size: tuple[int, int]) -> None:
    """Refuse an image by what its header says, before its pixels are decoded.

    Raises:
        _RefusedError: Saying why.
    """
    width, height = image.size
    told = f"the image is {width}x{height} where the tables say {size[1]}x{size[0]}"
    if abs(width * size[0] - height * size[1]) > max(width, height, *size):
        raise _RefusedError(told)
    if width > MOST_ENLARGED * size[1] or width * height > MOST_PIXELS:
        raise _RefusedError(f"{told}; it is too large to be decoded")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # which holds previews behind the image
        raise _RefusedError(f"the file holds {frames} images instead of one")


def _to_rgb(image: Image.Image, bits: int | None) -> Image.Image:
    """Decode an image, in whatever mode, to 8-bit RGB.

    Raises:
        _RefusedError: If its values are not known to be colours or grey.
    """
    deep = image.mode in ("RGB", "RGBA", "LA") and ";16" in str(getattr(image, "tile", None))
    if image.mode.startswith(("I", "F")):
        if getattr(image, "tag_v2", {}).get(WHITE_IS_ZERO[0]) == WHITE_IS_ZERO[1]:  # Pillow heeds it for 8 bits alone
            raise _RefusedError("the image has 0 for white; convert it so that 0 is black")
        grey = np.asarray(image)
        return Image.fromarray(_grey_to_8_bits(grey, bits)).convert("RGB")
    if image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        raise _RefusedError(f"the image has colours of the kind {image.mode}; convert it to RGB")
    image.info.pop("transparency", None)
    rgb = image.convert("RGB")
    if deep and np.asarray(rgb).max() < 64:  # of 16 bits the upper 8 are left
        raise _RefusedError(
            "the image has 16 bits per channel, of which the brightest pixel uses 14 or less; scale it to 8 or 16 bits"
        )
    return rgb


def _grey_to_8_bits(grey: NDArray[Any], bits: int | None) -> NDArray[np.uint8]:
    """Scale grey of more than 8 bits: floats from 0 .. 1, integers from ``bits``, or the fewest that hold them."""
    low, high = grey.min(), grey.max()
    if grey.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # NaN neither
            raise _RefusedError(f"the image has floats from {low:g} to {high:g}; they must lie in 0 .. 1")
        return np.round(grey * 255).astype(np.uint8)
    if low < 0 or high >= 1 << DEPTHS[-1]:
        raise _RefusedError(f"the image has integers from {low} to {high}; they must lie in 0 .. 65535")
    return np.minimum(grey >> ((bits or _depth(high)) - 8), 255).astype(np.uint8)


def _depth(high: int) -> int:
    """The fewest of :data:`DEPTHS` that hold a number; the most if none does."""
    return next((depth for depth in DEPTHS if high < 1 << depth), DEPTHS[-1])


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether the end marker of a JPEG's own image is there, whatever stands behind it.

    An end marker inside of a segment is a thumbnail's.
    """
    if data.endswith(b"\xff\xd9") and data.find(b"\xff\xd8", 2) < 0:  # one image alone
        return True
    at = 2
    while found := MARKER.search(data, at):
        marker = found[1][0]
        if marker == 0xD9:
            return True
        at = found.end()
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # stand alone
            continue
        if marker == 0xD8:  # the next image begins and this one has not ended
            return False
        at += int.from_bytes(data[at : at + 2], "big")
    return False

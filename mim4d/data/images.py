"""Read image files at the size that the model sees, and compute the intrinsics of the result."""

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
"""The formats of Pillow that are read. More decoders would only mean more code that a broken file can attack."""
MOST_PIXELS = 89_478_485
"""Limit for one image; Pillow's own one, which other libraries switch off for the whole process."""
MOST_ENLARGED = 4
"""Limit for the width of an image over that in the tables."""
DEPTHS = (8, 10, 12, 14, 16)
"""Numbers of bits that cameras use in 16-bit files, from the lowest bit on."""
WHITE_IS_ZERO = (262, 0)
"""The TIFF tag PhotometricInterpretation, and its value for images in which 0 is white."""
MARKER = re.compile(rb"\xff+([^\x00\xff])")
"""A marker of a JPEG: neither scan data nor fill bytes."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The transform from an image in the tables to the model's size: scale to the width, then crop rows at the top.

    Scale and crop may be fractional, so that both axes have the same scale for any sizes. The top is cropped because
    it mostly shows sky.

    >>> Fit.of((900, 1600), (448, 800))
    Fit(scale=0.5, top=2.0)
    """

    scale: float
    """Size of the scaled image over the size in the tables."""
    top: float
    """Number of rows that are cropped at the top of the scaled image."""

    @classmethod
    def of(cls, size: tuple[int, int], image_size: tuple[int, int]) -> "Fit":
        """Fit an image of ``size`` (height, width) to ``image_size`` (H, W), both in pixels.

        Raises:
            UserError: If the scaled image has fewer than H rows.
        """
        scale = image_size[1] / size[1]
        top = scale * size[0] - image_size[0]
        if top < -1e-6:
            raise UserError(
                f"images of {size[1]}x{size[0]} scaled to a width of {image_size[1]} have {scale * size[0]:.0f} rows, "
                f"fewer than `image_size` {image_size[0]} {image_size[1]}: set a smaller height"
            )
        return cls(scale=scale, top=max(top, 0.0))

    def intrinsics(self, intrinsics: Tensor) -> Tensor:
        """Compute the intrinsics [..., 3, 3] of the result from those of the image in the tables [..., 3, 3]."""
        return crop_intrinsics(resize_intrinsics(intrinsics, self.scale, self.scale), 0.0, self.top)


def read_image(
    path: Path,
    size: tuple[int, int],
    image_size: tuple[int, int],
    lens: Lens | None = None,
    bits: int | None = None,
) -> NDArray[np.uint8]:
    """Read an image, undistort it, scale it and crop it.

    Pixels are read as they are stored, because the calibration belongs to them: an orientation tag and transparency are
    ignored.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is still large enough: the decoder then skips the high
    frequencies, which is fast and filters properly. One filtered resize does the rest.

    Args:
        path: The file, in one of :data:`FORMATS`.
        size: (height, width) in the tables, to which the calibration belongs. The file may hold a scaled image.
        image_size: (H, W) of the result, pixels.
        lens: Distortion of the camera; None for a pinhole.
        bits: Number of bits that the camera uses in 16-bit grey images, see :func:`find_bits`; brighter pixels become
            white. None uses the fewest bits that hold this image.

    Returns:
        [3, H, W] uint8, RGB.

    Raises:
        BadDataError: If the file is missing, truncated or not an image, is neither colour nor grey of 8 or 16 bits, or
            has another aspect ratio than in the tables.
        UserError: If the scaled image has fewer than H rows, see :meth:`Fit.of`.
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
    return np.stack([np.asarray(channel) for channel in resized.split()])  # [3, H, W]


def find_bits(images: Iterable[tuple[Path, tuple[int, int]]]) -> int | None:
    """Find how many bits a camera uses in 16-bit grey images, so that all its images get the same scale.

    With a scale per image, the brightness would jump between images: by a factor of 4 if a dark image of a 12-bit
    camera uses only 10 bits.

    Args:
        images: File and (height, width) in the tables of some images of one camera. Unreadable files are skipped.

    Returns:
        The smallest of :data:`DEPTHS` that holds all of the images; None if they do not store integers of more than 8
        bits.
    """
    bits = None
    for path, size in images:
        try:
            with Image.open(io.BytesIO(read_bytes(path)), formats=FORMATS) as image:
                if not image.mode.startswith("I"):
                    return None
                _check_header(image, size)
                high = int(np.asarray(image).max())
        except Exception:  # reported when it is read for a clip
            continue
        bits = max(bits or 0, _depth(high))
    return bits


class _RefusedError(Exception):
    """The content of an image cannot be used; the message says why."""


def _decode(
    path: Path, size: tuple[int, int], least: tuple[int, int], bits: int | None
) -> tuple[Image.Image, float, float]:
    """Decode a file to 8-bit RGB, of at least ``least`` (height, width) pixels if it has as many.

    Returns:
        The image, and the width and height of its content in pixels; its last column and row may be partly padding.
    """
    data = read_bytes(path)
    # Any library in this process may have told Pillow to fill truncated images with grey.
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, size)
            if image.format in ("JPEG", "MPO") and not _jpeg_is_whole(data):
                raise _RefusedError("the image is truncated")
            drafted = image.draft("RGB", (least[1], least[0]))
            right, bottom = drafted[1][2:] if drafted else image.size
            return _to_rgb(image, bits), right, bottom
    except MemoryError:
        raise
    except _RefusedError as error:
        raise BadDataError(str(path), str(error)) from None
    except UnidentifiedImageError:
        raise BadDataError(str(path), f"not an image that mim4d can read ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise BadDataError(str(path), f"expected at most {MOST_PIXELS / 1e6:.0f} million pixels, found more") from None
    except Exception as error:  # Pillow's decoders raise errors of any type
        # The same problem must read the same each time, so addresses of objects are removed.
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split())) or type(error).__name__
        raise BadDataError(str(path), f"the image cannot be decoded ({text})") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def _check_header(image: Image.Image, size: tuple[int, int]) -> None:
    """Check the header of an image before its pixels are decoded.

    Raises:
        _RefusedError: If the image must not be decoded.
    """
    width, height = image.size
    problem = f"the image is {width}x{height}, but the tables say {size[1]}x{size[0]}"
    if abs(width * size[0] - height * size[1]) > max(width, height, *size):  # off by more than a pixel of rounding
        raise _RefusedError(problem)
    if width > MOST_ENLARGED * size[1] or width * height > MOST_PIXELS:
        raise _RefusedError(f"{problem}; it is too large to decode")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # an MPO holds previews behind the image
        raise _RefusedError(f"expected one image in the file, found {frames}")


def _to_rgb(image: Image.Image, bits: int | None) -> Image.Image:
    """Decode an image of any mode to 8-bit RGB.

    Raises:
        _RefusedError: If its values cannot be read as colours or grey.
    """
    deep = image.mode in ("RGB", "RGBA", "LA") and ";16" in str(getattr(image, "tile", None))
    if image.mode.startswith(("I", "F")):
        if getattr(image, "tag_v2", {}).get(WHITE_IS_ZERO[0]) == WHITE_IS_ZERO[1]:  # Pillow converts only 8 bits
            raise _RefusedError("the image stores white as 0: convert it so that 0 is black")
        grey = np.asarray(image)
        return Image.fromarray(_grey_to_8_bits(grey, bits)).convert("RGB")
    if image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        raise _RefusedError(f"the image has the colour mode {image.mode}: convert it to RGB")
    image.info.pop("transparency", None)
    rgb = image.convert("RGB")
    if deep and np.asarray(rgb).max() < 64:  # Pillow keeps the upper 8 of 16 bits
        raise _RefusedError(
            "the image has 16 bits per channel, but its brightest pixel uses at most 14: scale it to 8 or 16 bits"
        )
    return rgb


def _grey_to_8_bits(grey: NDArray[Any], bits: int | None) -> NDArray[np.uint8]:
    """Scale grey [rows, columns] to 8 bits: floats from 0 .. 1, integers from ``bits``, or from as few as hold them."""
    low, high = grey.min(), grey.max()
    if grey.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise _RefusedError(f"expected floats in 0 .. 1, found {low:g} to {high:g}")
        return np.round(grey * 255).astype(np.uint8)
    if low < 0 or high >= 1 << DEPTHS[-1]:
        raise _RefusedError(f"expected integers in 0 .. 65535, found {low} to {high}")
    return np.minimum(grey >> ((bits or _depth(high)) - 8), 255).astype(np.uint8)


def _depth(high: int) -> int:
    """Return the smallest of :data:`DEPTHS` that holds a number; the largest if none does.

    >>> _depth(255), _depth(256), _depth(4095)
    (8, 10, 12)
    """
    return next((depth for depth in DEPTHS if high < 1 << depth), DEPTHS[-1])


def _jpeg_is_whole(data: bytes) -> bool:
    """Return whether the image of a JPEG has its end marker; bytes behind it are ignored.

    An end marker inside of a segment belongs to a thumbnail.
    """
    if data.endswith(b"\xff\xd9") and data.find(b"\xff\xd8", 2) < 0:  # no thumbnail
        return True
    at = 2
    while found := MARKER.search(data, at):
        marker = found[1][0]
        if marker == 0xD9:
            return True
        at = found.end()
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a segment
            continue
        if marker == 0xD8:  # another image starts before the end of this one
            return False
        at += int.from_bytes(data[at : at + 2], "big")
    return False

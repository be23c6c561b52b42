"""Lens distortion: read it from the tables, and undistort images."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..geometry import distort_brown, distort_fisheye, unproject

PINHOLE, BROWN, FISHEYE = "", "brown", "fisheye"
COEFFICIENTS = 12
"""Number of coefficients that the index stores per lens, padded with 0."""
COLUMN = "camera_distortion"
COLUMNS = (COLUMN, "distortion", "distortion_coefficients")
"""Columns of ``calibrated_sensor`` that hold coefficients: the name in nuImages and T4, then other common ones."""
MODEL_COLUMNS = (f"{COLUMN}_model", "distortion_model", "camera_model")
MODELS = {
    "": "",
    "pinhole": "",  # names the projection, so the coefficients may still be of Brown's model
    "opencv": BROWN,
    "brown": BROWN,
    "brownconrady": BROWN,
    "plumbbob": BROWN,
    "radtan": BROWN,
    "radialtangential": BROWN,
    "rational": BROWN,
    "rationalpolynomial": BROWN,
    "fisheye": FISHEYE,
    "opencvfisheye": FISHEYE,
    "equidistant": FISHEYE,
    "kannalabrandt": FISHEYE,
}
"""Names of models in OpenCV, ROS, Kalibr and COLMAP, reduced to lower-case letters."""
READABLE = f'OpenCV\'s 5, 8 or 12 (k1 k2 p1 p2 k3 ...), or 4 with "{MODEL_COLUMNS[0]}": "opencv" or "fisheye"'


def parse_lens(record: Mapping[str, Any]) -> tuple[str, list[float]]:
    """Read the lens distortion of a camera from its record in ``calibrated_sensor``.

    Returns:
        The model (:data:`PINHOLE`, :data:`BROWN` or :data:`FISHEYE`) and its coefficients in OpenCV's order.

    Raises:
        ValueError: If the record has distortion of an unknown kind.

    >>> parse_lens({"camera_distortion": [-0.3, 0.1, 0, 0, 0.01]})
    ('brown', [-0.3, 0.1, 0.0, 0.0, 0.01])
    """
    for column, value in record.items():
        known = column in COLUMNS or column in MODEL_COLUMNS
        if "distort" in column.lower() and not known and _has_content(value):
            raise ValueError(f"the column {column} is unknown: rename it to {COLUMN} if it holds {READABLE}")
    name = next((str(record[column]) for column in MODEL_COLUMNS if record.get(column)), "")
    model = MODELS.get("".join(c for c in name.lower() if c.isalnum()))
    if model is None:
        raise ValueError(f"the distortion model {name!r} is unknown: expected opencv or fisheye")
    filled = [(column, record[column]) for column in COLUMNS if record.get(column) not in (None, [])]
    column, values = max(filled, key=lambda entry: _has_content(entry[1]), default=(COLUMN, []))
    try:
        coefficients = np.array(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{column}: expected a list of numbers, found {_shorten(str(values))}") from None
    if not np.isfinite(coefficients).all():
        raise ValueError(f"{column} holds NaN or infinity")
    return _interpret(model, column, coefficients.tolist())


def _interpret(model: str, column: str, values: list[float]) -> tuple[str, list[float]]:
    """Choose the model from the number of coefficients.

    Raises:
        ValueError: If the number fits no model, or several.
    """
    count = len(values)
    if model == FISHEYE:
        if count < 4 or any(values[4:]):
            raise ValueError(f"{column}: expected 4 coefficients of a fisheye lens (k1 k2 k3 k4), found {count}")
        return FISHEYE, values[:4]
    if not any(values):
        return PINHOLE, []
    # Four coefficients may be k1 k2 p1 p2 of Brown's model or k1 k2 k3 k4 of a fisheye lens. nuImages stores six for
    # its fisheye lenses and does not give their formula.
    lengths = (4, 5, 8, 12) if model == BROWN else (5, 8, 12)
    fitting = next((length for length in lengths if count >= length and not any(values[length:])), None)
    if fitting is None or (count == 4 and model != BROWN):
        raise ValueError(f"{column} has {count} coefficients ({_join(values)}): expected {READABLE}")
    return BROWN, values[:fitting]


def _has_content(value: Any) -> bool:
    """Return whether a column holds anything other than zeros."""
    try:
        return bool(np.any(np.array(value if value is not None else [], dtype=np.float64) != 0))
    except (TypeError, ValueError, OverflowError):
        return True


def _shorten(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _join(values: list[float], most: int = 14) -> str:
    return " ".join(f"{value:g}" for value in values[:most]) + (" ..." if len(values) > most else "")


@dataclass(frozen=True, kw_only=True)
class Lens:
    """The distortion of a camera.

    The undistorted image has the size and the intrinsics of the distorted one.
    """

    model: str
    """:data:`BROWN` or :data:`FISHEYE`."""
    coefficients: tuple[float, ...]
    """[12], as many as :data:`COEFFICIENTS`."""
    intrinsics: tuple[float, ...]
    """[9]: the camera matrix by rows, in pixels of the image in the tables; the first pixel's centre is (0.5, 0.5)."""

    @classmethod
    def of(cls, calibration: Any, intrinsics: Tensor) -> "Lens | None":
        """Make the lens of a camera; None if it has no distortion.

        Args:
            calibration: A row of :data:`mim4d.data.tables.CALIBRATION`.
            intrinsics: [3, 3] camera matrix of the image in the tables; the first pixel's centre is (0.5, 0.5).
        """
        model = calibration["lens"].decode()
        if model == PINHOLE:
            return None
        return cls(
            model=model,
            coefficients=tuple(calibration["distortion"].tolist()),
            intrinsics=tuple(intrinsics.flatten().tolist()),
        )

    def distort(self, points: Tensor) -> Tensor:
        """Map points of an ideal pinhole to where the lens shows them.

        A polynomial that was fitted inside the image may decrease again outside of it, so that the same content would
        appear twice. From the radius on where it first decreases, the result is NaN.

        Args:
            points: [..., 2] x / z and y / z in the camera frame.

        Returns:
            [..., 2] float64 x / z and y / z of the distorted points.
        """
        coefficients = torch.tensor(self.coefficients, dtype=torch.float64)
        distort = distort_brown if self.model == BROWN else distort_fisheye
        radius = points.norm(dim=-1)  # [...]
        probe = torch.linspace(0, float(radius.max()), 2049, dtype=torch.float64)  # [2049]
        radial_only = coefficients.clone()
        if self.model == BROWN:
            radial_only[[2, 3, 8, 9, 10, 11]] = 0  # p1 p2 s1 s2 s3 s4
        distorted_radius = distort(torch.stack([probe, torch.zeros_like(probe)], -1), radial_only)[:, 0]  # [2049]
        decreases = ~(distorted_radius.diff() > 0)  # [2048], also true for NaN
        limit = probe[int(decreases.int().argmax())] if decreases.any() else torch.inf
        return torch.where((radius < limit)[..., None], distort(points, coefficients), torch.nan)

    def distort_pixels(self, pixels: Tensor) -> Tensor:
        """Map pixels [P, 2] of the undistorted image to pixels [P, 2] of the distorted image with the same content."""
        intrinsics = torch.tensor(self.intrinsics, dtype=torch.float64).view(3, 3)
        ideal = unproject(intrinsics, pixels.double(), torch.ones(len(pixels), dtype=torch.float64))  # [P, 3]
        distorted = self.distort(ideal[:, :2])  # [P, 2]
        return torch.nn.functional.pad(distorted, (0, 1), value=1.0) @ intrinsics[:2].mT

    def black_fraction(self, size: tuple[int, int], top: float = 0.0) -> float:
        """Compute the fraction of the undistorted image that the distorted image does not show.

        Args:
            size: (height, width) of both images in the tables, pixels.
            top: Rows of the undistorted image that are cropped.

        Returns:
            A fraction in 0 .. 1.
        """
        centres = _centres(size[0] - top, size[1], 36, 64, top)  # [36*64, 2]
        return float(_outside(self.distort_pixels(centres), size).double().mean())


def _centres(height: float, width: float, rows: int, columns: int, top: float) -> Tensor:
    """Centres (u, v) [rows * columns, 2] of a grid that covers an image from row ``top`` on, in its pixels.

    >>> _centres(height=4, width=4, rows=1, columns=2, top=10).tolist()
    [[1.0, 12.0], [3.0, 12.0]]
    """
    v = top + (torch.arange(rows, dtype=torch.float64) + 0.5) * height / rows  # [rows]
    u = (torch.arange(columns, dtype=torch.float64) + 0.5) * width / columns  # [columns]
    return torch.cartesian_prod(v, u).flip(-1)


def _outside(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask [P] of the pixels [P, 2] outside an image of ``size`` (height, width); also true for NaN."""
    limits = torch.tensor([size[1], size[0]], dtype=torch.float64)
    return ~((pixels >= 0) & (pixels <= limits)).all(-1)


@lru_cache(maxsize=64)
def _sampling_grid(lens: Lens, size: tuple[int, int], image_size: tuple[int, int], top: float) -> tuple[Tensor, Tensor]:
    """Compute where each pixel of an undistorted image samples the distorted one.

    Returns:
        Coordinates [1, H, W, 2] float32 for ``grid_sample`` of the whole distorted image at any resolution, and a mask
        [H, W] bool of the pixels that it does not show.
    """
    pixels = lens.distort_pixels(_centres(size[0] - top, size[1], *image_size, top))  # [H*W, 2]
    outside = _outside(pixels, size)  # [H*W]
    limits = torch.tensor([size[1], size[0]], dtype=torch.float64)
    grid = torch.where(outside[:, None], 0.0, pixels / limits * 2 - 1)  # [H*W, 2]
    return grid.float().view(1, *image_size, 2), outside.view(image_size)


def undistort(
    image: NDArray[np.uint8], lens: Lens, size: tuple[int, int], image_size: tuple[int, int], top: float
) -> NDArray[np.uint8]:
    """Compute the image that a pinhole camera with the same intrinsics would have taken, cropped at the top.

    Args:
        image: [rows, columns, 3] uint8, the whole distorted image at about the resolution of the result.
        lens: Distortion of the camera.
        size: (height, width) in the tables, to which the calibration belongs.
        image_size: (H, W) of the result.
        top: Rows to crop, in pixels of ``size``.

    Returns:
        [3, H, W] uint8; black where the distorted image has no content.
    """
    grid, outside = _sampling_grid(lens, size, image_size, top)
    distorted = torch.from_numpy(image).permute(2, 0, 1)[None].float()  # [1, 3, rows, columns]
    sampled = torch.nn.functional.grid_sample(distorted, grid, padding_mode="border", align_corners=False)
    return sampled[0].masked_fill_(outside, 0).round_().to(torch.uint8).numpy()

"""Lens distortion: what the tables say of it, and where each pixel of the undistorted image lies in the file's."""

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
"""How many a lens has in the index; the last ones are 0 where the tables have fewer."""
COLUMN = "camera_distortion"
COLUMNS = (COLUMN, "distortion", "distortion_coefficients")
"""Columns of ``calibrated_sensor`` that hold coefficients: nuImages' and T4's name, then others in use."""
MODEL_COLUMNS = (f"{COLUMN}_model", "distortion_model", "camera_model")
MODELS = {
    "": "",
    "pinhole": "",  # says how rays meet the image plane, not that the lens has no distortion
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
"""Names of models, without what is neither letter nor digit: OpenCV's, ROS's, Kalibr's and COLMAP's."""
READABLE = f'OpenCV\'s 5, 8 or 12 (k1 k2 p1 p2 k3 ...), or 4 with "{MODEL_COLUMNS[0]}": "opencv" or "fisheye"'


def parse_lens(record: Mapping[str, Any]) -> tuple[str, list[float]]:
    """Read the lens of a camera's record in ``calibrated_sensor``.

    Returns:
        The model (:data:`PINHOLE`, :data:`BROWN` or :data:`FISHEYE`) and its coefficients in OpenCV's order.

    Raises:
        ValueError: If the record has distortion that cannot be understood, saying what.
    """
    for column, value in record.items():
        known = column in COLUMNS or column in MODEL_COLUMNS
        if "distort" in column.lower() and not known and _has_content(value):
            raise ValueError(f"the column {column} is not known; rename it to {COLUMN} if it holds {READABLE}")
    name = next((str(record[column]) for column in MODEL_COLUMNS if record.get(column)), "")
    model = MODELS.get("".join(c for c in name.lower() if c.isalnum()))
    if model is None:
        raise ValueError(f"the distortion model {name!r} is not known; there are opencv and fisheye")
    filled = [(column, record[column]) for column in COLUMNS if record.get(column) not in (None, [])]
    column, values = max(filled, key=lambda entry: _has_content(entry[1]), default=(COLUMN, []))
    try:
        coefficients = np.array(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{column} must be a list of numbers") from None
    if not np.isfinite(coefficients).all():
        raise ValueError(f"{column} holds NaN or infinity")
    return _interpret(model, column, coefficients.tolist())


def _interpret(model: str, column: str, values: list[float]) -> tuple[str, list[float]]:
    """Tell the coefficients of one model from those of another, or refuse."""
    count = len(values)
    if model == FISHEYE:
        if count < 4 or any(values[4:]):
            raise ValueError(f"{column} has {count} coefficients where a fisheye has 4 (k1 k2 k3 k4)")
        return FISHEYE, values[:4]
    if not any(values):
        return PINHOLE, []
    # Four may be k1 k2 p1 p2 or a fisheye's k1 k2 k3 k4. nuImages has six for its fisheye lenses, and no formula.
    lengths = (4, 5, 8, 12) if model == BROWN else (5, 8, 12)
    fitting = next((length for length in lengths if count >= length and not any(values[length:])), None)
    if fitting is None or (count == 4 and model != BROWN):
        raise ValueError(f"{column} has {count} coefficients, {_numbers(values)}; mim4d reads {READABLE}")
    return BROWN, values[:fitting]


def _has_content(value: Any) -> bool:
    """Whether a column holds anything but nothing and zeros."""
    try:
        return bool(np.any(np.array(value if value is not None else [], dtype=np.float64) != 0))
    except (TypeError, ValueError, OverflowError):
        return True


def _numbers(values: list[float], most: int = 14) -> str:
    return " ".join(f"{value:g}" for value in values[:most]) + (" ..." if len(values) > most else "")


@dataclass(frozen=True, kw_only=True)
class Lens:
    """A camera whose images are distorted."""

    model: str
    """:data:`BROWN` or :data:`FISHEYE`."""
    coefficients: tuple[float, ...]
    """:data:`COEFFICIENTS` of them."""
    intrinsics: tuple[float, ...]
    """[9], row by row, of the image in the tables, pixel centres at halves. The undistorted image has the same."""

    @classmethod
    def of(cls, calibration: Any, intrinsics: Tensor) -> "Lens | None":
        """The lens of a row of :data:`mim4d.data.tables.CALIBRATION`; None where there is no distortion.

        Args:
            calibration: The row.
            intrinsics: [3, 3], of the image in the tables, pixel centres at halves.
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
        """Where points [..., 2] of an ideal pinhole, at depth 1, really appear; NaN beyond the lens' reach.

        A polynomial that was fitted inside the image may turn back outside of it and show the same content twice.
        """
        coefficients = torch.tensor(self.coefficients, dtype=torch.float64)
        distort = distort_brown if self.model == BROWN else distort_fisheye
        radius = points.norm(dim=-1)
        probe = torch.linspace(0, float(radius.max()), 2049, dtype=torch.float64)
        radial_only = coefficients.clone()
        if self.model == BROWN:
            radial_only[[2, 3, 8, 9, 10, 11]] = 0
        image = distort(torch.stack([probe, torch.zeros_like(probe)], -1), radial_only)[:, 0]
        turned = ~(image.diff() > 0)
        reach = probe[int(turned.int().argmax())] if turned.any() else torch.inf
        return torch.where((radius < reach)[..., None], distort(points, coefficients), torch.nan)

    def pixels(self, pixels: Tensor) -> Tensor:
        """Where the content of pixels [N, 2] of the undistorted image lies in the distorted one, in pixels [N, 2]."""
        intrinsics = torch.tensor(self.intrinsics, dtype=torch.float64).view(3, 3)
        ideal = unproject(intrinsics, pixels.double(), torch.ones(len(pixels), dtype=torch.float64))
        distorted = self.distort(ideal[:, :2])
        return torch.nn.functional.pad(distorted, (0, 1), value=1.0) @ intrinsics[:2].mT

    def void(self, size: tuple[int, int], top: float = 0.0) -> float:
        """Fraction of the undistorted image of which the distorted one, of ``size`` (height, width), shows nothing.

        Args:
            size: Of both images, in the tables.
            top: Rows of the undistorted one that are cut off.
        """
        return float(_outside(self.pixels(_centres(size[0] - top, size[1], 36, 64, top)), size).double().mean())


def _centres(height: float, width: float, rows: int, columns: int, top: float) -> Tensor:
    """Centres [rows * columns, 2] of a grid that covers an image from row ``top`` on."""
    v = top + (torch.arange(rows, dtype=torch.float64) + 0.5) * height / rows
    u = (torch.arange(columns, dtype=torch.float64) + 0.5) * width / columns
    return torch.cartesian_prod(v, u).flip(-1)


def _outside(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    limits = torch.tensor([size[1], size[0]], dtype=torch.float64)
    return ~((pixels >= 0) & (pixels <= limits)).all(-1)


@lru_cache(maxsize=64)
def _lookup(lens: Lens, size: tuple[int, int], image_size: tuple[int, int], top: float) -> tuple[Tensor, Tensor]:
    """For each pixel of an undistorted image: where to sample the distorted one, and whether it shows nothing.

    Returns:
        [1, H, W, 2] float32 for ``grid_sample`` of the whole distorted image, at any resolution; [H, W] bool.
    """
    pixels = lens.pixels(_centres(size[0] - top, size[1], *image_size, top))
    outside = _outside(pixels, size)
    limits = torch.tensor([size[1], size[0]], dtype=torch.float64)
    grid = torch.where(outside[:, None], 0.0, pixels / limits * 2 - 1)
    return grid.float().view(1, *image_size, 2), outside.view(image_size)


def undistort(
    image: NDArray[np.uint8], lens: Lens, size: tuple[int, int], image_size: tuple[int, int], top: float
) -> NDArray[np.uint8]:
    """Make the image that a pinhole with the same intrinsics would have taken, without the rows at its top.

    Args:
        image: [h, w, 3], the whole distorted image at about the resolution of the result.
        lens: The camera.
        size: (height, width) in the tables, to which the calibration belongs.
        image_size: (H, W) of the result.
        top: Rows to leave out, in pixels of ``size``.

    Returns:
        [3, H, W]; black where the distorted image shows nothing.
    """
    grid, outside = _lookup(lens, size, image_size, top)
    distorted = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    sampled = torch.nn.functional.grid_sample(distorted, grid, padding_mode="border", align_corners=False)[0]
    return sampled.masked_fill_(outside, 0).round_().to(torch.uint8).numpy()

"""Lens distortion against OpenCV: its results are stored here, and asked for where it is installed."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from mim4d.data import NuScenesClips
from mim4d.data.images import read_image
from mim4d.data.lenses import BROWN, FISHEYE, PINHOLE, Lens, parse_lens
from mim4d.errors import UserError
from mim4d.geometry import distort_brown, distort_fisheye
from tests.data.roots import edit_table, file_of
from tests.data.test_nuscenes import config_of

INTRINSICS = [[1266.4, 0, 816.3], [0, 1260.1, 491.5], [0, 0, 1]]
POINTS = [[0, 0], [0.3, -0.2], [-0.63, 0.36], [0.05, 0.5], [-0.8, -0.45]]
"""x / z and y / z."""
OPENCV = {
    "four": (
        BROWN,
        [-0.25, 0.07, 0.001, -0.002],
        [[816.3, 491.5], [1183.3849, 247.9396], [104.0829, 896.3618], [875.3166, 1085.4122], [-38.234, 15.4718]],
    ),
    "radial and tangential": (
        BROWN,
        [-0.3, 0.09, 0.0005, -0.0003, 0.01],
        [[816.3, 491.5], [1181.7956, 249.0976], [122.6279, 886.1302], [875.1309, 1077.9956], [-11.8837, 28.6741]],
    ),
    "rational": (
        BROWN,
        [0.2, -0.1, 0.001, 0.002, 0.03, 0.4, -0.05, 0.01],
        [[816.3, 491.5], [1187.1667, 245.8678], [98.6379, 900.9742], [877.2579, 1092.0013], [-41.7361, 11.123]],
    ),
    "thin prism": (
        BROWN,
        [-0.2, 0.05, 0.001, -0.001, 0.0, 0.1, 0.0, 0.0, 0.01, -0.002, 0.003, 0.004],
        [[816.3, 491.5], [1182.9691, 249.9649], [131.3967, 887.9901], [877.9119, 1079.1192], [13.2823, 45.5056]],
    ),
    "fisheye": (
        FISHEYE,
        [-0.02, 0.005, -0.001, 0.0004],
        [[816.3, 491.5], [1180.0849, 250.1833], [131.0516, 881.1225], [874.7349, 1072.9418], [4.5408, 37.157]],
    ),
    "equidistant": (
        FISHEYE,
        [0.0, 0.0, 0.0, 0.0],
        [[816.3, 491.5], [1180.9326, 249.6209], [126.113, 883.9306], [874.9761, 1075.3418], [-3.3602, 32.7348]],
    ),
}
"""Model, coefficients, and pixels of POINTS by cv2.projectPoints or cv2.fisheye.projectPoints of OpenCV 5.0.0."""


def pad(coefficients):
    return torch.tensor(coefficients + [0.0] * (12 - len(coefficients)), dtype=torch.float64)


def lens_of(model, coefficients, intrinsics=INTRINSICS):
    flat = tuple(float(value) for row in intrinsics for value in row)
    return Lens(model=model, coefficients=tuple(pad(coefficients).tolist()), intrinsics=flat)


@pytest.mark.parametrize("name", OPENCV)
def test_points_fall_where_opencv_says(name):
    model, coefficients, expected = OPENCV[name]
    distort = distort_brown if model == BROWN else distort_fisheye
    distorted = distort(torch.tensor(POINTS, dtype=torch.float64), pad(coefficients)).numpy()
    pixels = distorted * [1266.4, 1260.1] + [816.3, 491.5]
    np.testing.assert_allclose(pixels, expected, atol=1e-3)


@pytest.mark.parametrize("name", OPENCV)
def test_points_fall_where_an_installed_opencv_says(name):
    cv2 = pytest.importorskip("cv2")
    model, coefficients, _ = OPENCV[name]
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (500, 2))
    solid = np.concatenate([points, np.ones((500, 1))], 1)[:, None]
    project = cv2.projectPoints if model == BROWN else cv2.fisheye.projectPoints
    expected = project(solid, np.zeros(3), np.zeros(3), np.eye(3), np.array(coefficients))[0][:, 0]
    distort = distort_brown if model == BROWN else distort_fisheye
    np.testing.assert_allclose(distort(torch.from_numpy(points), pad(coefficients)), expected, atol=1e-9)


SIZE = (180, 320)
SMALL = [[253.3, 0, 163.3], [0, 252.0, 88.3], [0, 0, 1]]


def spots(path, pixels):
    """An image with a bright spot at each pixel (centres at halves)."""
    v, u = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    image = sum(np.exp(-((u - x) ** 2 + (v - y) ** 2) / 18) for x, y in pixels)
    Image.fromarray((220 * np.stack([image] * 3, -1)).clip(0, 255).astype(np.uint8)).save(path)


@pytest.mark.parametrize("image_size", [(160, 320), (64, 160), (160, 288)])
@pytest.mark.parametrize("name", OPENCV)
def test_what_a_lens_bent_is_where_the_pinhole_has_it(tmp_path, name, image_size):
    """Spots are drawn where OpenCV's formula puts 3D points; they must come out where the intrinsics put them."""
    model, coefficients, _ = OPENCV[name]
    points = torch.tensor([[0.1, 0.1], [-0.4, -0.05], [0.5, 0.25]], dtype=torch.float64)
    distort = distort_brown if model == BROWN else distort_fisheye
    focal, centre = np.array([253.3, 252.0]), np.array([163.3, 88.3])
    spots(tmp_path / "image.png", distort(points, pad(coefficients)).numpy() * focal + centre)
    image = read_image(tmp_path / "image.png", SIZE, image_size, lens_of(model, coefficients, SMALL))[0].astype(float)
    scale = image_size[1] / SIZE[1]
    expected = (points.numpy() * focal + centre) * scale - [0, scale * SIZE[0] - image_size[0]]
    v, u = np.mgrid[: image_size[0], : image_size[1]] + 0.5
    for x, y in expected:
        near = image * (np.hypot(u - x, v - y) < 14 * scale)
        centre_of_mass = (u * near).sum() / near.sum(), (v * near).sum() / near.sum()
        np.testing.assert_allclose(centre_of_mass, (x, y), atol=0.25)


def test_what_the_lens_does_not_show_is_black(tmp_path):
    Image.new("RGB", SIZE[::-1], (200, 200, 200)).save(tmp_path / "image.png")
    pincushion = lens_of(BROWN, [0.4], SMALL)
    image = read_image(tmp_path / "image.png", SIZE, (160, 320), pincushion)
    assert (image[:, -1, -1] == 0).all()
    assert (image[:, 80, 160] == 200).all()
    black = float((image == 0).all(0).mean())
    assert black == pytest.approx(pincushion.black_fraction(SIZE, top=20.0), abs=0.01)
    barrel = lens_of(BROWN, [-0.3], SMALL)
    assert (read_image(tmp_path / "image.png", SIZE, (160, 320), barrel) == 200).all()
    assert barrel.black_fraction(SIZE) == 0


def test_a_polynomial_that_turns_back_shows_nothing_twice(tmp_path):
    """Beyond r = 1 / sqrt(3 * 1.5) = 0.47 the formula runs back towards the centre."""
    Image.new("RGB", SIZE[::-1], (200, 200, 200)).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png", SIZE, (160, 320), lens_of(BROWN, [-1.5], SMALL))
    v, u = np.mgrid[20:180, :320] + 0.5
    radius = np.hypot((u - 163.3) / 253.3, (v - 88.3) / 252.0)
    assert (image[:, radius > 0.475] == 0).all()
    assert (image[:, radius < 0.465] == 200).all()


def test_straight_lines_of_opencvs_undistort(tmp_path):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize(SIZE[::-1], Image.BICUBIC)
    smooth.save(tmp_path / "image.png")
    coefficients = OPENCV["radial and tangential"][1]
    integers = np.array(SMALL) - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]  # OpenCV's pixel centres
    expected = cv2.undistort(np.asarray(smooth), integers, np.array(coefficients))[20:]
    got = read_image(tmp_path / "image.png", SIZE, (160, 320), lens_of(BROWN, coefficients, SMALL))
    assert np.abs(got.transpose(1, 2, 0).astype(int) - expected).max() <= 3


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, (PINHOLE, [])),
        ({"camera_distortion": None}, (PINHOLE, [])),
        ({"camera_distortion": []}, (PINHOLE, [])),
        ({"camera_distortion": [0, 0, 0, 0, 0]}, (PINHOLE, [])),
        ({"camera_distortion": [0.0] * 4}, (PINHOLE, [])),
        ({"camera_distortion": [1, 2, 3, 4, 5]}, (BROWN, [1, 2, 3, 4, 5])),
        ({"camera_distortion": [[1, 2, 3, 4, 5]]}, (BROWN, [1, 2, 3, 4, 5])),
        ({"camera_distortion": [1, 2, 3, 4, 5, 0]}, (BROWN, [1, 2, 3, 4, 5])),
        ({"distortion": [1, 2, 3, 4, 5, 6, 7, 8]}, (BROWN, [1, 2, 3, 4, 5, 6, 7, 8])),
        ({"camera_distortion": [*range(12), 0, 0]}, (BROWN, [*range(12)])),
        ({"camera_distortion": [1, 2, 3, 4], "camera_distortion_model": "opencv"}, (BROWN, [1, 2, 3, 4])),
        ({"distortion_coefficients": [1, 2, 3, 4], "distortion_model": "plumb_bob"}, (BROWN, [1, 2, 3, 4])),
        ({"camera_distortion": [1, 2, 3, 4], "camera_model": "OPENCV_FISHEYE"}, (FISHEYE, [1, 2, 3, 4])),
        ({"camera_distortion": [0, 0, 0, 0], "distortion_model": "equidistant"}, (FISHEYE, [0, 0, 0, 0])),
        ({"camera_distortion": [1, 2, 3, 4, 0], "camera_model": "Kannala-Brandt"}, (FISHEYE, [1, 2, 3, 4])),
    ],
)
def test_columns_that_are_understood(columns, expected):
    model, coefficients = parse_lens({"camera_intrinsic": INTRINSICS, **columns})
    assert (model, [*coefficients]) == expected


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"camera_distortion": [1, 2, 3, 4]}, r"4 coefficients \(1 2 3 4\): expected OpenCV's 5, 8 or 12"),
        ({"camera_distortion": [1, 2, 3, 4, 5, 6]}, "6 coefficients"),
        ({"camera_distortion": [0.1]}, "1 coefficients"),
        ({"camera_distortion": [0] * 12 + [0.1, 0]}, "14 coefficients"),
        ({"camera_distortion": [1] * 1000}, r"1000 coefficients \(1 1 1 .* \.\.\.\):"),
        ({"camera_distortion": [1, 2, float("nan"), 4, 5]}, "NaN"),
        ({"camera_distortion": "k1=0.1"}, "list of numbers"),
        ({"camera_distortion": {"k1": 0.1}}, "list of numbers"),
        ({"camera_distortion": [[1, 2], [3]]}, "list of numbers"),
        ({"camera_distortion": [10**400]}, "list of numbers"),
        (
            {"camera_distortion": [1, 2, 3, 4, 5], "camera_distortion_model": "double_sphere"},
            "double_sphere' is unknown",
        ),
        (
            {"camera_distortion": [1, 2, 3], "camera_model": "fisheye"},
            "expected 4 coefficients of .*, found 3",
        ),
        ({"camera_distortion": [], "camera_model": "fisheye"}, "expected 4 coefficients of .*, found 0"),
        ({"lens_distortion_k1": -0.3}, "column lens_distortion_k1 is unknown: rename it to camera_distortion"),
    ],
)
def test_columns_that_are_not_understood_are_named(columns, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        parse_lens({"camera_intrinsic": INTRINSICS, **columns})
    assert "\n" not in str(caught.value)


def give_distortion(root, coefficients, only=""):
    def change(rows):
        return [
            r | {"camera_distortion": coefficients * bool(r["camera_intrinsic"] and only in r["token"])} for r in rows
        ]

    edit_table(root, "calibrated_sensor", change)


def test_a_clip_is_undistorted_and_says_so_once(root, caplog):
    plain = NuScenesClips(config_of(root))[0]
    give_distortion(root, [-0.1, 0.01, 0.0, 0.0, 0.0], only="CAM_BACK")
    dataset = NuScenesClips(config_of(root))
    clip = dataset[0]
    assert torch.equal(clip.intrinsics, plain.intrinsics)
    assert torch.equal(clip.images[:, :, 0], plain.images[:, :, 0])
    assert not torch.equal(clip.images[:, :, 1], plain.images[:, :, 1])
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage().split(": ")[1] for record in told] == ["undistorting the images of CAM_BACK"]


def test_zeros_change_nothing_and_say_nothing(root, caplog):
    plain = NuScenesClips(config_of(root))[0]
    give_distortion(root, [0.0] * 5)
    assert torch.equal(NuScenesClips(config_of(root))[0].images, plain.images)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("coefficients", "problem"),
    [
        ([-0.02, 0.005, 0, 0, 0, 0.1], r"camera_distortion has 6 coefficients \(-0.02 0.005 0 0 0 0.1\)"),
        ([900.0, 0, 0, 0, 0], "% of the undistorted image would be black"),
    ],
)
def test_a_lens_that_is_not_understood_stops_its_own_camera_alone(root, coefficients, problem):
    give_distortion(root, coefficients, only="CAM_BACK")
    with pytest.raises(UserError, match=problem) as caught:
        NuScenesClips(config_of(root))
    assert "lens distortion of CAM_BACK in" in str(caught.value)
    assert "\n" not in str(caught.value)
    file_of(root, "CAM_BACK", 0).unlink()  # nor is it read
    NuScenesClips(config_of(root, cameras=("CAM_FRONT",)))[0].validate()

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mim4d.geometry import (
    crop_intrinsics,
    invert,
    make_pose,
    pixel_rays,
    project,
    resize_intrinsics,
    rotation_from_quaternion,
    transform,
    unproject,
)
from tests.geometry.strategies import intrinsics, quaternions, seeds
from tests.reference import pinhole


def some_pixels(generator, count=16):
    return torch.rand(count, 2, generator=generator) * torch.tensor([1600.0, 900.0])


@given(intrinsics(), seeds())
def test_unproject_then_project_returns_the_pixel(camera, generator):
    # In float64, because the formulas themselves are exact.
    pixels = some_pixels(generator).double()
    depth = 1 + 60 * torch.rand(16, generator=generator).double()
    back, back_depth = project(camera.double(), unproject(camera.double(), pixels, depth))
    torch.testing.assert_close(back, pixels, atol=1e-9, rtol=0)
    torch.testing.assert_close(back_depth, depth, atol=1e-12, rtol=0)


@given(st.floats(200, 1500), quaternions(), seeds())
def test_round_trip_through_the_ego_frame_in_float32(focal, quaternion, generator):
    """Pixel to a point in the ego frame and back to the pixel, as training does it: 1e-4 px at 800 pixels' width."""
    camera = torch.tensor([[focal, 0, 400], [0, focal, 224], [0, 0, 1]])
    ego_from_camera = make_pose(
        rotation_from_quaternion(quaternion), torch.randn(3, generator=generator, dtype=torch.float64)
    )
    pixels = torch.rand(16, 2, generator=generator) * torch.tensor([800.0, 448.0])
    depth = 1 + 60 * torch.rand(16, generator=generator)
    points_ego = transform(ego_from_camera, unproject(camera, pixels, depth).double())
    back, _ = project(camera, transform(invert(ego_from_camera), points_ego).float())
    torch.testing.assert_close(back, pixels, atol=1e-4 * max(1, focal / 800), rtol=0)


@given(intrinsics(), seeds())
def test_project_agrees_with_the_formula(camera, generator):
    points = torch.randn(8, 3, generator=generator).double() * 10
    points[:, 2] = points[:, 2].abs() + 1
    pixels, depth = project(camera.double(), points)
    expected_pixels, expected_depth = pinhole.project(camera.double().numpy(), points.numpy())
    np.testing.assert_allclose(pixels, expected_pixels, atol=1e-8)
    np.testing.assert_allclose(depth, expected_depth)


def test_points_behind_the_camera_stay_finite():
    pixels, depth = project(torch.eye(3), torch.tensor([[1.0, 2.0, -3.0], [1.0, 2.0, 0.0]]))
    assert pixels.isfinite().all()
    assert (depth <= 0).all()


@given(intrinsics(), st.floats(0.1, 3), st.floats(0.1, 3), st.floats(0, 300), st.floats(0, 300), seeds())
def test_resize_and_crop_move_the_pixel_with_the_image(camera, scale_x, scale_y, left, top, generator):
    points = torch.randn(8, 3, generator=generator).double()
    points[:, 2] = points[:, 2].abs() + 1
    pixels, _ = project(camera.double(), points)
    fitted = crop_intrinsics(resize_intrinsics(camera.double(), scale_x, scale_y), left, top)
    moved, _ = project(fitted, points)
    expected = pixels * pixels.new_tensor([scale_x, scale_y]) - pixels.new_tensor([left, top])
    torch.testing.assert_close(moved, expected, atol=1e-8, rtol=1e-10)


def test_halving_an_image_keeps_pixel_edges():
    """The centre of the top-left pixel of the small image is the common corner of the four large ones."""
    camera = torch.tensor([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    large = unproject(camera, torch.tensor([[1.0, 1.0]]), torch.ones(1))
    small, _ = project(resize_intrinsics(camera, 0.5, 0.5), large)
    torch.testing.assert_close(small, torch.tensor([[0.5, 0.5]]))


@given(intrinsics(), quaternions(), seeds())
def test_rays_pass_through_what_their_pixels_show(camera, quaternion, generator):
    camera = camera.double()
    translation = torch.randn(3, generator=generator, dtype=torch.float64)
    ego_from_camera = make_pose(rotation_from_quaternion(quaternion), translation)
    pixels = some_pixels(generator).double()
    origins, directions = pixel_rays(pixels, camera, ego_from_camera)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(16, dtype=torch.float64))
    torch.testing.assert_close(origins, translation.expand(16, 3))
    along = origins + 7 * directions
    back, depth = project(camera, transform(invert(ego_from_camera), along))
    assert (depth > 0).all()
    torch.testing.assert_close(back, pixels, atol=1e-8, rtol=0)

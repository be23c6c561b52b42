"""What voxels take from images: against loops over voxels and cameras."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim4d.clip import Clip
from mim4d.eval.view import MIN_DEPTH, ViewTransform
from mim4d.geometry import VoxelGrid, make_pose, rotation_from_quaternion
from tests.reference import pinhole
from tests.toy import toy_clip

# No two counts alike: an axis mistaken for another shows.
GRID = VoxelGrid(x=(-8, 8), y=(-6, 4.5), z=(-1, 3), voxel=(2, 1.5, 2))  # 8 x 7 x 2
STRIDE, SIZE = 8, (32, 64)


def anywhere(cameras: int, seed: int, clips: int = 2) -> Clip:
    """Cameras that stand anywhere and look anywhere, in float64 so that no voxel is on the wrong side."""
    generator = torch.Generator().manual_seed(seed)
    rotation = rotation_from_quaternion(torch.randn(clips, 1, cameras, 4, generator=generator, dtype=torch.float64))
    position = torch.randn(clips, 1, cameras, 3, generator=generator, dtype=torch.float64)
    clip = toy_clip(clips, 1, cameras, SIZE, seed=seed)
    return replace(clip, intrinsics=clip.intrinsics.double(), ego_from_camera=make_pose(rotation, position))


def slow(maps, clip, b):
    """Volume [C, Z, Y, X] of maps [V, C, h, w], and how many cameras see each voxel."""
    z_count, y_count, x_count = GRID.shape
    volume = np.zeros((maps.shape[1], *GRID.shape))
    seen_by = np.zeros(GRID.shape, int)
    for z in range(z_count):
        for y in range(y_count):
            for x in range(x_count):
                low = (GRID.x[0], GRID.y[0], GRID.z[0])
                point = np.array(low) + (np.array((x, y, z)) + 0.5) * GRID.voxel
                best = np.inf
                for v in range(len(maps)):
                    pose = clip.ego_from_camera[b, 0, v].numpy()
                    in_camera = np.linalg.solve(pose[:3, :3], point - pose[:3, 3])
                    if in_camera[2] <= MIN_DEPTH:
                        continue
                    pixels, _ = pinhole.project(clip.intrinsics[b, 0, v].numpy(), in_camera[None])
                    u, w = pixels[0]
                    if not (0 <= u < SIZE[1] and 0 <= w < SIZE[0]):
                        continue
                    seen_by[z, y, x] += 1
                    off = abs(u / SIZE[1] - 0.5)
                    if off < best:
                        best = off
                        for c in range(maps.shape[1]):
                            padded = np.pad(maps[v, c], 1, mode="edge")
                            volume[c, z, y, x] = pinhole.bilinear(padded, u / STRIDE + 1, w / STRIDE + 1)
    return volume, seen_by


@torch.no_grad()
def volumes_of(maps, clip):
    """Volumes [B, C, Z, Y, X] before the heights are joined, of maps [B, V, C, h, w]."""
    channels = maps.shape[2]
    view = ViewTransform(channels, channels, STRIDE, GRID)
    view.reduce = view.merge_heights = torch.nn.Identity()
    return view(maps, clip).view(len(maps), channels, *GRID.shape)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), cameras=st.sampled_from([1, 2, 6]))
def test_voxels_take_what_loops_say(seed, cameras):
    clip = anywhere(cameras, seed)
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, cameras, 3, SIZE[0] // STRIDE, SIZE[1] // STRIDE, generator=generator)
    volumes = volumes_of(maps, clip)
    for b in range(2):
        wanted, seen_by = slow(maps[b].numpy(), clip, b)
        np.testing.assert_allclose(volumes[b].numpy(), wanted, atol=1e-4)
        assert (volumes[b].numpy()[:, seen_by == 0] == 0).all()


def test_what_is_seen_twice_comes_from_the_camera_that_has_it_in_the_middle():
    clip = anywhere(1, 0, clips=1)
    ahead = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
    aside = torch.tensor([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64) @ ahead
    origin = torch.tensor([[-9.0, 0.0, 1.0]] * 2, dtype=torch.float64)
    poses = make_pose(torch.stack([ahead, aside]), origin)
    clip = replace(clip, images=clip.images.repeat(1, 1, 2, 1, 1, 1), ego_from_camera=poses[None, None])
    clip = replace(clip, intrinsics=clip.intrinsics.repeat(1, 1, 2, 1, 1))
    _, seen_by = slow(np.zeros((2, 1, 4, 8)), clip, 0)
    assert (seen_by == 2).any()  # or else this says nothing
    maps = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1, 1).expand(-1, -1, -1, 4, 8)
    wanted, _ = slow(maps[0].numpy(), clip, 0)
    assert set(np.unique(wanted.round(6))) == {0, 1, 2}
    np.testing.assert_allclose(volumes_of(maps, clip)[0].numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_reach_the_maps_and_its_weights(precision):
    torch.manual_seed(0)
    clip = toy_clip(2, 1, 6, SIZE)
    view = ViewTransform(5, 4, STRIDE, GRID)
    maps = torch.randn(2, 6, 5, SIZE[0] // STRIDE, SIZE[1] // STRIDE, requires_grad=True)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        out = view(maps, clip)
    assert out.shape == (2, 4, *GRID.shape[1:])
    out.float().square().sum().backward()
    for gradient in (maps.grad, *(p.grad for p in view.parameters())):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mim4d.geometry import VoxelGrid
from tests.reference import voxelgrid

LIKE = torch.zeros(1, dtype=torch.float64)


@st.composite
def grids(draw):
    """Grids of any place, size and number of voxels, in quarters of a metre."""
    ranges, sizes = [], []
    for _ in range(3):
        low, count = draw(st.integers(-40, 40)) / 4, draw(st.integers(1, 6))
        size = draw(st.integers(1, 8)) / 4
        ranges.append((low, low + count * size))
        sizes.append(size)
    return VoxelGrid(x=ranges[0], y=ranges[1], z=ranges[2], voxel=tuple(sizes))


@given(grids())
def test_centers_agree_with_loops(grid):
    expected = voxelgrid.centers((grid.x, grid.y, grid.z), grid.voxel)
    np.testing.assert_allclose(grid.centers(LIKE), expected, atol=1e-12)
    assert grid.shape == expected.shape[:3]


@given(grids())
def test_index_of_a_center_is_its_own_index(grid):
    index = grid.index_of(grid.centers(LIKE))
    for k, j, i in np.ndindex(grid.shape):
        np.testing.assert_allclose(index[k, j, i], [i, j, k], atol=1e-9)


@given(grids())
def test_the_first_voxel_touches_the_low_corner(grid):
    torch.testing.assert_close(grid.index_of(grid.low(LIKE)), torch.full((3,), -0.5, dtype=torch.float64))
    half = torch.tensor(grid.shape[::-1], dtype=torch.float64) - 0.5
    torch.testing.assert_close(grid.index_of(grid.high(LIKE)), half)


def test_published_grid():
    grid = VoxelGrid()
    assert grid.shape == (5, 180, 180)
    assert grid.centers(LIKE)[0, 0, 0].tolist() == pytest.approx([-53.7, -53.7, -2.4])


def test_contains():
    grid = VoxelGrid(x=(0, 2), y=(0, 2), z=(0, 2), voxel=(1, 1, 1))
    points = torch.tensor([[0.0, 0.0, 0.0], [1.9, 1.9, 1.9], [2.0, 1.0, 1.0], [-0.1, 1.0, 1.0]])
    assert grid.contains(points).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "wrong", [{"x": (0.0, 1.0)}, {"x": (5.0, -5.0)}, {"x": (-54.0, 54.1)}, {"voxel": (0.6, 0.0, 1.6)}]
)
def test_a_range_that_is_not_a_whole_number_of_voxels_is_refused(wrong):
    with pytest.raises(ValueError, match=r"whole number of voxels|zero"):
        VoxelGrid(**({"voxel": (0.6, 0.6, 1.6)} | wrong))

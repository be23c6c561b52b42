"""The field against its definition: trilinear features, decoders and the derivatives that are written out by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mim4d.geometry import VoxelGrid
from mim4d.method.field import Field, SDFDecoder, corners
from tests.reference import field as reference

GRID = VoxelGrid(x=(-3, 5), y=(-4, 2), z=(-1, 2), voxel=(2, 1.5, 1))  # (Z, Y, X) = (3, 4, 4), no two axes alike
CHANNELS = 3


def make_field(seed: int = 0, sdf_blocks: int = 5) -> Field:
    torch.manual_seed(seed)
    return Field(CHANNELS, GRID, hidden=6, sdf_blocks=sdf_blocks).double()


def make_volumes(count: int = 1, seed: int = 1) -> Tensor:
    return torch.randn(count, CHANNELS, *GRID.shape, generator=torch.Generator().manual_seed(seed)).double()


def as_table(volumes: Tensor) -> Tensor:
    """[G, C, Z, Y, X] -> [G*Z*Y*X, C]."""
    return volumes.permute(0, 2, 3, 4, 1).reshape(-1, volumes.shape[1])


def make_points(count: int, seed: int = 2, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Points in the box (also outside it if spread > 1), none on a face of a cell, and unit directions."""
    g = torch.Generator().manual_seed(seed)
    size = torch.tensor([4.0, 4.0, 3.0]).double()
    index = (torch.rand(count, 3, generator=g).double() - 0.5) * spread * size + size / 2 - 0.5
    index = torch.where((index - index.round()).abs() < 1e-3, index + 0.01, index)
    points = (index + 0.5) * torch.tensor(GRID.voxel).double() + GRID.low(index)
    return points, F.normalize(torch.randn(count, 3, generator=g).double(), dim=-1)


def zeros(points: Tensor) -> Tensor:
    """Every point in the first volume."""
    return torch.zeros(len(points), dtype=torch.int64)


def weights_of(field: Field) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in field.state_dict().items()}


def hat_lookup(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear features [P, C] in another, twice differentiable way: a sum over *all* voxels with hat weights."""
    index = GRID.index_of(points)
    hats = []
    for axis, size in enumerate(GRID.shape[::-1]):
        at = index[:, axis].clamp(0, size - 1)
        hats.append((1 - (at[:, None] - torch.arange(size)).abs()).clamp(min=0))
    return torch.einsum("nx,ny,nz,czyx->nc", *hats, volume)


# Lookup


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    index=st.lists(st.tuples(*[st.floats(-3, 6)] * 3), min_size=1, max_size=4),
    seed=st.integers(0, 10),
)
def test_corners_are_the_trilinear_lookup(shape, index, seed):
    volume = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed)).double()
    rows, weights = corners(torch.tensor(index, dtype=torch.float64), shape)
    assert rows.min() >= 0
    assert rows.max() < volume[0].numel()
    looked = weights @ volume.flatten(1).T[rows]
    expected = np.stack([reference.lookup(volume.numpy(), i) for i in index])
    np.testing.assert_allclose(looked[:, 0], expected, atol=1e-12)
    torch.testing.assert_close(weights[:, 0].sum(1), torch.ones(len(index)).double())
    torch.testing.assert_close(weights[:, 1:].sum(2), torch.zeros(len(index), 3).double())


@pytest.mark.parametrize("spread", [1.0, 2.0], ids=["inside", "beyond the border too"])
def test_corner_derivatives_are_finite_differences(spread):
    volume = make_volumes()[0]
    index = GRID.index_of(make_points(200, spread=spread)[0])
    rows, weights = corners(index, GRID.shape)
    derivatives = (weights @ volume.flatten(1).T[rows])[:, 1:]  # [N, 3, C]
    h = 1e-6
    for axis in range(3):
        nudge = h * torch.eye(3)[axis].double()
        ahead, behind = (
            np.stack([reference.lookup(volume.numpy(), i) for i in (index + sign * nudge).numpy()]) for sign in (1, -1)
        )
        np.testing.assert_allclose(derivatives[:, axis], (ahead - behind) / (2 * h), atol=1e-8)


def test_points_outside_the_outermost_centres_get_the_border_value():
    volume = make_volumes()[0]
    rows, weights = corners(torch.tensor([[-0.4, 1.3, 0.2], [-7.0, 1.3, 0.2], [0.0, 1.3, 0.2]]).double(), GRID.shape)
    looked = weights @ volume.flatten(1).T[rows]
    torch.testing.assert_close(looked[0], looked[1])
    torch.testing.assert_close(looked[0, 0], looked[2, 0])
    assert (looked[:2, 1] == 0).all()  # flat along x
    assert (looked[:2, 2].abs() > 1e-3).all()  # but not along y


# The signed-distance decoder


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_closed_form_derivatives_equal_autograd(blocks):
    torch.manual_seed(0)
    decoder = SDFDecoder(CHANNELS, 7, blocks, 1 + 7).double()
    points = torch.randn(50, 3).double().requires_grad_()
    features = torch.randn(50, CHANNELS).double().requires_grad_()
    sdf, geometry, by_point, by_feature = decoder(points, features)
    expected = torch.autograd.grad(sdf.sum(), (points, features))
    torch.testing.assert_close(by_point, expected[0], atol=1e-8, rtol=1e-7)
    torch.testing.assert_close(by_feature, expected[1], atol=1e-8, rtol=1e-7)
    assert by_point.abs().min() > 0
    assert geometry.shape == (50, 7)


def test_distance_equals_that_of_forward():
    field, volumes = make_field(), make_volumes(2)
    points, directions = make_points(100)
    first = torch.arange(100) % 2 * volumes[0, 0].numel()
    sdf, _, _ = field(points, directions, as_table(volumes), first)
    torch.testing.assert_close(field.distance(points, as_table(volumes), first), sdf)


# The whole field


def test_field_against_loops():
    field, volume = make_field(), make_volumes()
    points, directions = make_points(60, spread=1.3)
    with torch.no_grad():
        sdf, normals, rgb = field(points, directions, as_table(volume), zeros(points))
    low, voxel = GRID.low(points).numpy(), np.array(GRID.voxel)
    weights = weights_of(field)
    for i, (point, direction) in enumerate(zip(points.numpy(), directions.numpy(), strict=True)):
        expected = reference.evaluate(weights, volume[0].numpy(), low, voxel, 5.0, point, direction)
        np.testing.assert_allclose(sdf[i], expected[0], atol=1e-10)
        np.testing.assert_allclose(normals[i], expected[1], atol=1e-6)
        np.testing.assert_allclose(rgb[i], expected[2], atol=1e-7)


def test_scale_is_the_farthest_reach():
    assert make_field().scale == 5.0


def test_normal_is_the_gradient_by_the_scaled_position():
    """In a volume of heights in metres the normal must point straight up, with length 1 in scene units."""
    field = make_field()
    with torch.no_grad():
        for parameter in field.sdf.parameters():
            parameter.zero_()
        field.sdf.feature.weight[-6, 0] = 1 / field.scale  # the last layer adds channel 0, metres -> scene units
        field.sdf.last.weight[0, 0] = 1
        field.sdf.last.bias[0] = -np.log(2) / 100  # softplus(0)
    volume = torch.zeros(1, CHANNELS, *GRID.shape).double()
    volume[0, 0] = GRID.centers(volume)[..., 2]
    points = torch.tensor([[0.3, -1.1, 0.7], [3.0, 0.4, -0.2]]).double()
    sdf, normals, _ = field(points, points, as_table(volume), zeros(points))
    torch.testing.assert_close(sdf, points[:, 2] / 5)
    torch.testing.assert_close(normals, torch.tensor([[0.0, 0.0, 1.0]] * 2).double())


def test_each_point_reads_its_own_volume():
    field, volumes = make_field(), make_volumes(3)
    points, directions = make_points(30)
    owner = torch.arange(30) % 3
    together = field(points, directions, as_table(volumes), owner * volumes[0, 0].numel())
    for g in range(3):
        mine = owner == g
        alone = field(points[mine], directions[mine], as_table(volumes[g : g + 1]), zeros(points[mine]))
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[mine], b)


def normal_loss(sdf: Tensor, normals: Tensor, rgb: Tensor, directions: Tensor) -> Tensor:
    """A loss of everything that the renderer reads, nonlinear in the normals."""
    return ((normals.norm(dim=-1) - 1).square() + F.relu(-(normals * directions).sum(-1))).sum() + (
        sdf[:, None] * rgb
    ).sum()


def test_gradients_of_a_loss_on_normals_equal_those_of_double_backward():
    """Hand-written derivatives with one backward pass against autograd twice, with the same weights."""
    field, volume = make_field(), make_volumes()
    points, directions = make_points(40)
    parameters = [*field.sdf.parameters(), *field.rgb.parameters()]

    mine = volume.clone().requires_grad_()
    ours = normal_loss(*field(points, directions, as_table(mine), zeros(points)), directions)
    got = torch.autograd.grad(ours, [mine, *parameters])

    other = volume.clone().requires_grad_()
    where = points.clone().requires_grad_()
    features = hat_lookup(other[0], where)
    sdf, geometry, _, _ = field.sdf(where / field.scale, features)
    (by_metre,) = torch.autograd.grad(sdf.sum(), where, create_graph=True)
    normals = by_metre * field.scale
    facing = normals / (normals.square().sum(-1, keepdim=True) + 1e-4).sqrt()
    rgb = field.rgb(where / field.scale, torch.cat([directions, features, facing, geometry], dim=-1))
    expected_loss = normal_loss(sdf, normals, rgb, directions)
    expected = torch.autograd.grad(expected_loss, [other, *parameters])

    torch.testing.assert_close(ours, expected_loss)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    assert got[0].abs().max() > 1e-2


def test_gradcheck():
    field = make_field(sdf_blocks=2)
    volume = make_volumes().requires_grad_()
    points, directions = make_points(5)
    parameters = [field.sdf.point.weight, field.sdf.feature.weight, field.sdf.layers[1].weight, field.rgb.last.weight]

    def run(volume: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return field(points, directions, as_table(volume), zeros(points))

    assert torch.autograd.gradcheck(run, (volume, *parameters), eps=1e-7, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    field, volume = make_field(), make_volumes()
    points, directions = make_points(40)
    sdf, normals, rgb = field(points, directions, as_table(volume), zeros(points))
    (torch.sigmoid(sdf * field.inv_s).sum() + normals.square().sum() + rgb.square().sum()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_sharpness_starts_at_e_cubed():
    field = make_field()
    assert field.inv_s.item() == pytest.approx(np.exp(3.0), rel=1e-6)
    field.inv_s.backward()
    assert field.v.grad.item() == pytest.approx(10 * np.exp(3.0), rel=1e-6)

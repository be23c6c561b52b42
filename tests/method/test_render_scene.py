"""The renderer on scenes whose depth is known: planes and spheres given as exact signed distances at voxel centres."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mim4d.geometry import VoxelGrid
from mim4d.method.field import HIDDEN
from mim4d.method.render import RenderConfig, Renderer

GRID = VoxelGrid(voxel=(0.6, 0.6, 0.8))  # the published "small" volume: 108 x 108 x 8 m
REACH = 54.0  # metres; the range that 1 % is of
SHARP = 2000.0  # per scene unit: a surface 3 cm thick
CAMERAS = [(0, 0, 1.6), (-20, 10, 3), (30, -8, 4.2), (2, -50, 1), (-75, 3, 2), (10, 20, 12)]  # the last two outside
CHANNELS = 4

SPHERE = np.array([12.0, 4.0, 2.0]), 2.5
WALL = np.array([25.0, 0.0, 0.0]), np.array([-0.8, 0.6, 0.0])  # a point of it, and its unit normal


def make_renderer(inv_s: float = SHARP, grid: VoxelGrid = GRID) -> Renderer:
    """Decoders set by hand: the field reads channel 0 as the signed distance in metres, 1 to 3 as colour logits."""
    renderer = Renderer(RenderConfig(), CHANNELS, grid, sky=True)
    field = renderer.field
    with torch.no_grad():
        for parameter in renderer.parameters():
            parameter.zero_()
        # The last layer adds its map of the feature after the activation, so channels pass through untouched.
        field.sdf.feature.weight[-HIDDEN, 0] = 1 / field.scale
        field.sdf.last.weight[0, 0] = 1
        field.sdf.last.bias[0] = -math.log(2) / field.sdf.BETA  # softplus(0)
        for c in range(3):
            field.rgb.feature.weight[-HIDDEN + c, 3 + 1 + c] = 1  # after the direction and channel 0
            field.rgb.last.weight[c, c] = 1
        field.v.fill_(math.log(inv_s) / 10)
        renderer.sky.copy_(torch.tensor([2.0, 0.0, -2.0]))
    return renderer


def distances_to(name: str, points: np.ndarray) -> np.ndarray:
    """Signed distance [...] in metres from points [..., 3] to a scene."""
    plane = points[..., 2]
    sphere = np.linalg.norm(points - SPHERE[0], axis=-1) - SPHERE[1]
    wall = (points - WALL[0]) @ WALL[1]
    return {"plane": plane, "sphere": sphere, "wall": wall, "all": np.minimum(np.minimum(plane, sphere), wall)}[name]


def make_volume(name: str, colour: tuple[float, float, float] = (0, 0, 0)) -> Tensor:
    """[1, 4, Z, Y, X]."""
    sdf = torch.from_numpy(distances_to(name, GRID.centers(torch.zeros((), dtype=torch.float64)).numpy())).float()
    logits = torch.tensor(colour).view(3, 1, 1, 1).expand(-1, *sdf.shape)
    return torch.cat([sdf[None], logits])[None]


def first_hits(name: str, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact depth [N] (infinite where there is no hit) and cosine of incidence [N]."""
    depth, cosine = np.full(len(directions), np.inf), np.zeros(len(directions))
    for i, direction in enumerate(directions):
        found = []
        for plane, (point, normal) in (("plane", (np.zeros(3), np.array([0.0, 0, 1]))), ("wall", WALL)):
            towards = -direction @ normal
            if name in (plane, "all") and towards > 1e-6:
                found.append(((origin - point) @ normal / towards, towards))
        if name in ("sphere", "all"):
            middle = (SPHERE[0] - origin) @ direction
            past = np.sum((SPHERE[0] - origin) ** 2) - middle**2
            if past < SPHERE[1] ** 2:
                half = math.sqrt(SPHERE[1] ** 2 - past)
                found.append((middle - half, half / SPHERE[1]))
        found = [hit for hit in found if hit[0] > 0]
        if found:
            depth[i], cosine[i] = min(found)
    return depth, cosine


def rays_at(origin: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Unit directions [N, 3]: half to all sides, half towards the sphere."""
    random = np.random.default_rng(seed)
    around = random.normal(size=(count, 3)) * [1, 1, 0.25]
    towards = SPHERE[0] + random.uniform(-3, 3, size=(count, 3)) - origin
    directions = np.concatenate([around, towards])
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def judged(name: str, origin: np.ndarray, directions: np.ndarray, depth: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """The hits [N] that voxels can represent: in the volume, not grazing, not near an edge between two surfaces."""
    reach = np.where(np.isfinite(depth), depth, 0)[:, None]
    ends = [GRID.contains(torch.from_numpy(origin + (reach + extra) * directions)).numpy() for extra in (0, 1.5)]
    clear = np.isfinite(depth) & (depth > 1.5) & ends[0] & ends[1] & (cosine > (0.5 if name == "sphere" else 0.05))
    if name == "all":  # nowhere on its way does the ray come near a surface other than the one it hits
        way = origin + np.linspace(0, 1, 300)[:, None, None] * reach * directions  # [300, N, 3]
        each = np.stack([distances_to(one, way) for one in ("plane", "wall", "sphere")])  # [3, 300, N]
        hit = each[:, -1].argmin(0)
        others = np.where(np.arange(3)[:, None] == hit, np.inf, each.min(1))
        clear &= (others.min(0) > 1) & ((hit != 2) | (cosine > 0.5))
    return clear


CASES = [
    (name, camera)
    for name in ("plane", "wall", "sphere", "all")
    for camera in CAMERAS
    if distances_to(name, np.array(camera)) >= 1
]


@pytest.mark.parametrize(("name", "camera"), CASES, ids=str)
def test_depth_within_one_percent_of_the_range(name, camera):
    origin = np.array(camera, dtype=np.float64)
    directions = rays_at(origin, 300)
    exact, cosine = first_hits(name, origin, directions)
    clear = judged(name, origin, directions, exact, cosine)
    assert clear.sum() >= 5

    origins = torch.from_numpy(origin).float().expand(1, len(directions), 3)
    with torch.no_grad():
        got = make_renderer()(make_volume(name), origins, torch.from_numpy(directions).float()[None])
    error = np.abs(got.depth[0].numpy() - exact)[clear]
    assert error.max() < 0.01 * REACH
    assert np.median(error) < 0.001 * REACH
    assert got.hit[0].numpy()[clear].all()
    assert got.opacity[0].numpy()[clear].min() > 0.85


def test_colour_is_that_of_the_surface_hit():
    origins = torch.tensor([[[0.0, 0.0, 1.6]]])
    directions = F.normalize(torch.tensor([[[1.0, 0.3, -0.3]]]), dim=-1)
    got = make_renderer()(make_volume("plane", colour=(1.0, -2.0, 0.5)), origins, directions)
    torch.testing.assert_close(got.rgb[0, 0], torch.sigmoid(torch.tensor([1.0, -2.0, 0.5])), atol=1e-3, rtol=0)


def test_an_empty_scene_shows_the_sky():
    volume = make_volume("plane", colour=(5.0, 5.0, 5.0))
    volume[:, 0] = 20.0  # metres to the nearest surface, everywhere
    origins = torch.tensor([[[0.0, 0.0, 1.6], [-75.0, 0.0, 2.0]]])
    got = make_renderer()(volume, origins, torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]]))
    assert got.opacity.max() < 2e-3
    assert got.hit.all()
    torch.testing.assert_close(got.rgb[0], torch.sigmoid(torch.tensor([[2.0, 0.0, -2.0]] * 2)), atol=2e-3, rtol=0)


def test_without_a_sky_an_empty_scene_is_dark():
    volume = make_volume("plane", colour=(5.0, 5.0, 5.0))
    volume[:, 0] = 20.0
    renderer = Renderer(RenderConfig(), CHANNELS, GRID, sky=False)
    renderer.field.load_state_dict(make_renderer().field.state_dict())
    got = renderer(volume, torch.tensor([[[0.0, 0.0, 1.6]]]), torch.tensor([[[0.0, 1.0, 0.0]]]))
    assert got.rgb.max() < 2e-3


def test_a_surface_nearer_than_the_near_plane_is_not_seen_through_its_back():
    """From 0.5 m in front of a wall the samples begin behind its surface, in the solid: the first section is opaque."""
    origin = torch.tensor([[[24.6, 0.3, 2.0]]]).double()
    assert distances_to("wall", origin.numpy())[0, 0] == pytest.approx(0.5)
    direction = -torch.from_numpy(WALL[1]).float().view(1, 1, 3)
    got = make_renderer()(make_volume("wall"), origin.float(), direction)
    assert got.opacity.item() > 0.99
    assert 1 < got.depth.item() < 2


def test_a_depth_loss_pulls_the_surface_towards_the_target():
    """With a target 1 m farther away the plane must recede: its signed distances must grow."""
    volume = make_volume("plane").requires_grad_()
    origins = torch.tensor([[[0.0, 0.0, 1.6]]])
    directions = F.normalize(torch.tensor([[[1.0, 0.0, -0.3]]]), dim=-1)
    got = make_renderer(inv_s=500.0)(volume, origins, directions)
    (got.depth - (got.depth.detach() + 1)).abs().sum().backward()
    pull = volume.grad[0, 0]
    assert pull.sum() < 0  # descent makes them larger
    # And only voxels along the ray's way are touched.
    cells = GRID.index_of(torch.stack([origins[0, 0] + t * directions[0, 0] for t in (5.6, 0.0)]))
    beyond = pull[:, : int(cells[1, 1]) - 1]
    assert (beyond == 0).all()


def test_a_soft_surface_is_still_centred_on_the_true_one():
    """NeuS' weights are unbiased to first order: head on, a surface 20 times as soft has the same depth."""
    origins, directions = torch.tensor([[[10.0, 10.0, 4.7]]]), torch.tensor([[[0.0, 0.0, -1.0]]])
    got = make_renderer(inv_s=100.0)(make_volume("plane"), origins, directions)
    assert got.depth.item() == pytest.approx(4.7, abs=0.1)

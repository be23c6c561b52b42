"""The renderer against NeuS as loops in float64; chunks, batches, misses and precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mim4d.geometry import VoxelGrid
from mim4d.method.field import Field
from mim4d.method.render import RenderConfig, Rendered, Renderer
from tests.reference import field as reference_field
from tests.reference import render as reference

GRID = VoxelGrid(x=(-12, 16), y=(-10, 10), z=(-1, 5), voxel=(2, 2, 1.5))
CHANNELS = 4


def make_renderer(chunk: int = 1000, uniform: int = 20, extra: int = 8, seed: int = 2) -> Renderer:
    """A renderer with random decoders whose distance changes sign: some rays hit surfaces, others the background."""
    config = RenderConfig(uniform_samples=uniform, importance_samples=extra, chunk=chunk)
    renderer = Renderer(config, CHANNELS, GRID, sky=True)
    torch.manual_seed(seed)
    renderer.field = Field(CHANNELS, GRID, hidden=6, sdf_blocks=3)
    with torch.no_grad():
        renderer.field.sdf.last.weight[0] *= 3
        renderer.field.sdf.last.bias[0] = 0.8
        renderer.field.v.fill_(0.3)
        renderer.sky.copy_(torch.tensor([1.0, -1.0, 0.5]))
    return renderer


def make_volumes(count: int = 1, seed: int = 2) -> Tensor:
    return torch.randn(count, CHANNELS, *GRID.shape, generator=torch.Generator().manual_seed(seed))


def make_rays(groups: int, count: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Origins inside the box, unit directions."""
    g = torch.Generator().manual_seed(seed)
    origins = torch.rand(groups, count, 3, generator=g) * torch.tensor([10.0, 10.0, 3.0]) - torch.tensor([5.0, 5.0, 0])
    return origins, F.normalize(torch.randn(groups, count, 3, generator=g) * torch.tensor([1.0, 1.0, 0.3]), dim=-1)


def same(a: Rendered, b: Rendered, atol: float = 1e-5) -> None:
    for name in Rendered._fields:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=atol, rtol=1e-4, msg=f"{name} differs")


# Against loops


class Slow:
    """The reference renderer with the weights of a fast one."""

    def __init__(self, renderer: Renderer, volume: Tensor):
        like = torch.zeros((), dtype=torch.float64)
        self.low, self.high = GRID.low(like).numpy(), GRID.high(like).numpy()
        self.scale, self.config = 16.0, renderer.config
        self.numbers = {name: value.detach().double().numpy() for name, value in renderer.named_parameters()}
        self.numbers["volume"] = volume.double().numpy()

    def place(self, origin, direction, jitter):
        """Sample distances along a ray, and where it ends."""
        near, far = reference.interval(origin, direction, self.low, self.high)
        distances = reference.stratified(near, far, jitter)
        weights, volume = self.weights(self.numbers)
        sdf = [
            reference_field.distance(
                weights, volume, self.low, np.array(GRID.voxel), self.scale, origin + t * direction
            )[0]
            for t in distances
        ]
        shares = reference.coarse_weights([t / self.scale for t in distances], sdf, 64.0)
        return reference.importance(distances, shares, self.config.importance_samples), far

    def march(self, origin, direction, distances, far, numbers=None):
        """Colour, depth and opacity."""
        numbers = numbers or self.numbers
        weights, volume = self.weights(numbers)

        def evaluate(point, direction):
            return reference_field.evaluate(
                weights, volume, self.low, np.array(GRID.voxel), self.scale, point, direction
            )

        background = 1 / (1 + np.exp(-numbers["sky"]))
        inv_s = np.exp(10 * numbers["field.v"])
        return reference.march(evaluate, origin, direction, distances, far, inv_s, self.scale, background)

    @staticmethod
    def weights(numbers):
        return {name.removeprefix("field."): value for name, value in numbers.items()}, numbers["volume"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_against_loops(seed):
    renderer, volume = make_renderer(seed=seed), make_volumes(seed=seed)
    origins, directions = make_rays(1, 12, seed)
    jitter = torch.rand(1, 12, 20, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        got = renderer(volume, origins, directions, jitter)
    slow = Slow(renderer, volume[0])
    for i in range(12):
        ray = origins[0, i].double().numpy(), directions[0, i].double().numpy()
        rgb, depth, opacity = slow.march(*ray, *slow.place(*ray, jitter[0, i].tolist()))
        np.testing.assert_allclose(got.rgb[0, i], rgb, atol=2e-4)
        np.testing.assert_allclose(got.depth[0, i], depth, atol=5e-3)  # metres
        np.testing.assert_allclose(got.opacity[0, i], opacity, atol=2e-4)
    assert got.opacity.min() < 0.5 < 0.99 < got.opacity.max()  # surfaces and background, not fog


def test_gradients_against_loops():
    """The slope of a loss along random directions of each tensor: autograd against differences of the reference."""
    renderer, volume = make_renderer(), make_volumes()
    volume.requires_grad_()
    origins, directions = make_rays(1, 5)
    pull = torch.randn(5, 5, generator=torch.Generator().manual_seed(3))  # what the loss asks of each ray

    got = renderer(volume, origins, directions)
    outputs = torch.cat([got.rgb[0], got.depth[0, :, None] / 16, got.opacity[0, :, None]], dim=-1)
    (outputs * pull).sum().backward()
    gradients = {"volume": volume.grad[0]} | {name: p.grad for name, p in renderer.named_parameters()}

    slow = Slow(renderer, volume.detach()[0])
    rays = [(o, d) for o, d in zip(origins[0].double().numpy(), directions[0].double().numpy(), strict=True)]
    placed = [slow.place(*ray, [0.5] * 20) for ray in rays]  # placement passes no gradient, so it stays

    def loss(numbers):
        total = 0.0
        for ray, place, wanted in zip(rays, placed, pull.double().numpy(), strict=True):
            rgb, depth, opacity = slow.march(*ray, *place, numbers=numbers)
            total += np.dot([*rgb, depth / 16, opacity], wanted)
        return total

    random = np.random.default_rng(0)
    for name, gradient in gradients.items():
        direction = random.normal(size=gradient.shape)
        step = 1e-4 / np.linalg.norm(direction)
        ahead, behind = (loss(slow.numbers | {name: slow.numbers[name] + sign * step * direction}) for sign in (1, -1))
        expected = (ahead - behind) / (2 * step)
        scale = gradient.norm().item() * np.linalg.norm(direction) / np.sqrt(gradient.numel())
        assert (gradient.numpy() * direction).sum() == pytest.approx(expected, abs=2e-3 * scale), name
        assert scale > 0, name


# Chunks and batches


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_change_neither_values_nor_gradients(chunk):
    results = []
    for size in (1000, chunk):
        renderer, volumes = make_renderer(size), make_volumes(2).requires_grad_()
        got = renderer(volumes, *make_rays(2, 20))
        (got.rgb.sum() + got.depth.sum() / 16).backward()
        results.append((got, [volumes.grad, *[p.grad for p in renderer.parameters()]]))
    same(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_batch_equals_its_volumes_one_by_one():
    renderer, volumes = make_renderer(chunk=13), make_volumes(3)
    volumes.requires_grad_()
    origins, directions = make_rays(3, 10)
    jitter = torch.rand(3, 10, 20, generator=torch.Generator().manual_seed(5))
    together = renderer(volumes, origins, directions, jitter)
    (gradient,) = torch.autograd.grad(together.depth.sum() + together.rgb.sum(), volumes)
    for g in range(3):
        one = slice(g, g + 1)
        mine = volumes.detach()[one].requires_grad_()
        alone = renderer(mine, origins[one], directions[one], jitter[one])
        same(Rendered(*(x[one] for x in together)), alone)
        (expected,) = torch.autograd.grad(alone.depth.sum() + alone.rgb.sum(), mine)
        torch.testing.assert_close(gradient[one], expected, atol=1e-4, rtol=1e-3)


def test_gradients_stay_in_the_volume_of_the_rays():
    volumes = make_volumes(3).requires_grad_()
    make_renderer()(volumes, *make_rays(3, 10)).depth[1].sum().backward()
    assert volumes.grad[1].abs().max() > 0
    assert (volumes.grad[[0, 2]] == 0).all()


def test_values_are_the_same_with_and_without_gradients():
    renderer, volumes, rays = make_renderer(chunk=6), make_volumes(), make_rays(1, 20)
    with torch.no_grad():
        still = renderer(volumes, *rays)
    same(renderer(volumes, *rays), still, atol=0)


def test_no_jitter_gives_the_middles():
    renderer, volumes, rays = make_renderer(), make_volumes(), make_rays(1, 20)
    same(renderer(volumes, *rays), renderer(volumes, *rays, torch.full((1, 20, 20), 0.5)), atol=0)
    assert not torch.equal(renderer(volumes, *rays).depth, renderer(volumes, *rays, torch.full((1, 20, 20), 0.1)).depth)


def test_without_importance_samples():
    got = make_renderer(extra=0)(make_volumes(), *make_rays(1, 20))
    assert got.depth.isfinite().all()


# Precision


def test_it_runs_in_float32_inside_bfloat16_autocast():
    renderer, rays = make_renderer(chunk=6), make_rays(1, 20)
    results = []
    for enabled in (False, True):
        volumes = make_volumes().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            got = renderer(volumes, *rays)
        (gradient,) = torch.autograd.grad(got.rgb.sum() + got.depth.sum(), volumes)
        results.append((got, gradient))
    assert results[1][0].rgb.dtype == torch.float32
    same(results[0][0], results[1][0], atol=0)
    torch.testing.assert_close(results[0][1], results[1][1])


def test_bfloat16_volumes_are_accepted():
    volumes = make_volumes().bfloat16()
    rays = make_rays(1, 20)
    same(make_renderer()(volumes, *rays), make_renderer()(volumes.float(), *rays), atol=0)


# Misses and odd rays


def mixed_rays() -> tuple[Tensor, Tensor, list[bool]]:
    rays = [
        ((0, 0, 1), (1, 0, 0), True),  # from inside
        ((-40, 0, 1), (1, 0, 0), True),  # from outside, inwards
        ((-40, 0, 1), (-1, 0, 0), False),  # from outside, away
        ((0, 0, 9), (0, 0, -1), True),  # from above
        ((0, 0, 9), (1, 0, 0), False),  # over it, parallel
        ((-40, 0, 30), (0.6, 0.8, 0), False),
        ((15.5, 0, 1), (1, 0, 0), False),  # leaves the box nearer than the near plane
        ((0, 0, 9), (0.6, 0, -0.8), True),
    ]
    origins, directions, hits = zip(*rays, strict=True)
    return torch.tensor([origins]).float(), torch.tensor([directions]).float(), list(hits)


def test_rays_that_miss_the_box_are_flagged_and_harmless():
    renderer, volumes = make_renderer(), make_volumes().requires_grad_()
    origins, directions, hits = mixed_rays()
    got = renderer(volumes, origins, directions)
    assert got.hit[0].tolist() == hits
    assert all(value.isfinite().all() for value in got[:3])
    masked = got.hit.float()
    ((got.rgb.sum(-1) + got.depth) * masked).sum().backward()
    for name, gradient in [("volume", volumes.grad), *((n, p.grad) for n, p in renderer.named_parameters())]:
        assert gradient.isfinite().all(), name
    assert volumes.grad.abs().max() > 0


def test_a_miss_does_not_change_its_neighbours():
    renderer, volumes = make_renderer(), make_volumes()
    origins, directions, hits = mixed_rays()
    keep = torch.tensor(hits)
    got = renderer(volumes, origins, directions)
    alone = renderer(volumes, origins[:, keep], directions[:, keep])
    same(Rendered(*(x[:, keep] for x in got)), alone)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    origin=st.tuples(*[st.floats(-60, 60)] * 3),  # inside, outside, and on faces
    direction=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda d: np.linalg.norm(d) > 1e-3),
)
def test_any_ray_gives_finite_numbers_in_range(origin, direction):
    renderer, volumes = make_renderer(), make_volumes().requires_grad_()
    direction = F.normalize(torch.tensor(direction, dtype=torch.float64), dim=0).float()
    got = renderer(volumes, torch.tensor(origin)[None, None].float(), direction[None, None])
    (got.rgb.sum() + got.depth.sum()).backward()
    assert volumes.grad.isfinite().all()
    assert ((got.rgb >= 0) & (got.rgb <= 1 + 1e-4)).all()
    assert 0 <= got.opacity.item() <= 1
    assert 0 < got.depth.item() < 100
    # A ray that grazes the box may fall on either side of it.
    low, high = GRID.low(direction).double().numpy(), GRID.high(direction).double().numpy()
    inner = reference.interval(origin, direction.double().numpy(), low + 1e-3, high - 1e-3)
    outer = reference.interval(origin, direction.double().numpy(), low - 1e-3, high + 1e-3)
    if inner and inner[1] - inner[0] > 1e-3:
        assert got.hit.item()
        assert outer[0] - 1e-2 <= got.depth.item() <= outer[1] + 1e-2
    if outer is None:
        assert not got.hit.item()


@pytest.mark.parametrize("setting", [{"uniform_samples": 1}, {"rays_per_view": 0}, {"chunk": -1}], ids=str)
def test_invalid_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        RenderConfig(**setting)


def test_fewest_samples():
    got = make_renderer(uniform=2, extra=1)(make_volumes(), *make_rays(1, 20))
    assert all(value.isfinite().all() for value in got[:3])

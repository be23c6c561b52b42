"""BEV flow: its loss against loops and on a scene whose motion is known, and its head in metres per second."""

import pytest
import torch
from torch import Tensor

from mim4d.clip import Clip
from mim4d.geometry import VoxelGrid, transform
from mim4d.method.flow import FlowHead, flow_loss, similarities
from tests.method.test_consistency import at_size
from tests.reference import flow as reference
from tests.street import WALL, street
from tests.toy import toy_clip

GRID = VoxelGrid(x=(-6, 22), y=(-8, 12), z=(-1, 3), voxel=(2, 1, 2))  # (Z, Y, X) = (2, 20, 14)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_head(channels: int = 3) -> FlowHead:
    torch.manual_seed(0)
    head = FlowHead(channels, GRID)
    torch.nn.init.normal_(head.last.weight, std=0.1)
    return head


# The loss


@pytest.mark.parametrize(("frames", "cameras"), [(2, 1), (3, 2)])
def test_loss_against_loops(frames, cameras):
    clip = toy_clip(1, frames, cameras, (32, 48), seed=frames)
    log_depth = random(1, frames, cameras, 4, 6, seed=cameras) * 0.5 + 2
    flow = 3 * random(1, frames, 2, *GRID.shape[1:])
    expected = reference.flow_loss(
        flow[0].double().numpy(),
        log_depth[0].double().numpy(),
        clip.images[0].double().numpy() / 255,
        clip.intrinsics[0].double().numpy(),
        clip.ego_from_camera[0].double().numpy(),
        clip.current_from_ego[0].double().numpy(),
        clip.times[0].double().numpy(),
        low=(-6, -8),
        cell=(2, 1),
    )
    assert float(flow_loss(flow, log_depth, clip, GRID)) == pytest.approx(expected, rel=1e-4)


def flow_of_the_wall(velocity: Tensor, clip: Clip, wall_velocity: tuple[float, float]) -> Tensor:
    """Flow [1, T, 2, Y, X] of the cells from 1 m in front of the wall on; the others stand still."""
    centers = GRID.centers(clip.times)[0]  # [Y, X, 3]
    now = transform(clip.current_from_ego, centers.flatten(0, 1))  # [1, T, Y*X, 3]
    wall = WALL + wall_velocity[0] * clip.times[..., None]
    on_wall = (now[..., 0] > wall - 1).unflatten(-1, GRID.shape[1:])  # [1, T, Y, X]
    in_ego = velocity @ clip.current_from_ego[..., :2, :2]  # [1, T, 2]
    return on_wall[:, :, None] * in_ego[..., None, None]


@pytest.mark.parametrize("velocity", [(0.0, 0.0), (1.0, 0.0), (-1.5, 0.5), (0.0, -1.0), (4.0, 0.0)])
def test_the_true_velocity_has_the_least_loss(velocity):
    """A wall takes its velocity in spite of the price; at (4, 0) it moves as the car does and always looks the same."""
    clip, depth = street(wall_velocity=velocity)
    steps = [(x, y) for x in (-0.5, 0.0, 0.5) for y in (-0.5, 0.0, 0.5)]
    candidates = {(velocity[0] + x, velocity[1] + y) for x, y in steps} | {(0.0, 0.0)}
    losses = {
        candidate: float(
            flow_loss(flow_of_the_wall(torch.tensor(candidate), clip, velocity), at_size(depth), clip, GRID)
        )
        for candidate in candidates
    }
    assert min(losses, key=losses.__getitem__) == velocity, losses


def test_descent_finds_the_velocity():
    truth = (-1.5, 0.5)
    clip, depth = street(wall_velocity=truth)
    velocity = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([velocity], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        flow_loss(flow_of_the_wall(velocity, clip, truth), at_size(depth), clip, GRID).sum().backward()
        optimizer.step()
    torch.testing.assert_close(velocity.detach(), torch.tensor(truth), atol=0.1, rtol=0)


def test_a_batch_is_its_clips_one_by_one():
    clips = [toy_clip(1, 3, 2, seed=seed) for seed in (1, 2)]
    log_depth, flow = random(2, 3, 2, 4, 6) + 2, random(2, 3, 2, *GRID.shape[1:])
    together = flow_loss(flow, log_depth, Clip.collate(clips), GRID)
    for i, clip in enumerate(clips):
        torch.testing.assert_close(together[i : i + 1], flow_loss(flow[i : i + 1], log_depth[i : i + 1], clip, GRID))


# The head


def test_nothing_moves_at_the_start_of_training():
    head = FlowHead(3, GRID)
    flow = head(random(2, 3, *GRID.shape), random(2, 2, 3, *GRID.shape), torch.tensor([[-1.0, 0.5]] * 2))
    assert flow.shape == (2, 2, 20, 14)
    assert flow.abs().max() == 0


@pytest.mark.parametrize("gap", [-0.5, 0.5, 1.0])
def test_known_shift_over_known_gap_gives_metres_per_second(gap):
    """Every cell finds itself 3 cells forward and 2 cells to the right."""
    head = FlowHead(3, GRID)
    with torch.no_grad():
        head.last.bias.copy_(torch.tensor([3.0, -2.0, 0.0]))
        flow = head(random(1, 3, *GRID.shape), random(1, 1, 3, *GRID.shape), torch.tensor([[gap]]))
    torch.testing.assert_close(flow[0, 0], torch.full((20, 14), 3 * 2.0 / gap))  # cells of 2 m along x, 1 m along y
    torch.testing.assert_close(flow[0, 1], torch.full((20, 14), -2 * 1.0 / gap))


def test_order_of_the_frames_does_not_matter():
    head, own, others = make_head(), random(2, 3, *GRID.shape), random(2, 3, 3, *GRID.shape, seed=1)
    gaps = torch.tensor([[-1.0, -0.5, 0.5], [0.2, 0.5, 1.0]])
    order = [2, 0, 1]
    with torch.no_grad():
        torch.testing.assert_close(head(own, others, gaps), head(own, others[:, order], gaps[:, order]))


def test_similarities_against_loops():
    maps, others = random(1, 4, 3, 5), random(1, 4, 3, 5, seed=1)
    found = similarities(maps, others, 2)[0].unflatten(0, (5, 5))
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            for y in range(3):
                for x in range(5):
                    inside = 0 <= y + dy < 3 and 0 <= x + dx < 5
                    expected = (maps[0, :, y, x] * others[0, :, y + dy, x + dx]).mean() if inside else torch.zeros(())
                    torch.testing.assert_close(found[dy + 2, dx + 2, y, x], expected)


def test_the_head_learns_a_drift():
    """Patterns that drift by 2 m/s to the left or 4 m/s forward, seen 0.5 s before and after."""
    torch.manual_seed(0)
    head = FlowHead(2, GRID)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    smooth = torch.nn.AvgPool2d(3, stride=1, padding=1)
    shifts = [(1, 0), (0, 1), (0, 0)]  # cells (y, x) in 0.5 s
    truth = torch.tensor([[0.0, 2.0], [4.0, 0.0], [0.0, 0.0]])[:, :, None, None]  # [G, 2, 1, 1]
    for step in range(40):
        now = 3 * smooth(random(3, 4, *GRID.shape[1:], seed=step)).unflatten(1, (2, 2))  # [G, C, Z, Y, X]
        before, after = (
            torch.stack([x.roll((sign * dy, sign * dx), (-2, -1)) for x, (dy, dx) in zip(now, shifts, strict=True)])
            for sign in (-1, 1)
        )
        flow = head(now, torch.stack([before, after], dim=1), torch.tensor([[-0.5, 0.5]] * 3))
        error = (flow - truth)[..., 2:-2, 2:-2].norm(dim=1).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.8  # a flow of zeros has 2

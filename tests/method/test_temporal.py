"""The temporal decoder: attention against loops, continuous time, and a flow in metres per second."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mim4d.geometry import VoxelGrid
from mim4d.method.temporal import (
    TemporalConfig,
    TemporalDecoder,
    time_embedding,
)
from tests.reference import temporal as reference

GRID = VoxelGrid(x=(-6, 8), y=(-4, 6), z=(-1, 3), voxel=(2, 1, 2))  # (Z, Y, X) = (2, 10, 7), no two axes alike
CHANNELS = 3
SMALL = TemporalConfig(short_channels=16, long_channels=8, points=3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shake(module: nn.Module, size: float = 0.2, seed: int = 0) -> None:
    """Set random weights everywhere, also where the initial ones are zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=g))


def make_decoder(frames: int = 4, config: TemporalConfig = SMALL, seed: int = 0) -> TemporalDecoder:
    torch.manual_seed(seed)
    decoder = TemporalDecoder(config, CHANNELS, GRID, frames).eval()
    shake(decoder, seed=seed)
    return decoder


def warped(clips: int, sources: int, seed: int = 1) -> Tensor:
    return random(clips, sources, CHANNELS, *GRID.shape, seed=seed)


# Time


@pytest.mark.parametrize("channels", [4, 16, 64, 128])
@pytest.mark.parametrize("gap", [-2.0, -0.5, 0.0, 0.05, 1.37])
def test_time_embedding_against_loops(gap, channels):
    got = time_embedding(torch.tensor([[gap]]), channels)
    assert got.shape == (1, 1, channels)
    # Angles reach 2 pi 20 rounds at the shortest period: float32 keeps about 1e-5 of them.
    np.testing.assert_allclose(got[0, 0], reference.time_embedding(gap, channels), atol=3e-5)


def test_time_embedding_differs_between_any_two_gaps_past_or_future():
    gaps = torch.arange(-200, 201) / 100  # 2 s each way, in steps of 10 ms
    embedded = time_embedding(gaps, 64)
    apart = torch.cdist(embedded, embedded) + 10 * torch.eye(len(gaps))
    assert apart.min() > 0.1


# Start of training


def test_new_decoder_returns_the_mean_of_its_branches():
    """In constant volumes no sampling point can miss; the rest are the small initial queries."""
    torch.manual_seed(0)
    decoder = TemporalDecoder(SMALL, CHANNELS, GRID, 3)
    near, far = random(2, 1, CHANNELS, 2, 1, 1).expand(2, 1, CHANNELS, *GRID.shape)
    with torch.no_grad():
        volume = decoder(torch.stack([near, far], dim=1), torch.tensor([[-0.5, 1.0]])).volume
    inner = (..., slice(3, -3), slice(3, -3))  # the outer cells' points look out of the grid
    torch.testing.assert_close(volume[inner], (near + far)[inner] / 2, atol=0.1, rtol=0)


# Which frames, when


def test_order_of_the_frames_does_not_matter():
    decoder, volumes = make_decoder(5), warped(2, 4)
    gaps = torch.tensor([[-1.5, -1.0, -0.5, 0.7], [0.2, 0.5, 1.0, 2.0]])
    order = [2, 0, 3, 1]
    with torch.no_grad():
        a, b = decoder(volumes, gaps), decoder(volumes[:, order], gaps[:, order])
    torch.testing.assert_close(a.volume, b.volume)
    torch.testing.assert_close(decoder.flow(a), decoder.flow(b))


def test_order_of_two_equally_near_frames_does_not_matter():
    decoder, volumes = make_decoder(4), warped(1, 3)
    gaps = torch.tensor([[-0.5, 0.5, 1.0]])
    order = [1, 0, 2]
    with torch.no_grad():
        a, b = decoder(volumes, gaps), decoder(volumes[:, order], gaps[:, order])
    torch.testing.assert_close(a.volume, b.volume)


def test_the_gap_matters():
    decoder, volumes = make_decoder(3), warped(1, 2)
    with torch.no_grad():
        results = [decoder(volumes, torch.tensor([gaps])) for gaps in ([-1.0, -0.5], [-1.0, -0.4], [1.0, 0.5])]
    for other in results[1:]:
        assert (results[0].volume - other.volume).abs().max() > 1e-3


def test_short_branch_takes_the_nearest_in_time():
    """With the long branch's weights of the join set to zero, only the nearest frame can change the result."""
    decoder, volumes = make_decoder(4), warped(1, 3)
    gaps = torch.tensor([[-1.5, -1.0, 0.4]])
    with torch.no_grad():
        decoder.join.weight[:, SMALL.short_channels :] = 0
        start = decoder(volumes, gaps)
        for frame, matters in enumerate([False, False, True]):
            changed = volumes.clone()
            changed[:, frame] += 1
            difference = (decoder(changed, gaps).volume - start.volume).abs().max()
            assert (difference > 1e-3) == matters, frame


def test_long_branch_takes_all_the_others():
    decoder, volumes = make_decoder(4), warped(1, 3)
    gaps = torch.tensor([[-1.5, -1.0, 0.4]])
    with torch.no_grad():
        decoder.join.weight[:, : SMALL.short_channels] = 0
        start = decoder(volumes, gaps)
        for frame, matters in enumerate([True, True, False]):
            changed = volumes.clone()
            changed[:, frame] += 1
            difference = (decoder(changed, gaps).volume - start.volume).abs().max()
            assert (difference > 1e-3) == matters, frame


def test_a_batch_equals_its_clips_one_by_one():
    decoder, volumes = make_decoder(4), warped(3, 3)
    gaps = torch.tensor([[-1.5, -1.0, -0.5], [-0.5, 0.6, 1.0], [0.5, 1.0, 1.5]])  # another frame nearest in each
    with torch.no_grad():
        together = decoder(volumes, gaps)
        for b in range(3):
            alone = decoder(volumes[b : b + 1], gaps[b : b + 1])
            torch.testing.assert_close(together.volume[b], alone.volume[0])
            torch.testing.assert_close(decoder.flow(together)[b], decoder.flow(alone)[0])


def test_two_frames_need_no_long_branch():
    decoder = make_decoder(2)
    assert decoder.long is None
    decoded = decoder(warped(2, 1), torch.tensor([[-0.5], [0.5]]))
    assert decoded.volume.shape == (2, CHANNELS, *GRID.shape)
    assert decoder.flow(decoded).shape == (2, 2, *GRID.shape[1:])


@pytest.mark.parametrize("trained", [2, 3, 4])
@pytest.mark.parametrize("sources", [1, 2, 5])
def test_other_numbers_of_frames_than_trained(trained, sources):
    decoder, volumes = make_decoder(trained), warped(1, sources)
    gaps = -0.5 * torch.arange(1, sources + 1)[None].float()
    with torch.no_grad():
        start = decoder(volumes, gaps)
        assert start.volume.isfinite().all()
        for frame in range(sources):  # no frame is dropped unsaid
            changed = volumes.clone()
            changed[:, frame] += 1
            assert (decoder(changed, gaps).volume - start.volume).abs().max() > 1e-4, frame


def test_gradients_reach_every_parameter_and_frame():
    decoder, volumes = make_decoder(4), warped(2, 3).requires_grad_()
    decoder(volumes, torch.tensor([[-1.5, -1.0, -0.5]] * 2)).volume.square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert (volumes.grad.abs().amax((2, 3, 4, 5)) > 0).all()


def test_volumes_are_laid_out_by_height_and_channel():
    """Channel-to-height inverts height-to-channel: a join that passes a cell's channels through returns the volume."""

    class Pass(nn.Module):
        def forward(self, bev: Tensor, gaps: Tensor) -> tuple[Tensor, None, None]:
            return bev[:, 0], None, None

    decoder, volumes = make_decoder(2), warped(1, 1)
    bev = CHANNELS * GRID.shape[0]
    decoder.short = Pass()
    decoder.join = nn.Conv2d(bev, bev, 1, bias=False)
    with torch.no_grad():
        decoder.join.weight.copy_(torch.eye(bev)[..., None, None])
        torch.testing.assert_close(decoder(volumes, torch.tensor([[-0.5]])).volume, volumes[:, 0])


def test_bfloat16_autocast_stays_close():
    decoder, volumes, gaps = make_decoder(3), warped(1, 2), torch.tensor([[-1.0, -0.5]])
    with torch.no_grad():
        exact = decoder(volumes, gaps)
        with torch.autocast("cpu", torch.bfloat16):
            rough = decoder(volumes, gaps)
    assert rough.volume.isfinite().all()
    assert (rough.volume.float() - exact.volume).abs().mean() < 0.05 * exact.volume.abs().mean() + 0.02


def test_bfloat16_autocast_trains():
    decoder, volumes = make_decoder(3), warped(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        volume = decoder(volumes, torch.tensor([[-1.0, -0.5]])).volume
    volume.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())


# Flow


def test_flow_against_loops():
    decoder = make_decoder(2)
    shake(decoder, 0.3)
    gaps = torch.tensor([[-0.5]])
    with torch.no_grad():
        decoded = decoder(warped(1, 1), gaps)
        flow = decoder.flow(decoded)
    offsets, attention = decoded.offsets, decoded.attention
    cell = np.array([2.0, 1.0])
    expected = reference.flow(offsets[0].numpy(), attention[0].numpy(), gaps[0].tolist(), cell)
    np.testing.assert_allclose(flow[0].permute(1, 2, 0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gap", [-0.5, 0.5, 1.0])
@pytest.mark.parametrize("shift", [(3, 0), (0, -2), (-1.5, 2.5)], ids=["forward", "right", "back and left"])
def test_known_shift_over_known_gap_gives_metres_per_second(shift, gap):
    """Every head samples ``shift`` cells away in the source frame: an object there moved that far during the gap."""
    decoder = make_decoder(2)
    for layer in decoder.short.layers:
        with torch.no_grad():
            layer.attention.offsets.weight.zero_()
            layer.attention.offsets.bias.copy_(torch.tensor(shift).float().repeat(4 * 3))
    flow = decoder.flow(decoder(warped(1, 1), torch.tensor([[gap]])))
    metres = shift[0] * 2.0, shift[1] * 1.0  # cells of 2 m along x, 1 m along y
    torch.testing.assert_close(flow[0, 0], torch.full((10, 7), metres[0] / gap))  # x: forward
    torch.testing.assert_close(flow[0, 1], torch.full((10, 7), metres[1] / gap))  # y: left


def test_flow_is_weighted_by_attention():
    """Two points lie 2 and 0 cells ahead; attention 3 : 1 gives three quarters of the speed."""
    config = TemporalConfig(short_channels=16, long_channels=8, points=2)
    decoder = make_decoder(2, config)
    attention = decoder.short.layers[-1].attention  # the flow is that of the last layer
    with torch.no_grad():
        attention.offsets.weight.zero_()
        attention.offsets.bias.copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]).repeat(4))
        attention.scores.weight.zero_()
        attention.scores.bias.copy_(torch.tensor([np.log(3.0), 0.0]).float().repeat(4))
    flow = decoder.flow(decoder(warped(1, 1), torch.tensor([[-0.5]])))
    torch.testing.assert_close(flow[0, 0], torch.full((10, 7), 0.75 * 4.0 / -0.5))
    torch.testing.assert_close(flow[0, 1], torch.zeros(10, 7), atol=1e-5, rtol=0)


def test_nothing_moves_at_the_start_of_training():
    torch.manual_seed(0)
    decoder = TemporalDecoder(SMALL, CHANNELS, GRID, 4)
    flow = decoder.flow(decoder(warped(1, 3), torch.tensor([[-1.5, -1.0, -0.5]])))
    assert flow.abs().max() < 1e-4


def test_motion_is_learned_from_reconstruction_alone():
    """Patterns that drift 4 m/s to the left: asked to rebuild them from 0.5 s before, the offsets find the drift.

    The join must look at single cells here: a 3 x 3 one can carry a pattern one cell farther itself.
    """
    grid = VoxelGrid(x=(-8, 8), y=(-8, 8), z=(-1, 1), voxel=(1, 1, 2))
    config = TemporalConfig(short_channels=32, long_channels=8, points=2)
    torch.manual_seed(0)
    decoder = TemporalDecoder(config, 4, grid, 2)
    decoder.join = nn.Conv2d(32, 4, 1)
    optimiser = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    smooth = nn.AvgPool2d(5, stride=1, padding=2)
    for step in range(100):
        now = 5 * smooth(random(4, 4, 16, 16, seed=step))[:, :, None]  # [B, C, 1, Y, X]
        before = torch.roll(now, -2, dims=3)  # 2 m farther right, at lower y
        optimiser.zero_grad()
        decoded = decoder(before[:, None], torch.full((4, 1), -0.5))
        (decoded.volume - now)[..., 3:-3, 3:-3].square().mean().backward()
        optimiser.step()
    flow = decoder.flow(decoded)
    torch.testing.assert_close(flow[..., 4:-4, 4:-4].mean((0, 2, 3)), torch.tensor([0.0, 4.0]), atol=0.4, rtol=0)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_channels": 18}, "short_channels = 18 must be a multiple of 4, its number of attention heads"),
        ({"long_channels": 9}, "long_channels = 9 must be a multiple of 2, its number of attention heads"),
        ({"points": 0}, "points = 0 must be at least 1"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TemporalConfig(**settings)

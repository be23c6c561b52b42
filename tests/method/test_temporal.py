"""The temporal decoder: continuous time, its two branches and their start."""

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
        volume = decoder(torch.stack([near, far], dim=1), torch.tensor([[-0.5, 1.0]]))
    inner = (..., slice(3, -3), slice(3, -3))  # the outer cells' points look out of the grid
    torch.testing.assert_close(volume[inner], (near + far)[inner] / 2, atol=0.1, rtol=0)


# Which frames, when


def test_order_of_the_frames_does_not_matter():
    decoder, volumes = make_decoder(5), warped(2, 4)
    gaps = torch.tensor([[-1.5, -1.0, -0.5, 0.7], [0.2, 0.5, 1.0, 2.0]])
    order = [2, 0, 3, 1]
    with torch.no_grad():
        a, b = decoder(volumes, gaps), decoder(volumes[:, order], gaps[:, order])
    torch.testing.assert_close(a, b)


def test_order_of_two_equally_near_frames_does_not_matter():
    decoder, volumes = make_decoder(4), warped(1, 3)
    gaps = torch.tensor([[-0.5, 0.5, 1.0]])
    order = [1, 0, 2]
    with torch.no_grad():
        a, b = decoder(volumes, gaps), decoder(volumes[:, order], gaps[:, order])
    torch.testing.assert_close(a, b)


def test_the_gap_matters():
    decoder, volumes = make_decoder(3), warped(1, 2)
    with torch.no_grad():
        results = [decoder(volumes, torch.tensor([gaps])) for gaps in ([-1.0, -0.5], [-1.0, -0.4], [1.0, 0.5])]
    for other in results[1:]:
        assert (results[0] - other).abs().max() > 1e-3


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
            difference = (decoder(changed, gaps) - start).abs().max()
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
            difference = (decoder(changed, gaps) - start).abs().max()
            assert (difference > 1e-3) == matters, frame


def test_a_batch_equals_its_clips_one_by_one():
    decoder, volumes = make_decoder(4), warped(3, 3)
    gaps = torch.tensor([[-1.5, -1.0, -0.5], [-0.5, 0.6, 1.0], [0.5, 1.0, 1.5]])  # another frame nearest in each
    with torch.no_grad():
        together = decoder(volumes, gaps)
        for b in range(3):
            alone = decoder(volumes[b : b + 1], gaps[b : b + 1])
            torch.testing.assert_close(together[b], alone[0])


def test_two_frames_need_no_long_branch():
    decoder = make_decoder(2)
    assert decoder.long is None
    decoded = decoder(warped(2, 1), torch.tensor([[-0.5], [0.5]]))
    assert decoded.shape == (2, CHANNELS, *GRID.shape)


@pytest.mark.parametrize("trained", [2, 3, 4])
@pytest.mark.parametrize("sources", [1, 2, 5])
def test_other_numbers_of_frames_than_trained(trained, sources):
    decoder, volumes = make_decoder(trained), warped(1, sources)
    gaps = -0.5 * torch.arange(1, sources + 1)[None].float()
    with torch.no_grad():
        start = decoder(volumes, gaps)
        assert start.isfinite().all()
        for frame in range(sources):  # no frame is dropped unsaid
            changed = volumes.clone()
            changed[:, frame] += 1
            assert (decoder(changed, gaps) - start).abs().max() > 1e-4, frame


def test_gradients_reach_every_parameter_and_frame():
    decoder, volumes = make_decoder(4), warped(2, 3).requires_grad_()
    decoder(volumes, torch.tensor([[-1.5, -1.0, -0.5]] * 2)).square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert (volumes.grad.abs().amax((2, 3, 4, 5)) > 0).all()


def test_volumes_are_laid_out_by_height_and_channel():
    """Channel-to-height inverts height-to-channel: a join that passes a cell's channels through returns the volume."""

    class Pass(nn.Module):
        def forward(self, bev: Tensor, gaps: Tensor) -> Tensor:
            return bev[:, 0]

    decoder, volumes = make_decoder(2), warped(1, 1)
    bev = CHANNELS * GRID.shape[0]
    decoder.short = Pass()
    decoder.join = nn.Conv2d(bev, bev, 1, bias=False)
    with torch.no_grad():
        decoder.join.weight.copy_(torch.eye(bev)[..., None, None])
        torch.testing.assert_close(decoder(volumes, torch.tensor([[-0.5]])), volumes[:, 0])


def test_bfloat16_autocast_stays_close():
    decoder, volumes, gaps = make_decoder(3), warped(1, 2), torch.tensor([[-1.0, -0.5]])
    with torch.no_grad():
        exact = decoder(volumes, gaps)
        with torch.autocast("cpu", torch.bfloat16):
            rough = decoder(volumes, gaps)
    assert rough.isfinite().all()
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.abs().mean() + 0.02


def test_bfloat16_autocast_trains():
    decoder, volumes = make_decoder(3), warped(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        volume = decoder(volumes, torch.tensor([[-1.0, -0.5]]))
    volume.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())


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

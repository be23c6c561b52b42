"""Deformable attention against loops and against ``grid_sample``."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mim4d.method.deformable import DeformableAttention, sample
from tests.method.test_temporal import random, shake
from tests.reference import temporal as reference


def attend(attention: DeformableAttention, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Attend with one query per cell [B, Y, X, E], to which the key of each frame [B, S, Y, X, E] is added."""
    size = queries.shape[1:3]
    y, x = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    cells = torch.stack([x, y], dim=-1).flatten(0, 1)[None]
    queries = (queries[:, None] + keys).flatten(2, 3)
    mixed, (offsets, shares) = attention(queries, cells, values), attention.sampling(queries)
    return mixed.unflatten(1, size), offsets.unflatten(2, size), shares.unflatten(2, size)


@pytest.mark.parametrize(("frames", "heads", "points"), [(1, 1, 1), (1, 4, 3), (3, 2, 4)])
def test_attention_against_loops(frames, heads, points):
    attention = DeformableAttention(8, heads, points)
    shake(attention, 0.5)
    queries, keys, values = random(2, 5, 6, 8), *random(2, 2, frames, 5, 6, 8, seed=1)
    with torch.no_grad():
        got, offsets, shares = attend(attention, queries, keys, values)
    weights = {name: value.detach().double().numpy() for name, value in attention.named_parameters()}
    for b in range(2):
        one = (x[b].double().numpy() for x in (queries, keys, values))
        expected = reference.attend(weights, *one, heads, points)
        np.testing.assert_allclose(got[b], expected[0], atol=1e-4)
        np.testing.assert_allclose(offsets[b], expected[1], atol=1e-5)
        np.testing.assert_allclose(shares[b], expected[2], atol=1e-5)
    assert offsets.abs().max() > 6  # some look out of the grid
    torch.testing.assert_close(shares.sum((1, 5)), torch.ones(2, 5, 6, heads))


def test_attention_gradients_against_loops():
    attention = DeformableAttention(4, 2, 2)
    shake(attention, 0.5)
    inputs = {
        "queries": random(1, 3, 4, 4),
        "keys": random(1, 2, 3, 4, 4, seed=1),
        "values": random(1, 2, 3, 4, 4, seed=3),
    }
    pull = random(3, 4, 4, seed=2)
    (attend(attention, *(x.requires_grad_() for x in inputs.values()))[0][0] * pull).sum().backward()
    tensors = {**inputs, **dict(attention.named_parameters())}
    numbers = {name: value.detach().double().numpy() for name, value in tensors.items()}

    def loss(changed):
        features, _, _ = reference.attend(changed, *(changed[name][0] for name in inputs), 2, 2)
        return (features * pull.double().numpy()).sum()

    generator = np.random.default_rng(0)
    for name, tensor in tensors.items():
        direction = generator.normal(size=tensor.shape)
        step = 1e-5 / np.linalg.norm(direction)
        ahead, behind = (loss(numbers | {name: numbers[name] + sign * step * direction}) for sign in (1, -1))
        expected = (ahead - behind) / (2 * step)
        size = tensor.grad.norm().item() * np.linalg.norm(direction)
        assert (tensor.grad.double().numpy() * direction).sum() == pytest.approx(expected, abs=1e-4 * size), name


def test_offset_gradient_at_a_cell_centre_is_the_forward_difference():
    """Initial offsets are whole cells: their gradient is the difference to the next cell, not half of it."""
    attention = DeformableAttention(1, 1, 1)
    with torch.no_grad():
        attention.output.weight.fill_(1)
    ramp = torch.arange(6.0).expand(1, 1, 5, 6)[..., None]  # grows by 1 a cell along x
    attend(attention, torch.zeros(1, 5, 6, 1), torch.zeros(1, 1, 5, 6, 1), ramp)[0][0, :-1, :-1].sum().backward()
    torch.testing.assert_close(attention.offsets.bias.grad, torch.tensor([4.0 * 5, 0.0]))


def test_initial_offsets_point_in_all_directions_and_near_points_weigh_most():
    """As in Deformable DETR, head h points in direction h and point k lies k cells away; attention falls as exp(-k)."""
    _, offsets, shares = attend(DeformableAttention(8, 4, 3), random(1, 5, 6, 8), *random(2, 1, 2, 5, 6, 8))
    fall = np.exp([0, -1, -2])
    for h, (x, y) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        for p in range(3):
            expected = torch.tensor([x * p, y * p]).float().expand(1, 2, 5, 6, 2)
            torch.testing.assert_close(offsets[..., h, p, :], expected, atol=1e-6, rtol=0)
            share = fall[p] / fall.sum() / 2  # of two frames
            torch.testing.assert_close(shares[..., h, p], torch.full((1, 2, 5, 6), share).float())


def test_offsets_and_sampled_features_agree_on_a_moving_object():
    """An offset points to the object in the other frame: a blob 2 cells farther forward there needs an offset of +2."""
    attention = DeformableAttention(4, 1, 1)
    shift = (2.0, 0.0)
    with torch.no_grad():
        attention.offsets.bias.copy_(torch.tensor(shift))
        attention.output.weight.copy_(torch.eye(4))
        attention.output.bias.zero_()
    now = (4, 2)  # row (y), column (x) of the blob at the target's time
    values = torch.zeros(1, 1, 10, 7, 4)
    values[0, 0, now[0], now[1] + 2, 1] = 1.0  # in the later frame
    found, _, _ = attend(attention, torch.zeros(1, 10, 7, 4), torch.zeros_like(values), values)
    assert found[0, ..., 1].argmax().item() == now[0] * 7 + now[1]
    assert found.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("frames", [1, 3])
def test_samples_at_any_position_against_grid_sample(frames):
    """Queries need not be cells: those of the map decoder are points of lines."""
    b, q, heads, points, height, width, channels = 2, 7, 2, 4, 5, 6, 8
    values = random(b, frames, height, width, channels).requires_grad_()
    positions = torch.rand(b, frames, q, heads, points, 2, generator=torch.Generator().manual_seed(1))
    positions = (positions * torch.tensor([width + 2.0, height + 2.0]) - 1.5).requires_grad_()  # some outside
    weights = random(b, frames, q, heads, points, seed=2).softmax(-1).requires_grad_()
    got = sample(values, positions, weights)

    expected = torch.zeros(b, q, heads, channels // heads)
    for s in range(frames):
        for h in range(heads):
            plane = values[:, s].unflatten(-1, (heads, -1))[..., h, :].permute(0, 3, 1, 2)  # [B, E/h, Y, X]
            at = 2 * (positions[:, s, :, h] + 0.5) / torch.tensor([width, height]) - 1  # [B, Q, p, 2]
            found = F.grid_sample(plane, at, align_corners=False)  # [B, E/h, Q, p]
            expected[:, :, h] += (found * weights[:, s, :, h][:, None]).sum(-1).transpose(1, 2)
    torch.testing.assert_close(got, expected.flatten(2))
    pull = random(*got.shape, seed=3)
    ours = torch.autograd.grad((got * pull).sum(), [values, positions, weights])
    theirs = torch.autograd.grad((expected.flatten(2) * pull).sum(), [values, positions, weights])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

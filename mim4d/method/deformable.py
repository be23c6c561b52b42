"""Deformable attention (Deformable DETR, arXiv 2010.04159, eq. 3; its levels are frames here)."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class DeformableAttention(nn.Module):
    """Queries sample S frames at learned offsets from their own positions."""

    def __init__(self, channels: int, heads: int, points: int) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.offsets = nn.Linear(channels, heads * points * 2)
        self.scores = nn.Linear(channels, heads * points)
        self.output = nn.Linear(channels, channels)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.scores.weight)
        # Deformable DETR's start: head h looks in direction h, point k at k cells. Here near points weigh more: after
        # the ego-motion warp most of the world stands still.
        self.scores.bias.data.copy_(-torch.arange(points).repeat(heads))
        angles = torch.arange(heads) * (2 * math.pi / heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
        start = rays[:, None] * torch.arange(points)[:, None]  # [heads, points, 2]
        self.offsets.bias.data.copy_(start.flatten())

    def forward(self, queries: Tensor, positions: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attend.

        Args:
            queries: [B, S, Q, E], what each query asks of each frame.
            positions: [B or 1, Q, 2] (x, y) of the queries in cells; (0, 0) is the centre of the first cell.
            values: [B, S, Y, X, E], the frames; zero beyond their edges.

        Returns:
            The attended features [B, Q, E]; offsets [B, S, Q, heads, points, 2] in cells (x, y); attention
            [B, S, Q, heads, points], which sums to 1 over frames and points.
        """
        s = queries.shape[1]
        offsets = self.offsets(queries).float().unflatten(-1, (self.heads, self.points, 2))  # [B, S, Q, h, p, 2]
        scores = self.scores(queries).float().unflatten(-1, (self.heads, self.points))  # [B, S, Q, h, p]
        attention = rearrange(
            rearrange(scores, "b s q h p -> b q h (s p)").softmax(-1), "b q h (s p) -> b s q h p", s=s
        )
        mixed = sample(values.float(), positions[:, None, :, None, None] + offsets, attention)  # [B, Q, E]
        return self.output(mixed.to(queries.dtype)), offsets, attention


def sample(values: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples over frames and points; what is outside counts as zero.

    One ``embedding_bag`` instead of ``grid_sample`` and a sum: no sample is ever written to memory, which takes about
    half the time on a CPU.

    Args:
        values: [B, S, Y, X, E].
        positions: [B, S, Q, heads, points, 2] in cells (x, y); (0, 0) is the centre of the first cell.
        weights: [B, S, Q, heads, points].

    Returns:
        [B, Q, E]; head h samples the channels h * E / heads to (h + 1) * E / heads.
    """
    b, s, height, width, channels = values.shape
    heads = positions.shape[3]
    device = values.device
    x, y = positions.unbind(-1)  # [B, S, Q, h, p]
    left, top = x.detach().floor(), y.detach().floor()
    beyond_x, beyond_y = x - left, y - top
    first = torch.arange(b * s, device=device).view(b, s, 1, 1, 1) * (height * width)
    head = torch.arange(heads, device=device)[:, None]
    rows, shares = [], []
    for i, across in ((left, 1 - beyond_x), (left + 1, beyond_x)):
        for j, down in ((top, 1 - beyond_y), (top + 1, beyond_y)):
            inside = (i >= 0) & (i < width) & (j >= 0) & (j < height)
            # A NaN of a run that diverged must end as a NaN loss and not as an index out of range.
            column, row = (k.nan_to_num().clamp(0, size - 1).long() for k, size in ((i, width), (j, height)))
            rows.append((first + row * width + column) * heads + head)
            shares.append(weights * across * down * inside)
    # A row per cell and head; a bag per query and head holds the four neighbours of every frame and point.
    index, share = (
        rearrange(torch.stack(part), "n b s q h p -> (b q h) (n s p)").contiguous() for part in (rows, shares)
    )
    table = values.reshape(-1, channels // heads)  # [B*S*Y*X*heads, E/heads]
    return F.embedding_bag(index, table, per_sample_weights=share, mode="sum").view(b, -1, channels)

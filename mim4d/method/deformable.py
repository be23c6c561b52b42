"""Deformable attention (Deformable DETR, arXiv 2010.04159, eq. 3), with frames in place of that paper's levels."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class DeformableAttention(nn.Module):
    """Attention of queries to a few sampling points in each of S frames.

    Query q at position p_q has one embedding z_sq per frame, from which the offsets Δ and the attention a follow. The
    output of head h, before the heads are joined by a linear layer, is::

        out_hq = sum over s, k of a_hsqk values_s(p_q + Δ_hsqk),    sum over s, k of a_hsqk = 1

    Args:
        channels: E, a multiple of ``heads``. Head h takes the channels h E / heads to (h + 1) E / heads.
        heads: Number of heads.
        points: Sampling points per head and frame.
    """

    def __init__(self, channels: int, heads: int, points: int) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.offsets = nn.Linear(channels, heads * points * 2)
        self.scores = nn.Linear(channels, heads * points)
        self.output = nn.Linear(channels, channels)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.scores.weight)
        # Deformable DETR's initial offsets: head h points in direction h, point k lies k cells away. Unlike there, near
        # points start with higher scores, because most of the world stands still after the ego-motion warp.
        self.scores.bias.data.copy_(-torch.arange(points).repeat(heads))
        angles = torch.arange(heads) * (2 * math.pi / heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)  # [heads, 2]
        initial_offsets = directions[:, None] * torch.arange(points)[:, None]  # [heads, points, 2]
        self.offsets.bias.data.copy_(initial_offsets.flatten())

    def sampling(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Compute where each query looks, and how much each place counts.

        Args:
            queries: [B, S, Q, E], the embedding of each query for each frame.

        Returns:
            Offsets [B, S, Q, heads, points, 2] in cells (x, y); attention [B, S, Q, heads, points], whose sum over
            frames and points is 1.
        """
        offsets = self.offsets(queries).float()
        offsets = offsets.unflatten(-1, (self.heads, self.points, 2))  # [B, S, Q, heads, points, 2]
        scores = self.scores(queries).float()
        scores = rearrange(scores, "b s q (heads points) -> b q heads (s points)", heads=self.heads)
        attention = rearrange(scores.softmax(-1), "b q heads (s points) -> b s q heads points", s=queries.shape[1])
        return offsets, attention

    def forward(self, queries: Tensor, positions: Tensor, values: Tensor) -> Tensor:
        """Attend to the frames.

        Args:
            queries: [B, S, Q, E], the embedding of each query for each frame.
            positions: [B or 1, Q, 2], positions of the queries (x, y) in cells; (0, 0) is the centre of the first cell.
            values: [B, S, Y, X, E], the frames; zero outside their edges.

        Returns:
            The attended features [B, Q, E].
        """
        offsets, attention = self.sampling(queries)
        sampled = sample(values.float(), positions[:, None, :, None, None] + offsets, attention)  # [B, Q, E]
        return self.output(sampled.to(queries.dtype))


def sample(values: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """Compute weighted sums of bilinear samples over frames and points; values outside the frames are zero.

    This uses one ``embedding_bag`` instead of ``grid_sample`` and a sum: the samples are never written to memory, which
    takes about half the time on a CPU.

    Args:
        values: [B, S, Y, X, E].
        positions: [B, S, Q, heads, points, 2] in cells (x, y); (0, 0) is the centre of the first cell.
        weights: [B, S, Q, heads, points].

    Returns:
        [B, Q, E]; head h samples the channels h E / heads to (h + 1) E / heads.

    A quarter of the way from a cell of value 4 to a cell of value 8, with weight 0.5:

    >>> values = torch.tensor([4.0, 8.0]).view(1, 1, 1, 2, 1)
    >>> positions = torch.tensor([0.25, 0.0]).view(1, 1, 1, 1, 1, 2)
    >>> sample(values, positions, torch.full((1, 1, 1, 1, 1), 0.5))
    tensor([[[2.5000]]])
    """
    b, s, height, width, channels = values.shape
    heads = positions.shape[3]
    device = values.device
    x, y = positions.unbind(-1)  # [B, S, Q, heads, points]
    left, top = x.detach().floor(), y.detach().floor()
    fraction_x, fraction_y = x - left, y - top
    # The table has one row per cell and head: E / heads channels.
    first_cell = torch.arange(b * s, device=device).view(b, s, 1, 1, 1) * (height * width)
    head = torch.arange(heads, device=device)[:, None]
    rows, row_weights = [], []
    for i, weight_x in ((left, 1 - fraction_x), (left + 1, fraction_x)):
        for j, weight_y in ((top, 1 - fraction_y), (top + 1, fraction_y)):
            inside = (i >= 0) & (i < width) & (j >= 0) & (j < height)
            # If a run diverged, a NaN must lead to a NaN loss and not to an index out of range.
            column, row = (k.nan_to_num().clamp(0, size - 1).long() for k, size in ((i, width), (j, height)))
            rows.append((first_cell + row * width + column) * heads + head)
            row_weights.append(weights * weight_x * weight_y * inside)
    # One bag per query and head holds the four neighbours of the points of all frames.
    index, index_weights = (
        rearrange(torch.stack(part), "four b s q heads points -> (b q heads) (four s points)").contiguous()
        for part in (rows, row_weights)
    )
    table = values.reshape(-1, channels // heads)  # [B*S*Y*X*heads, E/heads]
    bags = F.embedding_bag(index, table, per_sample_weights=index_weights, mode="sum")  # [B*Q*heads, E/heads]
    return bags.view(b, -1, channels)

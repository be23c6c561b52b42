"""6. The temporal decoder: other frames' warped volumes -> the volume of the frame that was dropped, and its BEV flow.

The ego-motion warp has dealt with the static world; what the deformable attention's offsets have left to find is the
motion of everything that moves. Time is continuous: keys, offsets and attention see the signed gap in seconds, never a
frame's number, so any gaps and any number of frames work.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..bounds import check_bounds
from ..geometry import VoxelGrid, constant


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """Sizes of the two branches (the published ones)."""

    short_frames: int = 1
    """Frames in the short branch: those nearest in time to the target. The long branch takes all others."""
    short_channels: int = 128
    """Width of the short branch."""
    long_channels: int = 64
    """Width of the long branch."""
    short_heads: int = 4
    """Attention heads of the short branch."""
    long_heads: int = 2
    """Attention heads of the long branch."""
    points: int = 4
    """Sampled points a head and frame."""
    layers: int = 2
    """Layers of each branch; the feed-forward part is twice as wide as the branch."""

    def __post_init__(self) -> None:
        names = ("points", "layers", "short_heads", "long_heads")
        check_bounds(self, {"short_frames": (1, 1000), **dict.fromkeys(names, (1, 64))}, "temporal.")
        for branch in ("short", "long"):
            channels, heads = getattr(self, f"{branch}_channels"), getattr(self, f"{branch}_heads")
            if channels < 2 or channels % 2 or channels % heads:
                raise ValueError(f"temporal.{branch}_channels = {channels} must be even and a multiple of {heads}")
        check_bounds(self, dict.fromkeys(("short_channels", "long_channels"), (2, 4096)), "temporal.")


class Decoded(NamedTuple):
    """What the temporal decoder makes."""

    volume: Tensor
    """[B, C, Z, Y, X], the target frame's rebuilt volume."""
    flow: Tensor
    """[B, 2, Y, X], velocity (x, y) in m/s in the target's ego frame of what stands in each BEV cell."""


def time_embedding(gaps: Tensor, channels: int) -> Tensor:
    """Sinusoids of signed gaps in seconds: [..., channels], periods from 0.1 s to 100 s, evenly in their logarithm."""
    half = channels // 2
    periods = 0.1 * 1000 ** (torch.arange(half, device=gaps.device) / max(half - 1, 1))
    angles = gaps[..., None] * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class DeformableAttention(nn.Module):
    """BEV queries look into S frames at learned offsets (Deformable DETR, arXiv 2010.04159, eq. 3; levels = frames)."""

    def __init__(self, channels: int, heads: int, points: int) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.offsets = nn.Linear(channels, heads * points * 2)
        self.scores = nn.Linear(channels, heads * points)
        self.output = nn.Linear(channels, channels)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.scores.weight)
        # Deformable DETR's start: head h looks in direction h, point k at k cells. Here the first point looks straight,
        # and near ones weigh more: what is left after the ego-motion warp stands still, most of it.
        self.scores.bias.data.copy_(-torch.arange(points).repeat(heads))
        angles = torch.arange(heads) * (2 * math.pi / heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
        start = rays[:, None] * torch.arange(points)[:, None]
        self.offsets.bias.data.copy_(start.flatten())

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attend.

        Args:
            queries: [B, Y, X, E].
            keys: [B, S, Y, X, E], the frames' features with their times: they say where to look.
            values: [B, S, Y, X, E], what is found there.

        Returns:
            The attended features [B, Y, X, E]; offsets [B, S, Y, X, heads, points, 2] in cells (x, y); attention
            [B, S, Y, X, heads, points], which sums to 1 over frames and points.
        """
        s = keys.shape[1]
        # What a query asks of a frame depends on what stands there in that frame, and when.
        asked = queries[:, None] + keys
        offsets = self.offsets(asked).float().unflatten(-1, (self.heads, self.points, 2))
        scores = self.scores(asked).float().unflatten(-1, (self.heads, self.points))
        attention = rearrange(
            rearrange(scores, "b s y x h p -> b y x h (s p)").softmax(-1), "b y x h (s p) -> b s y x h p", s=s
        )
        mixed = _gather(values.float(), offsets, attention)
        return self.output(mixed.to(queries.dtype)), offsets, attention


def _gather(values: Tensor, offsets: Tensor, attention: Tensor) -> Tensor:
    """Bilinear samples of all frames and points in one weighted sum a cell and head; what is outside counts as zero.

    One ``embedding_bag`` instead of ``grid_sample`` and a sum: no sample is ever written to memory, which takes about
    half the time on a CPU.

    Args:
        values: [B, S, Y, X, E].
        offsets: [B, S, Y, X, heads, points, 2] in cells (x, y).
        attention: [B, S, Y, X, heads, points].

    Returns:
        [B, Y, X, E].
    """
    b, s, height, width, channels = values.shape
    heads = offsets.shape[4]
    device = values.device
    x = torch.arange(width, device=device)[:, None, None] + offsets[..., 0]
    y = torch.arange(height, device=device)[:, None, None, None] + offsets[..., 1]
    left, top = x.detach().floor(), y.detach().floor()
    beyond_x, beyond_y = x - left, y - top
    first = torch.arange(b * s, device=device).view(b, s, 1, 1, 1, 1) * (height * width)
    head = torch.arange(heads, device=device)[:, None]
    rows, weights = [], []
    for i, across in ((left, 1 - beyond_x), (left + 1, beyond_x)):
        for j, down in ((top, 1 - beyond_y), (top + 1, beyond_y)):
            inside = (i >= 0) & (i < width) & (j >= 0) & (j < height)
            # A NaN of a run that diverged must end as a NaN loss and not as an index out of range.
            column, row = (k.nan_to_num().clamp(0, size - 1).long() for k, size in ((i, width), (j, height)))
            rows.append((first + row * width + column) * heads + head)
            weights.append(attention * across * down * inside)
    # Rows of all frames, a head each; a bag of every frame's and point's four neighbours for each cell and head.
    index, weight = (
        rearrange(torch.stack(part), "n b s y x h p -> (b y x h) (n s p)").contiguous() for part in (rows, weights)
    )
    table = values.reshape(-1, channels // heads)
    return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum").view(b, height, width, channels)


class Layer(nn.Module):
    """Deformable attention, then a feed-forward network; both residual, normed before."""

    def __init__(self, channels: int, heads: int, points: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = DeformableAttention(channels, heads, points)
        self.norm2 = nn.LayerNorm(channels)
        last = nn.Linear(2 * channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, queries: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, Y, X, E] queries to the same, with the attention's offsets and weights."""
        mixed, offsets, attention = self.attention(self.norm1(queries) + position, keys, values)
        queries = queries + mixed
        return queries + self.mlp(self.norm2(queries)), offsets, attention


class Branch(nn.Module):
    """Learned BEV queries that gather one set of frames."""

    def __init__(self, bev_channels: int, channels: int, heads: int, config: TemporalConfig, grid: VoxelGrid) -> None:
        super().__init__()
        _, height, width = grid.shape
        self.cell = grid.voxel[:2]
        self.queries = nn.Parameter(torch.zeros(height, width, channels))
        self.rows = nn.Parameter(torch.zeros(height, 1, channels))
        self.columns = nn.Parameter(torch.zeros(1, width, channels))
        for parameter in (self.queries, self.rows, self.columns):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.channels = channels
        self.keys = nn.Linear(bev_channels, channels)
        self.time = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))
        self.key_norm = nn.LayerNorm(channels)
        self.values = nn.Linear(bev_channels, channels)
        self.layers = nn.ModuleList(Layer(channels, heads, config.points) for _ in range(config.layers))
        # A new branch gives a projection of what its attention finds: the layers' shares add up to it.
        nn.init.orthogonal_(self.values.weight)
        nn.init.zeros_(self.values.bias)
        for layer in self.layers:
            output = cast(Layer, layer).attention.output
            output.weight.data.copy_(torch.eye(channels) / config.layers)
            nn.init.zeros_(output.bias)

    def forward(self, bev: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """Gather S frames.

        Args:
            bev: [B, S, Y, X, Z*C], warped to the target.
            gaps: [B, S] seconds, source minus target.

        Returns:
            [B, Y, X, E], and the flow [B, Y, X, 2] in m/s that the last layer's offsets mean.
        """
        times = self.time(time_embedding(gaps, self.channels))
        keys = self.key_norm(self.keys(bev) + times[:, :, None, None])
        values = self.values(bev)
        queries = self.queries.expand(bev.shape[0], -1, -1, -1)
        position = self.rows + self.columns
        for layer in self.layers:
            queries, offsets, attention = layer(queries, position, keys, values)
        # Something that is at +offset in the source moved by offset over the gap: velocity = offset / gap.
        metres = offsets * constant(self.cell, offsets)
        velocity = metres / gaps[:, :, None, None, None, None, None]
        flow = (attention[..., None] * velocity).sum((1, 4, 5)) / attention.shape[4]
        return queries, flow


class TemporalDecoder(nn.Module):
    """Short and long branch, joined into the dropped frame's volume."""

    def __init__(self, config: TemporalConfig, channels: int, grid: VoxelGrid, frames: int) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        bev = channels * grid.shape[0]
        self.short = Branch(bev, config.short_channels, config.short_heads, config, grid)
        has_long = frames - 1 > config.short_frames
        self.long = Branch(bev, config.long_channels, config.long_heads, config, grid) if has_long else None
        joined = config.short_channels + (config.long_channels if has_long else 0)
        self.join = nn.Conv2d(joined, bev, 3, padding=1)
        # Back from the branches' projections: training starts near the mean of the warped frames and learns where to
        # look, rather than learning first to hand a volume on.
        branches = [branch for branch in (self.short, self.long) if branch is not None]
        back = torch.cat([branch.values.weight.data.T for branch in branches], dim=1) / len(branches)
        for parameter in self.join.parameters():
            nn.init.zeros_(parameter)
        self.join.weight.data[:, :, 1, 1] = back

    def forward(self, warped: Tensor, gaps: Tensor) -> Decoded:
        """Rebuild the target's volume.

        Args:
            warped: [B, S, C, Z, Y, X], the other frames in the target's ego frame, S >= 1.
            gaps: [B, S] seconds, signed: source minus target.

        Returns:
            The volume and the flow of the short branch.
        """
        bev = rearrange(warped, "b s c z y x -> b s y x (z c)")
        # Of two frames as near, the past one: a millisecond decides, so neither their order nor rounding does.
        order = (gaps.abs() + 1e-3 * (gaps > 0)).argsort(dim=1)
        rows = torch.arange(len(gaps), device=gaps.device)[:, None]
        # Without a long branch the short one takes all frames: none is dropped unsaid.
        short = self.config.short_frames if self.long is not None else gaps.shape[1]
        near, far = order[:, :short], order[:, short:]
        found, flow = self.short(bev[rows, near], gaps[rows, near])
        if self.long is not None:
            if far.shape[1]:
                more, _ = self.long(bev[rows, far], gaps[rows, far])
            else:  # trained with more frames than it is given now
                more = found.new_zeros(*found.shape[:3], self.config.long_channels)
            found = torch.cat([found, more], dim=-1)
        joined = self.join(rearrange(found, "b y x e -> b e y x"))
        return Decoded(
            rearrange(joined, "b (z c) y x -> b c z y x", z=self.grid.shape[0]),
            rearrange(flow, "b y x two -> b two y x"),
        )

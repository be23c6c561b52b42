"""6. The temporal decoder: other frames' warped volumes -> the volume of the frame that was dropped.

The ego-motion warp has dealt with the static world; what the deformable attention's offsets have left to find is the
motion of everything that moves. Time is continuous: keys, offsets and attention see the signed gap in seconds, never a
frame's number, so any gaps and any number of frames work.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ..bounds import check_bounds
from ..geometry import VoxelGrid, constant
from .deformable import DeformableAttention


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
    """The rebuilt volume, and where the short branch's last layer looked, from which flow follows."""

    volume: Tensor
    """[B, C, Z, Y, X], the target frame's rebuilt volume."""
    offsets: Tensor
    """[B, S', Y, X, heads, points, 2] in cells (x, y), for the S' frames of the short branch."""
    attention: Tensor
    """[B, S', Y, X, heads, points], sums to 1 over frames and points."""
    gaps: Tensor
    """[B, S'] seconds, source minus target."""


def time_embedding(gaps: Tensor, channels: int) -> Tensor:
    """Sinusoids of signed gaps in seconds: [..., channels], periods from 0.1 s to 100 s, evenly in their logarithm."""
    half = channels // 2
    periods = 0.1 * 1000 ** (torch.arange(half, device=gaps.device) / max(half - 1, 1))
    angles = gaps[..., None] * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


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
        """Attend to the frames, then apply the feed-forward network.

        Args:
            queries: [B, Y, X, E].
            position: [Y, X, E], the embedding of each query's place.
            keys: [B, S, Y, X, E], the frames' features with their times: they say where to look.
            values: [B, S, Y, X, E], what is found there.

        Returns:
            The queries [B, Y, X, E]; offsets [B, S, Y, X, heads, points, 2] in cells (x, y); attention
            [B, S, Y, X, heads, points].
        """
        height, width = position.shape[:2]
        # What a query asks of a frame depends on what stands there in that frame, and when.
        asked = (self.norm1(queries) + position)[:, None] + keys  # [B, S, Y, X, E]
        y, x = torch.meshgrid(
            torch.arange(height, device=queries.device), torch.arange(width, device=queries.device), indexing="ij"
        )
        cells = torch.stack([x, y], dim=-1).flatten(0, 1)[None]  # [1, Y*X, 2]
        mixed, offsets, attention = self.attention(asked.flatten(2, 3), cells, values)
        queries = queries + mixed.unflatten(1, (height, width))
        offsets, attention = (part.unflatten(2, (height, width)) for part in (offsets, attention))
        return queries + self.mlp(self.norm2(queries)), offsets, attention


class Branch(nn.Module):
    """Learned BEV queries that gather one set of frames."""

    def __init__(self, bev_channels: int, channels: int, heads: int, config: TemporalConfig, grid: VoxelGrid) -> None:
        super().__init__()
        _, height, width = grid.shape
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

    def forward(self, bev: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gather S frames.

        Args:
            bev: [B, S, Y, X, Z*C], warped to the target.
            gaps: [B, S] seconds, source minus target.

        Returns:
            [B, Y, X, E], and the last layer's offsets and attention, as in :class:`DeformableAttention`.
        """
        times = self.time(time_embedding(gaps, self.channels))
        keys = self.key_norm(self.keys(bev) + times[:, :, None, None])
        values = self.values(bev)
        queries = self.queries.expand(bev.shape[0], -1, -1, -1)
        position = self.rows + self.columns
        for layer in self.layers:
            queries, offsets, attention = layer(queries, position, keys, values)
        return queries, offsets, attention


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
            The volume, and where the short branch looked: :meth:`flow` makes velocities of it.
        """
        bev = rearrange(warped, "b s c z y x -> b s y x (z c)")
        # Of two frames as near, the past one: a millisecond decides, so neither their order nor rounding does.
        order = (gaps.abs() + 1e-3 * (gaps > 0)).argsort(dim=1)
        rows = torch.arange(len(gaps), device=gaps.device)[:, None]
        # Without a long branch the short one takes all frames: none is dropped unsaid.
        short = self.config.short_frames if self.long is not None else gaps.shape[1]
        near, far = order[:, :short], order[:, short:]
        found, offsets, attention = self.short(bev[rows, near], gaps[rows, near])  # [B, Y, X, E]
        if self.long is not None:
            if far.shape[1]:
                more = self.long(bev[rows, far], gaps[rows, far])[0]
            else:  # trained with more frames than it is given now
                more = found.new_zeros(*found.shape[:3], self.config.long_channels)
            found = torch.cat([found, more], dim=-1)
        joined = self.join(rearrange(found, "b y x e -> b e y x"))  # [B, Z*C, Y, X]
        volume = rearrange(joined, "b (z c) y x -> b c z y x", z=self.grid.shape[0])
        return Decoded(volume, offsets, attention, gaps[rows, near])

    def flow(self, decoded: Decoded) -> Tensor:
        """Return the velocity (x, y) in m/s, in the target's ego frame, of what stands in each BEV cell: [B, 2, Y, X].

        What is at +offset in a source frame has moved by the offset during the gap, so velocity = offset / gap. The
        flow is the mean over heads, weighted by attention. No loss uses it.
        """
        metres = decoded.offsets * constant(self.grid.voxel[:2], decoded.offsets)
        velocity = metres / decoded.gaps[:, :, None, None, None, None, None]  # [B, S', Y, X, heads, points, 2]
        flow = (decoded.attention[..., None] * velocity).sum((1, 4, 5)) / decoded.attention.shape[4]
        return rearrange(flow, "b y x two -> b two y x")

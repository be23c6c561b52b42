"""6. The temporal decoder: rebuild the volume of the dropped frame from the warped volumes of the other frames.

The ego-motion warp has aligned the static world, so the offsets of the deformable attention only have to find the
motion of what moves. Time is continuous: keys, offsets and attention depend on the signed time gap in seconds, never on
the index of a frame, so that any gaps and any number of frames work.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ..bounds import check_bounds
from ..geometry import VoxelGrid
from .deformable import DeformableAttention

SHORT_FRAMES = 1
"""Frames of the short branch, the nearest in time to the target; the long branch has the others (published config)."""
SHORT_HEADS = 4
"""Attention heads of the short branch (published config)."""
LONG_HEADS = 2
"""Attention heads of the long branch (published config)."""


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """Sizes of the two branches (the published ones)."""

    short_channels: int = 128
    """Width of the short branch, a multiple of 4."""
    long_channels: int = 64
    """Width of the long branch, a multiple of 2."""
    points: int = 4
    """Sampling points per attention head and frame."""
    layers: int = 2
    """Layers per branch."""

    def __post_init__(self) -> None:
        check_bounds(self, {"short_channels": (4, 4096), "long_channels": (2, 4096), "points": (1, 64)}, "temporal.")
        check_bounds(self, {"layers": (1, 64)}, "temporal.")
        for name, heads in (("short_channels", SHORT_HEADS), ("long_channels", LONG_HEADS)):
            channels = getattr(self, name)
            if channels % heads:
                raise ValueError(
                    f"temporal.{name} = {channels} must be a multiple of {heads}, its number of attention heads"
                )


def time_embedding(gaps: Tensor, channels: int) -> Tensor:
    """Embed signed time gaps as sinusoids, as in the position encoding of arXiv 1706.03762, section 3.5.

    With n = channels / 2 periods, evenly spaced in their logarithm from 0.1 s to 100 s::

        period_i = 0.1 s * 1000 ** (i / (n - 1)),    i = 0 .. n - 1
        embedding = [sin(2π gap / period_0), ..., cos(2π gap / period_0), ...]

    Args:
        gaps: [...], seconds.
        channels: E, even.

    Returns:
        [..., E].

    A gap of 1/120 s is a twelfth of the period 0.1 s, which is 30 degrees:

    >>> time_embedding(torch.tensor([0.0, 1 / 120]), channels=2)
    tensor([[0.0000, 1.0000],
            [0.5000, 0.8660]])
    """
    half = channels // 2
    periods = 0.1 * 1000 ** (torch.arange(half, device=gaps.device) / max(half - 1, 1))
    angles = gaps[..., None] * (2 * math.pi / periods)  # [..., E/2]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Layer(nn.Module):
    """Deformable attention and a feed-forward network, both residual and with a norm before them."""

    def __init__(self, channels: int, heads: int, points: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = DeformableAttention(channels, heads, points)
        self.norm2 = nn.LayerNorm(channels)
        last = nn.Linear(2 * channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, queries: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend to the frames, then apply the feed-forward network.

        Args:
            queries: [G, Y, X, E].
            position: [Y, X, E], the position embedding of each cell.
            keys: [G, S, Y, X, E], the features and time gaps of the frames, from which offsets and attention follow.
            values: [G, S, Y, X, E], the features that are sampled.

        Returns:
            The queries [G, Y, X, E].
        """
        height, width = position.shape[:2]
        # Where a query samples a frame depends on the frame's features at that cell and on its time gap.
        frame_queries = (self.norm1(queries) + position)[:, None] + keys  # [G, S, Y, X, E]
        y, x = torch.meshgrid(
            torch.arange(height, device=queries.device), torch.arange(width, device=queries.device), indexing="ij"
        )
        cells = torch.stack([x, y], dim=-1).flatten(0, 1)[None]  # [1, Y*X, 2]
        attended = self.attention(frame_queries.flatten(2, 3), cells, values)  # [G, Y*X, E]
        queries = queries + attended.unflatten(1, (height, width))
        return queries + self.mlp(self.norm2(queries))


class Branch(nn.Module):
    """Learned bird's-eye-view (BEV) queries that attend to one set of frames."""

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
        # A new branch returns an orthogonal projection of what its attention samples: the outputs of the layers, each
        # the identity divided by their number, add up to it.
        nn.init.orthogonal_(self.values.weight)
        nn.init.zeros_(self.values.bias)
        for layer in self.layers:
            output = cast(Layer, layer).attention.output
            output.weight.data.copy_(torch.eye(channels) / config.layers)
            nn.init.zeros_(output.bias)

    def forward(self, bev: Tensor, gaps: Tensor) -> Tensor:
        """Attend to S frames.

        Args:
            bev: [G, S, Y, X, Z*C], warped to the target.
            gaps: [G, S] seconds, source minus target.

        Returns:
            [G, Y, X, E].
        """
        times = self.time(time_embedding(gaps, self.channels))  # [G, S, E]
        keys = self.key_norm(self.keys(bev) + times[:, :, None, None])  # [G, S, Y, X, E]
        values = self.values(bev)  # [G, S, Y, X, E]
        queries = self.queries.expand(bev.shape[0], -1, -1, -1)  # [G, Y, X, E]
        position = self.rows + self.columns  # [Y, X, E]
        for layer in self.layers:
            queries = layer(queries, position, keys, values)
        return queries


class TemporalDecoder(nn.Module):
    """A short and a long branch, whose outputs are joined to the volume of the dropped frame.

    Args:
        config: Sizes of the branches.
        channels: C of the volumes.
        grid: Voxels of the volumes.
        frames: T; the long branch exists if T - 1 > ``SHORT_FRAMES``.
    """

    def __init__(self, config: TemporalConfig, channels: int, grid: VoxelGrid, frames: int) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        bev = channels * grid.shape[0]
        self.short = Branch(bev, config.short_channels, SHORT_HEADS, config, grid)
        has_long = frames - 1 > SHORT_FRAMES
        self.long = Branch(bev, config.long_channels, LONG_HEADS, config, grid) if has_long else None
        joined = config.short_channels + (config.long_channels if has_long else 0)
        self.join = nn.Conv2d(joined, bev, 3, padding=1)
        # Initially the join applies the transposes of the branches' orthogonal projections, so that the decoder returns
        # nearly the mean of the warped frames: training need not first learn to pass a volume through.
        branches = [branch for branch in (self.short, self.long) if branch is not None]
        transposed = torch.cat([branch.values.weight.data.T for branch in branches], dim=1) / len(branches)
        for parameter in self.join.parameters():
            nn.init.zeros_(parameter)
        self.join.weight.data[:, :, 1, 1] = transposed

    def forward(self, warped: Tensor, gaps: Tensor) -> Tensor:
        """Rebuild the volumes of the target frames.

        Args:
            warped: [G, S, C, Z, Y, X], the other frames in the ego frame of the target, S >= 1.
            gaps: [G, S] seconds, signed: source minus target.

        Returns:
            [G, C, Z, Y, X].
        """
        bev = rearrange(warped, "g s c z y x -> g s y x (z c)")
        # Of two frames at the same distance the past one comes first: 1 ms is added to gaps to the future, so that
        # neither the order of the frames nor rounding decides.
        order = (gaps.abs() + 1e-3 * (gaps > 0)).argsort(dim=1)  # [G, S]
        target = torch.arange(len(gaps), device=gaps.device)[:, None]  # [G, 1]
        # Without a long branch the short one takes all frames, so that no frame is ignored.
        short = SHORT_FRAMES if self.long is not None else gaps.shape[1]
        near, far = order[:, :short], order[:, short:]  # [G, S'], [G, S - S']
        features = self.short(bev[target, near], gaps[target, near])  # [G, Y, X, E]
        if self.long is not None:
            if far.shape[1]:
                long_features = self.long(bev[target, far], gaps[target, far])
            else:  # the model was built for more frames than it is given now
                long_features = features.new_zeros(*features.shape[:3], self.config.long_channels)
            features = torch.cat([features, long_features], dim=-1)
        joined = self.join(rearrange(features, "g y x e -> g e y x"))  # [G, Z*C, Y, X]
        return rearrange(joined, "g (z c) y x -> g c z y x", z=self.grid.shape[0])

"""A decoder of lines: queries that attend to the BEV features and refine their points in every layer.

As in MapTR (arXiv 2208.14437, section 3.3), one query per point of a line, the sum of an embedding of the line and one
of the point; attention among the points of a line is separate from attention among lines (MapTRv2, arXiv 2308.05736,
section 3.3); features are sampled around the point (Deformable DETR, arXiv 2010.04159). In addition, queries attend to
the whole BEV plane at a coarser resolution, so that points can move far.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..geometry import constant
from ..method.deformable import DeformableAttention


class VectorDecoder(nn.Module):
    """Predict lines from BEV features."""

    def __init__(self, channels: int, classes: int, start: Tensor, *, layers: int = 3, heads: int = 4) -> None:
        """Build the decoder.

        Args:
            channels: Channels C of the features and the queries, a multiple of ``heads``.
            classes: Number of classes of lines.
            start: [N, P, 2], initial points of each line, (x, y) as fractions of the grid, 0 to 1; they are trained.
            layers: Number of decoder layers.
            heads: Number of heads of every attention.

        Raises:
            ValueError: If ``channels`` is not a multiple of ``heads``.
        """
        super().__init__()
        if channels % heads:
            raise ValueError(f"model.channels = {channels} must be a multiple of {heads}, the decoder's heads")
        self.line = nn.Parameter(torch.randn(len(start), 1, channels) * 0.5)
        self.point = nn.Parameter(torch.randn(start.shape[1], channels) * 0.5)
        self.start = nn.Parameter(start.clamp(0.02, 0.98).logit())
        self.position = nn.Linear(4 * FREQUENCIES, channels)
        self.layers = nn.ModuleList(DecoderLayer(channels, heads) for _ in range(layers))
        self.classes = nn.ModuleList(_linear(channels, classes, bias=-2.0) for _ in range(layers))
        self.moves = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), _linear(channels, 2, bias=0.0))
            for _ in range(layers)
        )

    def forward(self, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Predict lines.

        Args:
            features: [B, C, Y, X].

        Returns:
            After each layer, logits [B, N, classes] and points [B, N, P, 2], (x, y) as fractions of the grid, 0
            to 1.
        """
        b = len(features)
        coarse = F.avg_pool2d(features, 2, ceil_mode=True)  # [B, C, Y/2, X/2]
        height, width = coarse.shape[-2:]
        y, x = torch.meshgrid(
            (torch.arange(height, device=features.device) + 0.5) / height,
            (torch.arange(width, device=features.device) + 0.5) / width,
            indexing="ij",
        )
        plane_positions = self.position(waves(torch.stack([x, y], dim=-1).flatten(0, 1)))  # [cells, C]
        plane = rearrange(coarse, "b c y x -> b (y x) c")  # [B, cells, C]
        queries = (self.line + self.point).expand(b, -1, -1, -1)  # [B, N, P, C]
        points = self.start.sigmoid().expand(b, -1, -1, -1)  # [B, N, P, 2]
        outputs = []
        for layer, classify, move in zip(self.layers, self.classes, self.moves, strict=True):
            queries = layer(queries, self.position(waves(points)), points, features, plane, plane_positions)
            points = (points.detach().clamp(1e-4, 1 - 1e-4).logit() + move(queries).float()).sigmoid()
            outputs.append((classify(queries.mean(2)), points))
        return outputs


def _linear(channels: int, out: int, bias: float) -> nn.Linear:
    """Return a linear layer whose initial output is ``bias``."""
    layer = nn.Linear(channels, out)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, bias)
    return layer


FREQUENCIES = 8
"""Number of frequencies of the position encoding."""


def waves(xy: Tensor) -> Tensor:
    """Return sines and cosines [..., 4 * FREQUENCIES] of positions [..., 2] from 0 to 1."""
    frequencies = math.pi * 2.0 ** (torch.arange(FREQUENCIES, device=xy.device) * 0.75)
    angles = xy[..., None] * frequencies  # [..., 2, FREQUENCIES]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class DecoderLayer(nn.Module):
    """One decoder layer: attention among lines, points, the BEV plane and nearby features; then the FFN."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.lines = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.points = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.plane = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.near = NearAttention(channels, heads)
        self.ffn = nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(5))

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        points: Tensor,
        features: Tensor,
        plane: Tensor,
        plane_positions: Tensor,
    ) -> Tensor:
        """Apply the layer.

        Args:
            queries: [B, N, P, C].
            positions: [B, N, P, C], their position embeddings.
            points: [B, N, P, 2], 0 to 1.
            features: [B, C, Y, X].
            plane: [B, cells, C], the features at a coarser resolution.
            plane_positions: [cells, C], their position embeddings.

        Returns:
            The queries [B, N, P, C].
        """
        b, n, p, _ = queries.shape
        with _short_sequences(queries.device):
            values = rearrange(queries, "b n p c -> (b p) n c")
            keys = rearrange(queries + positions, "b n p c -> (b p) n c")
            update = self.lines(keys, keys, values, need_weights=False)[0]  # [B*P, N, C]
            queries = self.norms[0](queries + rearrange(update, "(b p) n c -> b n p c", b=b))
            values = rearrange(queries, "b n p c -> (b n) p c")
            keys = rearrange(queries + positions, "b n p c -> (b n) p c")
            update = self.points(keys, keys, values, need_weights=False)[0]  # [B*N, P, C]
            queries = self.norms[1](queries + rearrange(update, "(b n) p c -> b n p c", b=b))
        flat = (queries + positions).flatten(1, 2)  # [B, N*P, C]
        update = self.plane(flat, plane + plane_positions, plane, need_weights=False)[0]
        queries = self.norms[2](queries + update.unflatten(1, (n, p)))
        queries = self.norms[3](queries + self.near(queries + positions, points, features))
        return self.norms[4](queries + self.ffn(queries))


def _short_sequences(device: torch.device) -> AbstractContextManager[Any]:
    """Use the plain attention kernel on a CPU, where the fused one is several times slower for short sequences."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class NearAttention(nn.Module):
    """Deformable attention of points to the BEV features around them."""

    def __init__(self, channels: int, heads: int, samples: int = 4) -> None:
        super().__init__()
        self.values = nn.Conv2d(channels, channels, 1)
        self.attention = DeformableAttention(channels, heads, samples)
        nn.init.zeros_(self.attention.scores.bias)

    def forward(self, queries: Tensor, points: Tensor, features: Tensor) -> Tensor:
        """Sample features around points.

        Args:
            queries: [B, N, P, C].
            points: [B, N, P, 2], 0 to 1.
            features: [B, C, Y, X].

        Returns:
            [B, N, P, C].
        """
        size = constant([features.shape[-1], features.shape[-2]], points)
        cells = points.flatten(1, 2) * size - 0.5  # [B, N*P, 2]
        values = rearrange(self.values(features), "b c y x -> b 1 y x c")  # [B, 1, Y, X, C]
        mixed = self.attention(queries.flatten(1, 2)[:, None], cells, values)  # [B, N*P, C]
        return mixed.unflatten(1, queries.shape[1:3])

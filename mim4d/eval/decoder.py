"""A decoder of lines: queries that look at the BEV features, and move their points a little in every layer.

As MapTR (arXiv 2208.14437, section 3.3): a query a point of a line, made of an instance's part and a point's part;
attention among the points of a line and among lines apart from each other (MapTRv2, arXiv 2308.05736, section 3.3);
features sampled round where the point is now (Deformable DETR, arXiv 2010.04159). And, so that points far off find
their way, attention to the whole plane at a coarser resolution.
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
    """BEV features -> lines."""

    def __init__(self, channels: int, classes: int, start: Tensor, *, layers: int = 3, heads: int = 4) -> None:
        """Make the decoder.

        Args:
            channels: C, of the features and the queries; a multiple of ``heads``.
            classes: Kinds of lines.
            start: [N, P, 2], where each line's points are looked for first, (x, y) as shares of the grid, 0 to 1; is
                learnt from there on.
            layers: Number of decoder layers.
            heads: Of every attention.

        Raises:
            ValueError: If ``channels`` do not go round.
        """
        super().__init__()
        if channels % heads:
            raise ValueError(f"model.channels = {channels} must be a multiple of {heads}, the decoder's heads")
        self.line = nn.Parameter(torch.randn(len(start), 1, channels) * 0.5)
        self.point = nn.Parameter(torch.randn(start.shape[1], channels) * 0.5)
        self.start = nn.Parameter(start.clamp(0.02, 0.98).logit())
        self.place = nn.Linear(4 * FREQUENCIES, channels)
        self.layers = nn.ModuleList(DecoderLayer(channels, heads) for _ in range(layers))
        self.classes = nn.ModuleList(_linear(channels, classes, bias=-2.0) for _ in range(layers))
        self.moves = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), _linear(channels, 2, bias=0.0))
            for _ in range(layers)
        )

    def forward(self, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Find lines.

        Args:
            features: [B, C, Y, X].

        Returns:
            After each layer, logits [B, N, classes] and points [B, N, P, 2], (x, y) as shares of the grid, 0 to 1.
        """
        b = len(features)
        coarse = F.avg_pool2d(features, 2, ceil_mode=True)
        height, width = coarse.shape[-2:]
        y, x = torch.meshgrid(
            (torch.arange(height, device=features.device) + 0.5) / height,
            (torch.arange(width, device=features.device) + 0.5) / width,
            indexing="ij",
        )
        places = self.place(waves(torch.stack([x, y], dim=-1).flatten(0, 1)))  # [M, C]
        plane = rearrange(coarse, "b c y x -> b (y x) c")
        queries = (self.line + self.point).expand(b, -1, -1, -1)  # [B, N, P, C]
        points = self.start.sigmoid().expand(b, -1, -1, -1)
        found = []
        for layer, classify, move in zip(self.layers, self.classes, self.moves, strict=True):
            queries = layer(queries, self.place(waves(points)), points, features, plane, places)
            points = (points.detach().clamp(1e-4, 1 - 1e-4).logit() + move(queries).float()).sigmoid()
            found.append((classify(queries.mean(2)), points))
        return found


def _linear(channels: int, out: int, bias: float) -> nn.Linear:
    """A linear layer whose initial output is ``bias``."""
    layer = nn.Linear(channels, out)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, bias)
    return layer


FREQUENCIES = 8
"""Number of frequencies of the position encoding."""


def waves(xy: Tensor) -> Tensor:
    """Sines and cosines [..., 4 * FREQUENCIES] of places [..., 2] from 0 to 1."""
    angles = xy[..., None] * (math.pi * 2.0 ** (torch.arange(FREQUENCIES, device=xy.device) * 0.75))
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
        self, queries: Tensor, places: Tensor, points: Tensor, features: Tensor, plane: Tensor, plane_places: Tensor
    ) -> Tensor:
        """Apply the layer.

        Args:
            queries: [B, N, P, C].
            places: The same, where they are.
            points: [B, N, P, 2], 0 to 1.
            features: [B, C, Y, X].
            plane: [B, M, C], the features at a coarser resolution.
            plane_places: [M, C], where they are.

        Returns:
            The queries [B, N, P, C].
        """
        b, n, p, _ = queries.shape
        with _short_sequences(queries.device):
            among = rearrange(queries, "b n p c -> (b p) n c")
            asked = rearrange(queries + places, "b n p c -> (b p) n c")
            answer = self.lines(asked, asked, among, need_weights=False)[0]
            queries = self.norms[0](queries + rearrange(answer, "(b p) n c -> b n p c", b=b))
            along = rearrange(queries, "b n p c -> (b n) p c")
            asked = rearrange(queries + places, "b n p c -> (b n) p c")
            answer = self.points(asked, asked, along, need_weights=False)[0]
            queries = self.norms[1](queries + rearrange(answer, "(b n) p c -> b n p c", b=b))
        asked = (queries + places).flatten(1, 2)
        answer = self.plane(asked, plane + plane_places, plane, need_weights=False)[0]
        queries = self.norms[2](queries + answer.unflatten(1, (n, p)))
        queries = self.norms[3](queries + self.near(queries + places, points, features))
        return self.norms[4](queries + self.ffn(queries))


def _short_sequences(device: torch.device) -> AbstractContextManager[Any]:
    """For attention among few: on a CPU torch's fused kernel takes several times as long as the plain one there."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class NearAttention(nn.Module):
    """Deformable attention of points to the BEV features round them."""

    def __init__(self, channels: int, heads: int, samples: int = 4) -> None:
        super().__init__()
        self.values = nn.Conv2d(channels, channels, 1)
        self.attention = DeformableAttention(channels, heads, samples)
        nn.init.zeros_(self.attention.scores.bias)

    def forward(self, queries: Tensor, points: Tensor, features: Tensor) -> Tensor:
        """[B, N, P, C] at points [B, N, P, 2], of features [B, C, Y, X] -> [B, N, P, C]."""
        size = constant([features.shape[-1], features.shape[-2]], points)
        cells = points.flatten(1, 2) * size - 0.5  # [B, N*P, 2]
        values = rearrange(self.values(features), "b c y x -> b 1 y x c")
        mixed, _, _ = self.attention(queries.flatten(1, 2)[:, None], cells, values)  # [B, N*P, C]
        return mixed.unflatten(1, queries.shape[1:3])

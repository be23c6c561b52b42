"""7d. The renderer: rays through volumes -> colour and depth (NeuS, arXiv 2106.10689)."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..bounds import check_bounds
from ..geometry import VoxelGrid, box_interval
from .field import Field, FieldConfig
from .sampling import importance, stratified, surface_weights, transmittance

NEAR = 1.0
"""Nearest sample, metres."""
IMPORTANCE_INV_S = 64.0
"""Fixed sharpness for importance sampling, per scene unit (NeuS' first round of up-sampling)."""


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """Samples along rays, and how many rays at a time."""

    rays_per_view: int = 512
    """Rays drawn an image a step."""
    uniform_samples: int = 72
    """Stratified samples a ray."""
    importance_samples: int = 24
    """Further samples a ray, where the surface seems to be."""
    chunk: int = 0
    """Rays computed at a time; their activations are recomputed in the backward pass, which bounds memory. 0: 256 on a
    CPU (they fit its cache), 4096 on a GPU."""
    field: FieldConfig = field(default_factory=FieldConfig)

    def __post_init__(self) -> None:
        # Importance sampling needs a piece between two samples.
        samples = {"uniform_samples": (2, 4096), "importance_samples": (0, 4096)}
        check_bounds(self, {"rays_per_view": (1, 2**16), **samples, "chunk": (0, 2**24)}, "render.")


class Rendered(NamedTuple):
    """What was seen along rays, all in the rays' order."""

    rgb: Tensor
    """[G, R, 3] colour, 0 to 1."""
    depth: Tensor
    """[G, R] distance along the ray, metres."""
    opacity: Tensor
    """[G, R] the share of light that does not pass the whole ray, 0 to 1: the weights' sum, but for rounding."""
    hit: Tensor
    """[G, R] bool: False where the ray misses the volume's box, and the rest is void."""


class Renderer(nn.Module):
    """Differentiable volume rendering of feature volumes. Runs in float32 whatever autocast says.

    Args:
        config: Samples and decoders.
        channels: C of the volumes.
        grid: Their voxels.
        sky: Whether rays may leave the volume unstopped: what is behind it then has a learned colour. LiDAR rays end
            inside, and a colour to see through to would only teach them to be transparent.
    """

    def __init__(self, config: RenderConfig, channels: int, grid: VoxelGrid, *, sky: bool) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        self.field = Field(config.field, channels, grid)
        self.sky = nn.Parameter(torch.zeros(3)) if sky else None

    def forward(self, volumes: Tensor, origins: Tensor, directions: Tensor, jitter: Tensor | None = None) -> Rendered:
        """Render R rays through each of G volumes.

        Args:
            volumes: [G, C, Z, Y, X].
            origins: [G, R, 3] metres, in each volume's ego frame.
            directions: [G, R, 3] unit length.
            jitter: [G, R, uniform_samples] in 0..1, for the stratified samples; None takes the middles.

        Returns:
            Colour, depth, opacity and hits.
        """
        with torch.autocast(volumes.device.type, enabled=False):
            g, r = origins.shape[:2]
            rows = volumes.shape[2] * volumes.shape[3] * volumes.shape[4]
            table = volumes.float().permute(0, 2, 3, 4, 1).reshape(g * rows, -1)
            first = (torch.arange(g, device=volumes.device) * rows).repeat_interleave(r)
            origins, directions = origins.flatten(0, 1), directions.flatten(0, 1)
            near, far = box_interval(origins, directions, self.grid.low(origins), self.grid.high(origins))
            near = near.clamp(min=NEAR)
            hit = far > near
            # The slab test's ends of a miss may lie a million kilometres off: the void ray gets ordinary points.
            near, far = near.where(hit, NEAR), far.where(hit, NEAR + 1)
            if jitter is None:
                jitter = torch.full((g, r, self.config.uniform_samples), 0.5, device=volumes.device)
            parts = []
            rays = (origins, directions, near, far, jitter.flatten(0, 1), first)
            size = self.config.chunk or (256 if volumes.device.type == "cpu" else 4096)
            for chunk in zip(*(x.split(size) for x in rays), strict=True):
                distances = self._place(table.detach(), *chunk)
                args = (table, *chunk[:2], chunk[3], chunk[5], distances)
                # One chunk's activations at a time are kept: the backward pass computes them anew.
                if torch.is_grad_enabled():
                    parts.append(checkpoint(self._march, *args, use_reentrant=False, preserve_rng_state=False))
                else:
                    parts.append(self._march(*args))
            rgb, depth, opacity = (torch.cat(x) for x in zip(*parts, strict=True))
        return Rendered(rgb.view(g, r, 3), depth.view(g, r), opacity.view(g, r), hit.view(g, r))

    @torch.no_grad()
    def _place(
        self,
        table: Tensor,
        origins: Tensor,
        directions: Tensor,
        near: Tensor,
        far: Tensor,
        jitter: Tensor,
        first: Tensor,
    ) -> Tensor:
        """Distances of all samples [n, S], metres: stratified, then by importance (no gradient, as in NeuS)."""
        distances = stratified(near, far, jitter)
        if not self.config.importance_samples:
            return distances
        points = origins[:, None] + directions[:, None] * distances[..., None]
        owner = first.repeat_interleave(distances.shape[1])
        sdf = self.field.distance(points.flatten(0, 1), table, owner).view_as(distances)
        weights = surface_weights(distances / self.field.scale, sdf, IMPORTANCE_INV_S)
        return importance(distances, weights, self.config.importance_samples)

    def _march(
        self, table: Tensor, origins: Tensor, directions: Tensor, far: Tensor, first: Tensor, distances: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Colour [n, 3], depth [n] and opacity [n] from the field at the middle of each section."""
        n, s = distances.shape
        step = torch.cat([distances, far[:, None]], dim=1).diff(dim=1)
        middle = distances + step / 2
        points = (origins[:, None] + directions[:, None] * middle[..., None]).flatten(0, 1)
        along = directions[:, None].expand(n, s, 3).reshape(-1, 3)
        sdf, normals, colour = self.field(points, along, table, first.repeat_interleave(s))

        slopes = (along * normals).sum(-1).view(n, s)
        weights, passed = section_weights(sdf.view(n, s), slopes, step / self.field.scale, self.field.inv_s)

        rgb = (weights[..., None] * colour.view(n, s, 3)).sum(1)
        if self.sky is not None:
            rgb = rgb + passed[:, None] * torch.sigmoid(self.sky)
        depth = (weights * middle).sum(1) / weights.sum(1).clamp(min=1e-6)
        return rgb, depth, 1 - passed


def section_weights(sdf: Tensor, slopes: Tensor, steps: Tensor, inv_s: Tensor) -> tuple[Tensor, Tensor]:
    """Rendering weights of a ray's sections (NeuS section 3.1, eq. 13), and what is left for the background.

    Args:
        sdf: [n, S], at the middle of each section, scene units.
        slopes: [n, S], its slope along the ray there; only where it falls does the ray enter something.
        steps: [n, S], the sections' lengths, scene units.
        inv_s: The surface's sharpness, scalar.

    Returns:
        Weights [n, S], not negative, and the share of light that passes all sections [n], 0 to 1. Together they are 1,
        but for rounding.
    """
    drop = F.relu(-slopes) * steps / 2
    enter, leave = torch.sigmoid((sdf + drop) * inv_s), torch.sigmoid((sdf - drop) * inv_s)
    alpha = ((enter - leave + 1e-5) / (enter + 1e-5)).clamp(0, 1)
    light = transmittance(alpha)
    return alpha * light[:, :-1], light[:, -1]

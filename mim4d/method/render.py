"""7d. The renderer: colour and depth along rays through volumes (NeuS, arXiv 2106.10689)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..bounds import check_bounds
from ..geometry import VoxelGrid, box_interval
from .field import Field
from .sampling import importance, stratified, surface_weights, transmittance

NEAR = 1.0
"""Distance of the nearest sample from the ray's origin, metres."""
IMPORTANCE_INV_S = 64.0
"""Fixed sharpness for importance sampling, per scene unit (that of NeuS' first round)."""


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """Settings of the rays and of the samples along them."""

    rays_per_view: int = 512
    """Rays per image per step."""
    uniform_samples: int = 72
    """Stratified samples per ray."""
    importance_samples: int = 24
    """Further samples per ray, near the estimated surface."""
    chunk: int = 0
    """Rays rendered at a time, and again in the backward pass to save memory. 0: 256 on a CPU, 4096 on a GPU."""
    # 256 rays fit the cache of a CPU.

    def __post_init__(self) -> None:
        # Importance sampling needs a piece between two samples.
        samples = {"uniform_samples": (2, 4096), "importance_samples": (0, 4096)}
        check_bounds(self, {"rays_per_view": (1, 2**16), **samples, "chunk": (0, 2**24)}, "render.")


class Rendered(NamedTuple):
    """Colour, depth and opacity along rays, in the order of the rays."""

    rgb: Tensor
    """[G, R, 3], colour, 0 to 1."""
    depth: Tensor
    """[G, R], distance along the ray, metres."""
    opacity: Tensor
    """[G, R], fraction of light that does not pass the whole ray, 0 to 1: the sum of the weights, up to rounding."""
    hit: Tensor
    """[G, R] bool; False where the ray misses the volume's box, and the other values are meaningless."""


class Renderer(nn.Module):
    """Differentiable volume rendering of feature volumes, in float32 even inside autocast.

    With weights w_i, colours c_i and distances t_i at the middles of the sections of a ray (see
    :func:`section_weights`)::

        rgb   = sum over i of w_i c_i + (1 - sum over i of w_i) sky
        depth = sum over i of w_i t_i / sum over i of w_i

    Args:
        config: Rays and samples.
        channels: C of the volumes.
        grid: Voxels of the volumes.
        sky: Whether light that passes the whole ray has a learned colour, for rays that may leave the volume without
            hitting anything. LiDAR rays end inside the volume, and a colour behind it would only teach the model to
            be transparent.
    """

    def __init__(self, config: RenderConfig, channels: int, grid: VoxelGrid, *, sky: bool) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        self.field = Field(channels, grid)
        self.sky = nn.Parameter(torch.zeros(3)) if sky else None

    def forward(self, volumes: Tensor, origins: Tensor, directions: Tensor, jitter: Tensor | None = None) -> Rendered:
        """Render R rays through each of G volumes.

        Args:
            volumes: [G, C, Z, Y, X].
            origins: [G, R, 3], metres in the ego frame of each volume.
            directions: [G, R, 3], unit length.
            jitter: [G, R, uniform_samples], 0 to 1, positions of the stratified samples in their intervals. None: 0.5.

        Returns:
            Colour, depth, opacity and hits.
        """
        with torch.autocast(volumes.device.type, enabled=False):
            g, r = origins.shape[:2]
            rows = volumes.shape[2] * volumes.shape[3] * volumes.shape[4]
            table = volumes.float().permute(0, 2, 3, 4, 1).reshape(g * rows, -1)  # [G*Z*Y*X, C]
            first_row = (torch.arange(g, device=volumes.device) * rows).repeat_interleave(r)  # [G*R]
            origins, directions = origins.flatten(0, 1), directions.flatten(0, 1)  # [G*R, 3]
            near, far = box_interval(origins, directions, self.grid.low(origins), self.grid.high(origins))  # [G*R]
            near = near.clamp(min=NEAR)
            hit = far > near
            # The interval of a ray that misses the box can be at a distance of 1e9 m: replace it by an ordinary one.
            near, far = near.where(hit, NEAR), far.where(hit, NEAR + 1)
            if jitter is None:
                jitter = torch.full((g, r, self.config.uniform_samples), 0.5, device=volumes.device)
            parts = []
            rays = (origins, directions, near, far, jitter.flatten(0, 1), first_row)
            size = self.config.chunk or (256 if volumes.device.type == "cpu" else 4096)
            for chunk in zip(*(x.split(size) for x in rays), strict=True):
                distances = self._sample_distances(table.detach(), *chunk)
                args = (table, *chunk[:2], chunk[3], chunk[5], distances)
                # The backward pass recomputes the activations, so that memory holds those of one chunk at a time.
                if torch.is_grad_enabled():
                    parts.append(checkpoint(self._march, *args, use_reentrant=False, preserve_rng_state=False))
                else:
                    parts.append(self._march(*args))
            rgb, depth, opacity = (torch.cat(x) for x in zip(*parts, strict=True))
        return Rendered(rgb.view(g, r, 3), depth.view(g, r), opacity.view(g, r), hit.view(g, r))

    @torch.no_grad()
    def _sample_distances(
        self,
        table: Tensor,
        origins: Tensor,
        directions: Tensor,
        near: Tensor,
        far: Tensor,
        jitter: Tensor,
        first_row: Tensor,
    ) -> Tensor:
        """Return the distances of all samples [R, M], metres: stratified and importance samples, sorted.

        As in NeuS, they get no gradient.
        """
        distances = stratified(near, far, jitter)  # [R, uniform_samples]
        if not self.config.importance_samples:
            return distances
        points = origins[:, None] + directions[:, None] * distances[..., None]  # [R, uniform_samples, 3]
        first_row = first_row.repeat_interleave(distances.shape[1])  # [P]
        sdf = self.field.distance(points.flatten(0, 1), table, first_row).view_as(distances)
        weights = surface_weights(distances / self.field.scale, sdf, IMPORTANCE_INV_S)
        return importance(distances, weights, self.config.importance_samples)

    def _march(
        self, table: Tensor, origins: Tensor, directions: Tensor, far: Tensor, first_row: Tensor, distances: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Render rays: return colour [R, 3], depth [R] and opacity [R].

        Sample i starts section i, which ends at the next sample or at ``far``. The field is evaluated at its middle.
        """
        r, m = distances.shape
        steps = torch.cat([distances, far[:, None]], dim=1).diff(dim=1)  # [R, M]
        middles = distances + steps / 2  # [R, M]
        points = (origins[:, None] + directions[:, None] * middles[..., None]).flatten(0, 1)  # [P, 3], P = R*M
        directions = directions[:, None].expand(r, m, 3).reshape(-1, 3)  # [P, 3]
        sdf, normals, colour = self.field(points, directions, table, first_row.repeat_interleave(m))

        slopes = (directions * normals).sum(-1).view(r, m)
        weights, passed = section_weights(sdf.view(r, m), slopes, steps / self.field.scale, self.field.inv_s)

        rgb = (weights[..., None] * colour.view(r, m, 3)).sum(1)  # [R, 3]
        if self.sky is not None:
            rgb = rgb + passed[:, None] * torch.sigmoid(self.sky)
        depth = (weights * middles).sum(1) / weights.sum(1).clamp(min=1e-6)  # [R]
        return rgb, depth, 1 - passed


def section_weights(sdf: Tensor, slopes: Tensor, steps: Tensor, inv_s: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the rendering weights of a ray's sections (NeuS, arXiv 2106.10689, section 3.1, eq. 13).

    The signed distances at the ends of a section follow from the one at its middle and its slope along the ray. With Φ
    the logistic function of inv_s times its argument::

        drop_i   = max(-slope_i, 0) step_i / 2
        alpha_i  = (Φ(sdf_i + drop_i) - Φ(sdf_i - drop_i)) / Φ(sdf_i + drop_i)
        weight_i = alpha_i * product over j < i of (1 - alpha_j)

    Args:
        sdf: [R, M], signed distance at the middle of each section, scene units.
        slopes: [R, M], its slope along the ray. The ray enters an object only where it is negative.
        steps: [R, M], lengths of the sections, scene units.
        inv_s: Sharpness of the surface, scalar.

    Returns:
        Weights [R, M], not negative, and the fraction of light that passes all sections [R], 0 to 1. Their sum is 1, up
        to rounding.

    A section that enters a wall at its middle, with Φ(1) = 0.75 and Φ(-1) = 0.25, hence alpha = 2/3:

    >>> sdf, slopes, steps = torch.tensor([[0.0]]), torch.tensor([[-1.0]]), torch.tensor([[2.0]])
    >>> section_weights(sdf, slopes, steps, inv_s=torch.tensor(3.0).log())
    (tensor([[0.6667]]), tensor([0.3333]))
    """
    drop = F.relu(-slopes) * steps / 2
    enter, leave = torch.sigmoid((sdf + drop) * inv_s), torch.sigmoid((sdf - drop) * inv_s)
    alpha = ((enter - leave + 1e-5) / (enter + 1e-5)).clamp(0, 1)  # [R, M]
    light = transmittance(alpha)  # [R, M + 1]
    return alpha * light[:, :-1], light[:, -1]

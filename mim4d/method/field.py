"""7c. The field: a volume's features -> signed distance, its gradient, and colour at points."""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bounds import check_bounds
from ..geometry import VoxelGrid, constant

FLAT = 1e-2
"""Length of the signed distance's gradient below which it is taken to have no direction."""


@dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """Sizes of the two decoders (the published ones)."""

    hidden: int = 16
    """Width of both MLPs, and of the geometry feature between them."""
    sdf_blocks: int = 5
    """Hidden layers of the signed-distance decoder."""
    rgb_blocks: int = 3
    """Hidden layers of the colour decoder."""

    def __post_init__(self) -> None:
        check_bounds(self, {"hidden": (1, 4096), "sdf_blocks": (1, 64), "rgb_blocks": (1, 64)}, "render.field.")


def corners(index: Tensor, shape: tuple[int, int, int], *, slopes: bool = True) -> tuple[Tensor, Tensor]:
    """The eight voxels around points, their trilinear weights, and the weights' derivatives.

    Points beyond the outermost voxel centres take the border's value, with zero derivative across it.

    Args:
        index: [N, 3] continuous index (x, y, z), centres at whole numbers.
        shape: (Z, Y, X).
        slopes: Whether the derivatives are wanted.

    Returns:
        rows [N, 8] int64 into Z*Y*X, and weights [N, 4, 8]: the value's, then its derivatives by x, y and z index; the
        value's alone, [N, 1, 8], without ``slopes``.
    """
    top = constant(shape[::-1], index) - 1
    inside = ((index > 0) & (index < top)).to(index.dtype)  # [N, 3]
    index = index.clamp(min=0).minimum(top)
    low = index.floor().minimum((top - 1).clamp(min=0))
    upper = index - low
    w = torch.stack([1 - upper, upper], dim=-1)  # [N, 3, 2]

    def outer(x: Tensor, y: Tensor, z: Tensor) -> Tensor:  # three [N, 2] -> [N, 8], x fastest
        return (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).flatten(1)

    wx, wy, wz = w.unbind(1)
    weights = [outer(wx, wy, wz)]
    if slopes:
        sx, sy, sz = torch.stack([-inside, inside], dim=-1).unbind(1)
        weights += [outer(sx, wy, wz), outer(wx, sy, wz), outer(wx, wy, sz)]
    both = torch.arange(2, device=index.device)
    # A point that is NaN, in a run that diverged, must end as a NaN loss and not as an index out of range.
    cell = low.nan_to_num().long()[:, :, None] + both  # [N, 3, 2]
    x, y, z = cell.minimum(top.long()[:, None]).unbind(1)
    rows = (z[:, :, None, None] * shape[1] + y[:, None, :, None]) * shape[2] + x[:, None, None, :]
    return rows.flatten(1), torch.stack(weights, dim=1)


class FeatureMLP(nn.Module):
    """An MLP from points whose every layer adds a linear map of a feature (Convolutional Occupancy Networks' decoder).

    The maps of all layers are one matrix, so one product serves them all.
    """

    def __init__(self, features: int, hidden: int, blocks: int, out: int) -> None:
        super().__init__()
        self.point = nn.Linear(3, hidden)
        self.feature = nn.Linear(features, hidden * (blocks + 1))
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.last = nn.Linear(hidden, out)


class SDFDecoder(FeatureMLP):
    """Point and feature -> signed distance and geometry feature, with the distance's derivatives in closed form."""

    BETA = 100.0

    def forward(self, points: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode, and differentiate.

        The derivatives are written out (reverse mode by hand), so that a loss on the normal needs first-order
        autograd alone.

        Args:
            points: [N, 3] scaled positions.
            features: [N, C].

        Returns:
            sdf [N], geometry [N, hidden], and sdf's partial derivatives by the point [N, 3] and the feature [N, C].
        """
        x, pre = self._run(points, features)
        out = self.last(x)

        by_x = self.last.weight[0].expand_as(x)
        by_added = [by_x]
        for layer, a in zip(reversed(self.layers), reversed(pre), strict=True):
            by_x = (by_x * torch.sigmoid(self.BETA * a)) @ cast(nn.Linear, layer).weight
            by_added.append(by_x)
        by_feature = torch.cat(by_added[::-1], dim=-1) @ self.feature.weight
        return out[:, 0], out[:, 1:], by_x @ self.point.weight, by_feature

    def distance(self, points: Tensor, features: Tensor) -> Tensor:
        """The signed distance [N] alone."""
        x, _ = self._run(points, features)
        return F.linear(x, self.last.weight[:1], self.last.bias[:1])[:, 0]

    def _run(self, points: Tensor, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        added = self.feature(features).chunk(len(self.layers) + 1, dim=-1)
        x, pre = self.point(points) + added[0], []
        for layer, more in zip(self.layers, added[1:], strict=True):
            a = layer(x)
            pre.append(a)
            x = F.softplus(a, beta=self.BETA) + more
        return x, pre


class RGBDecoder(FeatureMLP):
    """Point and appearance feature -> colour."""

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        """[N, 3] scaled positions and [N, F] -> [N, 3] in 0..1."""
        added = self.feature(features).chunk(len(self.layers) + 1, dim=-1)
        x = self.point(points) + added[0]
        for layer, more in zip(self.layers, added[1:], strict=True):
            x = F.relu(layer(x)) + more
        return torch.sigmoid(self.last(x))


class Field(nn.Module):
    """NeuS' field over feature volumes. Lengths are in scene units: metres / ``scale``."""

    def __init__(self, config: FieldConfig, channels: int, grid: VoxelGrid) -> None:
        super().__init__()
        self.grid = grid
        self.scale = max(abs(edge) for axis in (grid.x, grid.y, grid.z) for edge in axis)
        self.sdf = SDFDecoder(channels, config.hidden, config.sdf_blocks, 1 + config.hidden)
        self.rgb = RGBDecoder(channels + 6 + config.hidden, config.hidden, config.rgb_blocks, 3)
        # Sharpness of the surface, exp(10 v), learned (NeuS section 3.1); starts at e^3.
        self.v = nn.Parameter(torch.tensor(0.3))

    @property
    def inv_s(self) -> Tensor:
        """The learned sharpness, scalar, per scene unit."""
        return torch.exp(10 * self.v).clamp(1e-6, 1e6)

    def distance(self, points: Tensor, table: Tensor, first: Tensor) -> Tensor:
        """Signed distance [N] in scene units; arguments as in :meth:`forward`."""
        rows, weights = corners(self.grid.index_of(points), self.grid.shape, slopes=False)
        features = F.embedding_bag(rows + first[:, None], table, per_sample_weights=weights[:, 0], mode="sum")
        return self.sdf.distance(points / self.scale, features)

    def forward(
        self, points: Tensor, directions: Tensor, table: Tensor, first: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the field.

        Args:
            points: [N, 3] metres, ego frame.
            directions: [N, 3], of the rays they lie on.
            table: [rows, C], the voxels of all volumes one after the other.
            first: [N] int64, the first row of each point's volume.

        Returns:
            sdf [N] in scene units, its gradient by the scaled position [N, 3] (the normal, not normalised), and
            colour [N, 3].
        """
        rows, weights = corners(self.grid.index_of(points), self.grid.shape)
        n, c = len(points), table.shape[1]
        around = table.index_select(0, (rows + first[:, None]).flatten()).view(n, 8, c)
        looked = weights @ around  # [N, 4, C]: the feature, and its derivatives a voxel
        features = looked[:, 0]
        sdf, geometry, by_point, by_feature = self.sdf(points / self.scale, features)
        per_voxel = (looked[:, 1:] @ by_feature[:, :, None]).squeeze(-1)
        normals = by_point + per_voxel * (self.scale / constant(self.grid.voxel, points))
        # Nothing holds the gradient's length near 1 (there is no eikonal loss): at length 10 to 300, as it comes, it
        # drowns the features. So the colour is given its direction.
        facing = normals * (normals.square().sum(-1, keepdim=True) + FLAT**2).rsqrt()
        colour = self.rgb(points / self.scale, torch.cat([directions, features, facing, geometry], dim=-1))
        return sdf, normals, colour

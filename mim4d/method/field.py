"""7c. The field: signed distance, its gradient and colour at points, from the features of a volume."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import VoxelGrid, constant

GRADIENT_EPS = 1e-2
"""Length of the signed distance's gradient below which its direction fades to zero."""
HIDDEN = 16
"""Channels of both decoders' hidden layers, and of the geometry feature between them (published config)."""
SDF_BLOCKS = 5
"""Hidden layers of the signed-distance decoder (published config)."""
RGB_BLOCKS = 3
"""Hidden layers of the colour decoder (published config)."""


def corners(index: Tensor, shape: tuple[int, int, int], *, derivatives: bool = True) -> tuple[Tensor, Tensor]:
    """Find the eight voxels around points, with their trilinear weights and the derivatives of these weights.

    With f the fraction of a point's index above the lower voxel, the weight of a voxel is the product over the three
    axes of f for the upper and 1 - f for the lower voxel. Points outside the outermost voxel centres get the value at
    the border, with zero derivative across it.

    Args:
        index: [P, 3], continuous voxel index (x, y, z); voxel centres have whole numbers.
        shape: (Z, Y, X).
        derivatives: Whether to compute the derivatives.

    Returns:
        Rows [P, 8] int64 into Z*Y*X, and weights [P, 4, 8]: those of the value, then their derivatives by the x, y and
        z index; without ``derivatives`` [P, 1, 8], those of the value alone.

    A quarter of the way from the first voxel to the second:

    >>> rows, weights = corners(torch.tensor([[0.25, 0.0, 0.0]]), (1, 1, 2))
    >>> rows[:, :2], weights[:, :2, :2]  # the values' weights and their derivatives by x
    (tensor([[0, 1]]), tensor([[[ 0.7500,  0.2500],
             [-1.0000,  1.0000]]]))
    """
    last = constant(shape[::-1], index) - 1  # index (x, y, z) of the last voxel
    inside = ((index > 0) & (index < last)).to(index.dtype)  # [P, 3]
    index = index.clamp(min=0).minimum(last)
    lower = index.floor().minimum((last - 1).clamp(min=0))
    fraction = index - lower
    axis_weights = torch.stack([1 - fraction, fraction], dim=-1)  # [P, 3, 2]

    def product(x: Tensor, y: Tensor, z: Tensor) -> Tensor:  # three [P, 2] -> [P, 8], x fastest
        return (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).flatten(1)

    x, y, z = axis_weights.unbind(1)  # [P, 2]
    weights = [product(x, y, z)]
    if derivatives:
        dx, dy, dz = torch.stack([-inside, inside], dim=-1).unbind(1)  # [P, 2]
        weights += [product(dx, y, z), product(x, dy, z), product(x, y, dz)]
    # If a run diverged, a NaN must lead to a NaN loss and not to an index out of range.
    voxel = lower.nan_to_num().long()[:, :, None] + torch.arange(2, device=index.device)  # [P, 3, 2]
    i, j, k = voxel.minimum(last.long()[:, None]).unbind(1)  # [P, 2]
    rows = (k[:, :, None, None] * shape[1] + j[:, None, :, None]) * shape[2] + i[:, None, None, :]  # [P, 2, 2, 2]
    return rows.flatten(1), torch.stack(weights, dim=1)


class FeatureMLP(nn.Module):
    """An MLP of a point p whose every layer adds a linear map of a feature f.

    It is the decoder of Convolutional Occupancy Networks (arXiv 2003.04618). With an activation φ::

        x_0 = A p + F_0 f
        x_i = φ(W_i x_i-1) + F_i f,    i = 1 .. blocks
        out = V x_blocks

    All but the F_i have biases, which are left out here. The maps F_i are one matrix, so that a single matrix product
    computes them all.
    """

    def __init__(self, features: int, hidden: int, blocks: int, out: int) -> None:
        super().__init__()
        self.point = nn.Linear(3, hidden)
        self.feature = nn.Linear(features, hidden * (blocks + 1))
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.last = nn.Linear(hidden, out)


class SDFDecoder(FeatureMLP):
    """The decoder of point and feature to signed distance and geometry feature; φ is a softplus.

    The derivatives of the signed distance are computed by reverse mode, written out by hand. With a_i = W_i x_i-1, the
    sigmoid σ as the derivative of the softplus, and V_0 the row of V that gives the distance::

        g_blocks = V_0ᵀ,    g_i-1 = W_iᵀ (g_i * σ(BETA a_i))
        d sdf / d p = Aᵀ g_0,    d sdf / d f = sum over i of F_iᵀ g_i
    """

    BETA = 100.0

    def forward(self, points: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the signed distance and its derivatives, such that a loss on the normal needs only one backward pass.

        Args:
            points: [P, 3], scaled positions.
            features: [P, C].

        Returns:
            Signed distance [P], geometry feature [P, hidden], and the derivatives of the distance by the point [P, 3]
            and by the feature [P, C].
        """
        x, preactivations = self._hidden(points, features)
        out = self.last(x)  # [P, 1 + hidden]

        gradient = self.last.weight[0].expand_as(x)  # [P, hidden], g_i of the class docstring
        gradients = [gradient]
        for layer, a in zip(reversed(self.layers), reversed(preactivations), strict=True):
            gradient = (gradient * torch.sigmoid(self.BETA * a)) @ cast(nn.Linear, layer).weight
            gradients.append(gradient)
        by_feature = torch.cat(gradients[::-1], dim=-1) @ self.feature.weight  # [P, C]
        return out[:, 0], out[:, 1:], gradient @ self.point.weight, by_feature

    def distance(self, points: Tensor, features: Tensor) -> Tensor:
        """Compute the signed distance [P] alone; arguments as in :meth:`forward`."""
        x, _ = self._hidden(points, features)
        return F.linear(x, self.last.weight[:1], self.last.bias[:1])[:, 0]

    def _hidden(self, points: Tensor, features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return x of the last layer [P, hidden], and the input a of each activation [P, hidden]."""
        added = self.feature(features).chunk(len(self.layers) + 1, dim=-1)  # each [P, hidden]
        x, preactivations = self.point(points) + added[0], []
        for layer, feature in zip(self.layers, added[1:], strict=True):
            a = layer(x)
            preactivations.append(a)
            x = F.softplus(a, beta=self.BETA) + feature
        return x, preactivations


class RGBDecoder(FeatureMLP):
    """The decoder of point and appearance feature to colour; φ is a ReLU."""

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        """Compute colours.

        Args:
            points: [P, 3], scaled positions.
            features: [P, features].

        Returns:
            [P, 3], 0 to 1.
        """
        added = self.feature(features).chunk(len(self.layers) + 1, dim=-1)  # each [P, hidden]
        x = self.point(points) + added[0]
        for layer, feature in zip(self.layers, added[1:], strict=True):
            x = F.relu(layer(x)) + feature
        return torch.sigmoid(self.last(x))


class Field(nn.Module):
    """The field of NeuS (arXiv 2106.10689) over feature volumes. Its lengths are in scene units: metres / ``scale``.

    Args:
        channels: C of the volumes.
        grid: Voxels of the volumes; ``scale`` is the farthest reach of an axis from the ego frame's origin.
        hidden: Channels of the decoders' hidden layers and of the geometry feature.
        sdf_blocks: Hidden layers of the signed-distance decoder.
        rgb_blocks: Hidden layers of the colour decoder.
    """

    def __init__(
        self,
        channels: int,
        grid: VoxelGrid,
        *,
        hidden: int = HIDDEN,
        sdf_blocks: int = SDF_BLOCKS,
        rgb_blocks: int = RGB_BLOCKS,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.scale = max(abs(edge) for axis in (grid.x, grid.y, grid.z) for edge in axis)
        self.sdf = SDFDecoder(channels, hidden, sdf_blocks, 1 + hidden)
        self.rgb = RGBDecoder(channels + 6 + hidden, hidden, rgb_blocks, 3)
        # The learned sharpness of the surface is exp(10 v) (NeuS, section 3.1), which starts at exp(3).
        self.v = nn.Parameter(torch.tensor(0.3))

    @property
    def inv_s(self) -> Tensor:
        """Learned sharpness exp(10 v) of the surface, scalar, per scene unit."""
        return torch.exp(10 * self.v).clamp(1e-6, 1e6)

    def distance(self, points: Tensor, table: Tensor, first_row: Tensor) -> Tensor:
        """Compute the signed distance [P] in scene units; arguments as in :meth:`forward`."""
        rows, weights = corners(self.grid.index_of(points), self.grid.shape, derivatives=False)
        features = F.embedding_bag(rows + first_row[:, None], table, per_sample_weights=weights[:, 0], mode="sum")
        return self.sdf.distance(points / self.scale, features)  # features: [P, C]

    def forward(
        self, points: Tensor, directions: Tensor, table: Tensor, first_row: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the field.

        With the trilinear feature f(p) of the volume, the normal is the total derivative of the signed distance::

            normal = d sdf / d p + (d f / d p)ᵀ d sdf / d f

        Args:
            points: [P, 3], metres in the ego frame.
            directions: [P, 3], unit directions of the points' rays.
            table: [G*Z*Y*X, C], the voxels of all volumes.
            first_row: [P] int64, the first row of each point's volume in ``table``.

        Returns:
            Signed distance [P] in scene units, its gradient by the scaled position [P, 3] (the normal, of any length)
            and colour [P, 3].
        """
        rows, weights = corners(self.grid.index_of(points), self.grid.shape)
        corner_features = table.index_select(0, (rows + first_row[:, None]).flatten())  # [P*8, C]
        interpolated = weights @ corner_features.unflatten(0, (len(points), 8))  # [P, 4, C]
        features = interpolated[:, 0]  # [P, C]
        sdf, geometry, by_point, by_feature = self.sdf(points / self.scale, features)
        by_index = (interpolated[:, 1:] @ by_feature[:, :, None]).squeeze(-1)  # [P, 3], by the voxel index
        normals = by_point + by_index * (self.scale / constant(self.grid.voxel, points))
        # There is no eikonal loss that keeps the gradient's length near 1. In practice it is 10 to 300, which would
        # dominate the other inputs of the colour decoder, so this gets the direction alone.
        unit_normals = normals * (normals.square().sum(-1, keepdim=True) + GRADIENT_EPS**2).rsqrt()
        appearance = torch.cat([directions, features, unit_normals, geometry], dim=-1)  # [P, C + 6 + hidden]
        return sdf, normals, self.rgb(points / self.scale, appearance)

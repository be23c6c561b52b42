"""View transform from image features to BEV: every voxel samples the features at the projection of its centre.

This is the lift of Simple-BEV (arXiv 2206.07959, section 3). It has no depth network, whose training would dominate the
differences between backbones when steps and labels are few. Unlike Simple-BEV, a voxel that several cameras see takes
the features of a single one, the one in which it is nearest to the vertical centre line of the image, not their mean.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip import Clip
from ..geometry import VoxelGrid, constant, invert, project, transform

MIN_DEPTH = 0.5
"""Least depth along the optical axis at which a camera sees a point, metres."""


class ViewTransform(nn.Module):
    """Transform the features of V cameras to BEV features."""

    def __init__(self, in_channels: int, channels: int, stride: int, grid: VoxelGrid) -> None:
        """Build the transform.

        Args:
            in_channels: Channels of the image features.
            channels: Channels per voxel, and of the BEV features.
            stride: Stride of the image features, pixels.
            grid: The voxels.
        """
        super().__init__()
        self.stride, self.grid = stride, grid
        self.reduce = nn.Conv2d(in_channels, channels, 1)
        self.merge_heights = nn.Conv2d(channels * grid.shape[0], channels, 1)

    def forward(self, features: Tensor, clip: Clip) -> Tensor:
        """Sample the features of each voxel, and merge the heights.

        Args:
            features: [B, V, C_in, h, w].
            clip: The B clips of one frame that the features come from; only its geometry is used.

        Returns:
            BEV features [B, C, Y, X]. Voxels that no camera sees have features of 0 before the heights are merged.
        """
        reduced = self.reduce(features.flatten(0, 1)).float().unflatten(0, features.shape[:2])  # [B, V, C, h, w]
        stacked = reduced.transpose(1, 2).flatten(2, 3)  # [B, C, V*h, w], the cameras one below the other
        points = voxel_projections(self.grid, clip, features.shape[-2:], self.stride).to(stacked)  # [B, Z*Y*X, 2]
        volume = F.grid_sample(stacked, points[:, None], padding_mode="zeros", align_corners=False)  # [B, C, 1, Z*Y*X]
        return self.merge_heights(volume.view(len(volume), -1, *self.grid.shape[1:]))  # [B, C*Z, Y, X] -> [B, C, Y, X]


def voxel_projections(grid: VoxelGrid, clip: Clip, size: tuple[int, ...] | torch.Size, stride: int) -> Tensor:
    """Project voxel centres into the feature maps of a clip's cameras, stacked one below the other.

    Args:
        grid: The voxels.
        clip: B clips of one frame.
        size: (h, w) of one camera's map.
        stride: Stride of the maps, pixels.

    Returns:
        Points [B, Z*Y*X, 2] in the coordinates of ``grid_sample``, -1 to 1; -3 for voxels that no camera sees.
    """
    centers = grid.centers(clip.intrinsics).flatten(0, 2)  # [N, 3] with N = Z*Y*X
    pixels, depth = project(clip.intrinsics[:, 0], transform(invert(clip.ego_from_camera[:, 0]), centers))
    xy = pixels / (constant(size[::-1], pixels) * stride)  # [B, V, N, 2], 0 to 1 in the image
    seen = (depth > MIN_DEPTH) & (xy >= 0).all(-1) & (xy < 1).all(-1)  # [B, V, N]
    offset, camera = (xy[..., 0] - 0.5).abs().masked_fill(~seen, torch.inf).min(1)  # [B, N] each
    chosen = camera[:, None, :, None].expand(-1, 1, -1, 2)  # [B, 1, N, 2]
    x, y = xy.gather(1, chosen).squeeze(1).unbind(-1)  # [B, N] each
    # Stay half a feature away from the border of a map: beyond, interpolation would mix in the next camera's map.
    inset = 0.5 / constant(size[::-1], x)
    x = x.clamp(inset[0], 1 - inset[0])
    y = (camera + y.clamp(inset[1], 1 - inset[1])) / clip.num_cameras
    points = torch.stack([x, y], dim=-1) * 2 - 1  # [B, N, 2]
    return points.masked_fill(offset.isinf()[..., None], -3.0)

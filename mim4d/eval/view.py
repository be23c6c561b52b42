"""From image features to BEV: every voxel samples the features at the projection of its centre.

Simple-BEV (arXiv 2206.07959, section 3). There is no depth that a head would have to learn first: in few steps and with
few labels that would drown what a backbone is worth. Unlike there, a voxel that several cameras see takes the features
of the one that has it nearest the middle of its image, not their mean.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip import Clip
from ..geometry import VoxelGrid, constant, invert, project, transform

NEAREST = 0.5
"""Depth along the optical axis from which on a camera sees a point, metres."""


class ViewTransform(nn.Module):
    """Map the features of V cameras to BEV features."""

    def __init__(self, in_channels: int, channels: int, stride: int, grid: VoxelGrid) -> None:
        """Take maps of ``in_channels`` and ``stride`` pixels; ``channels`` a voxel and a cell of the map."""
        super().__init__()
        self.stride, self.grid = stride, grid
        self.reduce = nn.Conv2d(in_channels, channels, 1)
        self.join = nn.Conv2d(channels * grid.shape[0], channels, 1)

    def forward(self, features: Tensor, clip: Clip) -> Tensor:
        """Sample, and join the heights.

        Args:
            features: [B, V, C_in, h, w].
            clip: The B clips of one frame that they came from, for its geometry.

        Returns:
            [B, C, Y, X]; before the heights are joined, voxels that no camera sees are 0.
        """
        reduced = self.reduce(features.flatten(0, 1)).float().unflatten(0, features.shape[:2])
        stacked = reduced.transpose(1, 2).flatten(2, 3)  # cameras one below the other: [B, C, V*h, w]
        places = voxel_places(self.grid, clip, features.shape[-2:], self.stride).to(stacked)
        volume = F.grid_sample(stacked, places[:, None], padding_mode="zeros", align_corners=False)
        return self.join(volume.view(len(volume), -1, *self.grid.shape[1:]))  # height to channels: [B, C*Z, Y, X]


def voxel_places(grid: VoxelGrid, clip: Clip, size: tuple[int, ...] | torch.Size, stride: int) -> Tensor:
    """Return where each voxel samples the maps of a clip's cameras, stacked one below the other.

    Args:
        grid: The voxels.
        clip: B clips of one frame.
        size: (h, w) of a camera's map.
        stride: Of the maps, pixels.

    Returns:
        [B, Z*Y*X, 2] in the coordinates of ``grid_sample``; far outside for voxels that no camera sees.
    """
    centers = grid.centers(clip.intrinsics).flatten(0, 2)
    pixels, depth = project(clip.intrinsics[:, 0], transform(invert(clip.ego_from_camera[:, 0]), centers))
    across_down = pixels / (constant(size[::-1], pixels) * stride)  # [B, V, N, 2], 0 to 1 in the image
    seen = (depth > NEAREST) & (across_down >= 0).all(-1) & (across_down < 1).all(-1)
    off, camera = (across_down[..., 0] - 0.5).abs().masked_fill(~seen, torch.inf).min(1)  # [B, N] each
    chosen = camera[:, None, :, None].expand(-1, 1, -1, 2)
    across, down = across_down.gather(1, chosen).squeeze(1).unbind(-1)
    # A map ends half a feature before the image does: beyond, the last feature counts, and not the next camera's.
    inset = 0.5 / constant(size[::-1], across)
    across = across.clamp(inset[0], 1 - inset[0])
    down = (camera + down.clamp(inset[1], 1 - inset[1])) / clip.num_cameras
    places = torch.stack([across, down], dim=-1) * 2 - 1
    return places.masked_fill(off.isinf()[..., None], -3.0)

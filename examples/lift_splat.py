"""Train a BEV model in plain PyTorch on any backbone: a small Lift, Splat, Shoot (arXiv 2008.05711).

    python examples/lift_splat.py                                          # random weights
    python examples/lift_splat.py --backbone local-dir:runs/demo/encoder   # or hf-hub:org/name
    python examples/lift_splat.py --dataroot /data/nuscenes --version v1.0-trainval --split train

The backbone needs only the two marked lines. The model learns for a few steps where the LiDAR hit something between 0.5
and 3 m above the ground, a label that any recording has.
"""

from typing import Any

import timm
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import mim4d  # registers the mim4d_* architectures with timm
from mim4d.clip import Clip
from mim4d.data import DataConfig, NuScenesClips
from mim4d.flags import report_user_errors
from mim4d.roots import default_to_synthetic

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
STRIDE = 16
DEPTHS = torch.arange(2.0, 50.0, 1.0)
"""Depths along the camera's axis over which a pixel's feature is distributed, metres."""
REACH, CELL = 48.0, 1.0
"""The map covers +-REACH metres around the car in cells of CELL metres."""


class LiftSplat(nn.Module):
    """A model from multi-camera images to a map around the car."""

    def __init__(self, backbone: str, channels: int = 32) -> None:
        super().__init__()
        pretrained = ":" in backbone  # local-dir:... and hf-hub:... have weights
        made: Any = timm.create_model(backbone, pretrained=pretrained, features_only=True, out_indices=(-2, -1))  # one
        fine, coarse = made.feature_info.channels()  # two
        self.backbone: Any = made
        self.channels = channels
        self.neck = nn.Sequential(nn.Conv2d(fine + coarse, 128, 3, padding=1), nn.ReLU())
        self.depth_and_context = nn.Conv2d(128, len(DEPTHS) + channels, 1)
        self.head = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 1, 1),
        )

    def forward(self, images: Tensor, intrinsics: Tensor, ego_from_camera: Tensor) -> Tensor:
        """Score the cells of the map.

        Args:
            images: [B, V, 3, H, W], normalised.
            intrinsics: [B, V, 3, 3], pixels.
            ego_from_camera: [B, V, 4, 4], metres.

        Returns:
            [B, X, Y] logits, x forward and y left, both from -REACH to REACH.
        """
        b, v, _, height, width = images.shape
        fine, coarse = self.backbone(images.flatten(0, 1))
        features = self.neck(torch.cat([fine, F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear")], dim=1))
        depth, context = self.depth_and_context(features).split([len(DEPTHS), self.channels], dim=1)
        lifted = depth.softmax(1)[:, None] * context[:, :, None]  # [B*V, C, D, h, w]

        cells = self._cells(intrinsics, ego_from_camera, height // STRIDE, width // STRIDE)  # [B, V*D*h*w]
        size = round(2 * REACH / CELL)
        bev = lifted.new_zeros(b, size * size + 1, self.channels)  # one more cell for everything outside
        lifted = lifted.unflatten(0, (b, v)).movedim(2, -1).flatten(1, 4)  # [B, V*D*h*w, C]
        bev = bev.scatter_add(1, cells[..., None].expand_as(lifted), lifted)
        return self.head(bev[:, :-1].mT.unflatten(2, (size, size))).squeeze(1)

    def _cells(self, intrinsics: Tensor, ego_from_camera: Tensor, h: int, w: int) -> Tensor:
        """Return the cell of each feature pixel at each depth [B, V*D*h*w]; the last cell stands for outside."""
        device = intrinsics.device
        rows = (torch.arange(h, device=device) + 0.5) * STRIDE
        columns = (torch.arange(w, device=device) + 0.5) * STRIDE
        depth, row, column = torch.meshgrid(DEPTHS.to(device), rows, columns, indexing="ij")
        pixels = torch.stack([column * depth, row * depth, depth], dim=-1).flatten(0, 2)  # [D*h*w, 3]
        camera = pixels @ intrinsics.inverse().mT  # [B, V, D*h*w, 3]
        ego = camera @ ego_from_camera[..., :3, :3].mT + ego_from_camera[..., None, :3, 3]
        size = round(2 * REACH / CELL)
        place = ((ego[..., :2] + REACH) / CELL).floor().long()
        inside = ((place >= 0) & (place < size)).all(-1)
        return torch.where(inside, place[..., 0] * size + place[..., 1], size * size).flatten(1)


def batch_of(clip: Clip) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Return the model's inputs for the current frame, and the cells [B, X, Y] in which the LiDAR hit something."""
    images = ((clip.images[:, -1].float() / 255).movedim(2, -1) - MEAN) / STD
    points = clip.points[:, -1][clip.points_valid[:, -1]]
    points = points[(points[:, 2] > 0.5) & (points[:, 2] < 3) & (points[:, :2].abs() < REACH).all(1)]
    place = ((points[:, :2] + REACH) / CELL).long()
    size = round(2 * REACH / CELL)
    target = torch.zeros(1, size, size)
    target[0, place[:, 0], place[:, 1]] = 1
    return (images.movedim(-1, 2), clip.intrinsics[:, -1], clip.ego_from_camera[:, -1]), target


def main(
    data: tyro.conf.OmitArgPrefixes[DataConfig] = DataConfig(  # noqa: B008  # frozen
        version="v1.0-mini", split="mini_train", frames=1, image_size=(192, 384)
    ),
    backbone: str = "mim4d_convnext_atto",
    steps: int = 20,
) -> None:
    """Train for a few steps.

    Args:
        data: Data to read; without --dataroot, the demo's world or a tiny one.
        backbone: A timm name, local-dir:FOLDER or hf-hub:ORG/NAME.
        steps: Number of AdamW steps, one clip each.
    """
    torch.manual_seed(0)
    clips = NuScenesClips(default_to_synthetic(data))
    model = LiftSplat(backbone)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    print(f"mim4d {mim4d.__version__}: {backbone} has {model.backbone.feature_info.channels()} channels")
    for step in range(steps):
        inputs, target = batch_of(clips[step % len(clips)])
        loss = F.binary_cross_entropy_with_logits(model(*inputs), target, pos_weight=torch.tensor(4.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.3f}")


if __name__ == "__main__":
    with report_user_errors():
        tyro.cli(main)

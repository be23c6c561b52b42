"""Build a feature pyramid on any backbone with timm and torchvision.

    python examples/feature_pyramid.py --backbone mim4d_convnext_small      # random weights
    python examples/feature_pyramid.py --backbone local-dir:runs/demo/encoder
    python examples/feature_pyramid.py --backbone hf-hub:org/name

Exported encoders use timm's own architecture names, so the last two commands need timm only, not this package.
"""

from typing import Any

import timm
import torch
import tyro
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

import mim4d  # noqa: F401  # registers the mim4d_* architectures


class Pyramid(nn.Module):
    """A feature pyramid with equally wide maps at strides 8, 16 and 32."""

    def __init__(self, backbone: str, channels: int = 64) -> None:
        super().__init__()
        pretrained = ":" in backbone  # local-dir:... and hf-hub:... have weights
        made: Any = timm.create_model(backbone, pretrained=pretrained, features_only=True, out_indices=(-3, -2, -1))
        self.backbone: Any = made
        self.fpn = FeaturePyramidNetwork(made.feature_info.channels(), channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Turn images [N, 3, H, W] into maps [N, C, H/s, W/s], by stride s."""
        strides = [str(stride) for stride in self.backbone.feature_info.reduction()]
        return self.fpn(dict(zip(strides, self.backbone(images), strict=True)))


def channels_and_strides(backbone: str) -> tuple[list[int], list[int]]:
    """Return a backbone's channels and strides; on the meta device this needs no memory and no weights."""
    with torch.device("meta"):
        model: Any = timm.create_model(backbone, features_only=True, out_indices=(-3, -2, -1))
    return model.feature_info.channels(), model.feature_info.reduction()


def main(backbone: str = "mim4d_convnext_atto") -> None:
    """Print the shapes of the pyramid.

    Args:
        backbone: A timm name, local-dir:FOLDER or hf-hub:ORG/NAME.
    """
    print("channels {}, strides {}".format(*channels_and_strides(backbone)))
    for stride, features in Pyramid(backbone)(torch.randn(1, 3, 256, 704)).items():
        print(f"stride {stride}: {list(features.shape)}")


if __name__ == "__main__":
    tyro.cli(main)

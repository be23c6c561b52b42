"""A feature pyramid on a backbone of your choice, in plain timm and torchvision.

    python examples/feature_pyramid.py --backbone mim4d_convnext_small      # random weights
    python examples/feature_pyramid.py --backbone local-dir:runs/demo/encoder
    python examples/feature_pyramid.py --backbone hf-hub:org/name

Exported encoders name timm's own architectures, so the last two need timm alone, not this package.
"""

from typing import Any

import timm
import torch
import tyro
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

import mim4d  # noqa: F401  # registers the mim4d_* architectures


class Pyramid(nn.Module):
    """Maps of one width at strides 8, 16 and 32."""

    def __init__(self, backbone: str, channels: int = 64) -> None:
        super().__init__()
        pretrained = ":" in backbone  # local-dir:... and hf-hub:... have weights
        made: Any = timm.create_model(backbone, pretrained=pretrained, features_only=True, out_indices=(-3, -2, -1))
        self.backbone: Any = made
        self.fpn = FeaturePyramidNetwork(made.feature_info.channels(), channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Take images [N, 3, H, W], return maps [N, C, H/s, W/s] by their stride s."""
        strides = [str(stride) for stride in self.backbone.feature_info.reduction()]
        return self.fpn(dict(zip(strides, self.backbone(images), strict=True)))


def channels_and_strides(backbone: str) -> tuple[list[int], list[int]]:
    """What a backbone will give, asked before it is built: on the meta device it takes no memory and no weights."""
    with torch.device("meta"):
        model: Any = timm.create_model(backbone, features_only=True, out_indices=(-3, -2, -1))
    return model.feature_info.channels(), model.feature_info.reduction()


def main(backbone: str = "mim4d_convnext_atto") -> None:
    """Print what comes out.

    Args:
        backbone: A name in timm, local-dir:FOLDER or hf-hub:ORG/NAME.
    """
    print("channels {}, strides {}".format(*channels_and_strides(backbone)))
    for stride, features in Pyramid(backbone)(torch.randn(1, 3, 256, 704)).items():
        print(f"stride {stride}: {list(features.shape)}")


if __name__ == "__main__":
    tyro.cli(main)

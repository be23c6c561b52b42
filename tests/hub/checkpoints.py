"""OpenMMLab checkpoints with random weights, laid out as the MIM4D and UniPAD releases are."""

from pathlib import Path

import torch

SIZES = {"atto": ((2, 2, 6, 2), (40, 80, 160, 320)), "small": ((3, 3, 27, 3), (96, 192, 384, 768))}


def backbone(size: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A ConvNeXt's weights by the release's names; layer scale is as large as a trained one's."""
    depths, widths = SIZES[size]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        before, kernel = (3, 4) if i == 0 else (widths[i - 1], 2)
        convolution, norm = (0, 1) if i == 0 else (1, 0)
        shapes |= {
            f"downsample_layers.{i}.{convolution}.weight": (width, before, kernel, kernel),
            f"downsample_layers.{i}.{convolution}.bias": (width,),
            f"downsample_layers.{i}.{norm}.weight": (width if i == 0 else before,),
            f"downsample_layers.{i}.{norm}.bias": (width if i == 0 else before,),
        }
        for j in range(depth):
            shapes |= {
                f"stages.{i}.{j}.gamma": (width,),
                f"stages.{i}.{j}.dwconv.weight": (width, 1, 7, 7),
                f"stages.{i}.{j}.dwconv.bias": (width,),
                f"stages.{i}.{j}.norm.weight": (width,),
                f"stages.{i}.{j}.norm.bias": (width,),
                f"stages.{i}.{j}.pwconv1.weight": (4 * width, width),
                f"stages.{i}.{j}.pwconv1.bias": (4 * width,),
                f"stages.{i}.{j}.pwconv2.weight": (width, 4 * width),
                f"stages.{i}.{j}.pwconv2.bias": (width,),
            }
    shapes |= {"norm3.weight": (widths[-1],), "norm3.bias": (widths[-1],)}
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        values = torch.randn(shape, generator=generator)
        if name.endswith("gamma"):
            return 0.1 + 0.05 * values
        if len(shape) == 1:  # norms' weights about 1, all biases small
            return 0.1 * values + (1.0 if name.endswith("weight") and "conv" not in name else 0.0)
        return values / (values[0].numel() ** 0.5)

    return {name: draw(name, shape) for name, shape in shapes.items()}


def detector(size: str, seed: int = 0) -> dict:
    """A whole checkpoint: the backbone within a detector, with what else a training run leaves in one."""
    others = {
        "img_neck.fpn_convs.0.conv.weight": torch.ones(2, 2),
        "depth_net.0.weight": torch.ones(3),
        "depth_net.0.bias": torch.ones(3),
        "pts_bbox_head.render.sdf.0.weight": torch.ones(4),
        "img_backbone.mtoken3": torch.zeros(1, 8, 1, 1),
    }
    weights = {f"img_backbone.{name}": tensor for name, tensor in backbone(size, seed).items()}
    meta = {"epoch": 12, "iter": 42192, "mmcv_version": "1.7.1", "config": "model = dict(...)", "CLASSES": ["car"]}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 4e-4, "params": [0]}]}
    return {"meta": meta, "state_dict": {**weights, **others}, "optimizer": optimizer}


def save(checkpoint: dict, path: Path) -> Path:
    torch.save(checkpoint, path)
    return path

"""The optimiser: parameter groups, learning rates and their schedule."""

import math
from dataclasses import dataclass

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

OFFSETS_SCALE = 0.1
"""Learning rate of the sampling offsets of deformable attention, as a fraction of lr (Deformable DETR, arXiv
2010.04159, section 5). At the full rate, small steps in the same direction soon add up to metres."""

WARMUP_START = 1 / 3
"""Learning rate at the first step of the warm-up, as a fraction of its peak (MIM4D's published config)."""
FINAL = 1e-3
"""Learning rate at the last step, as a fraction of its peak (MIM4D's published config)."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 4e-4
    """Peak learning rate. The encoder has backbone_scale of it, the offsets of deformable attention a tenth."""
    backbone_scale: float | None = None
    """Learning rate of the encoder, as a fraction of lr. None: 0.3 with pretrained weights (--init), else 1."""
    stem_scale: float | None = None
    """Learning rate of the encoder's stem, as a fraction of that of its last layer. None: 0.01 with pretrained weights,
    else 1."""
    # Layer by layer, the rate grows by the same factor (layer-wise decay). timm groups parameters into layers: the
    # stem, then blocks.
    weight_decay: float = 0.01
    """Decoupled weight decay; norms, biases, layer scales and learned queries have none."""
    clip_norm: float = 35.0
    """Largest L2 norm of the whole gradient; a longer one is scaled down."""
    warmup_steps: int = 500
    """Steps over which the learning rate grows linearly to its peak."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights, which is evaluated and exported instead. 0: no average."""
    # At step n the decay is at most 1 - n^(-2/3), so that the average soon forgets the first weights.

    def __post_init__(self) -> None:
        bounds = {
            "lr": (self.lr, 0, math.inf),
            "backbone_scale": (self.backbone_scale or 0, 0, math.inf),
            "stem_scale": (1 if self.stem_scale is None else self.stem_scale, 1e-6, 1),
            "weight_decay": (self.weight_decay, 0, math.inf),
            "clip_norm": (self.clip_norm, 1e-9, math.inf),
            "warmup_steps": (self.warmup_steps, 0, math.inf),
            "accumulate": (self.accumulate, 1, 65536),
            "ema_decay": (self.ema_decay, 0, 0.999999),
        }
        for name, (value, low, high) in bounds.items():
            if not low <= value <= high:
                raise ValueError(f"optim.{name} = {value} must lie in {low:g} .. {high:g}")


def lr_scale(step: int, steps: int, config: OptimConfig) -> float:
    """Return the learning rate at a step, as a fraction of its peak.

    It depends on the step only, so a checkpoint need not store it.

    Args:
        step: Number of the step, from 1.
        steps: Number of the last step.
        config: The optimiser's settings.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - 1) / max(1, steps - 1))))
    scale = FINAL + (1 - FINAL) * cosine
    if step <= config.warmup_steps:
        scale *= WARMUP_START + (1 - WARMUP_START) * (step - 1) / config.warmup_steps
    return scale


def _layer_scales(encoder: nn.Module, stem_scale: float | None) -> dict[nn.Parameter, float]:
    """Return the rate of each trained parameter of an encoder, as a fraction of that of its deepest trained layer."""
    if stem_scale is None or stem_scale == 1:
        return {}
    trained = {parameter for parameter in encoder.parameters() if parameter.requires_grad}
    encoder.requires_grad_(True)  # timm leaves out what does not train, but frozen layers must not change rates
    groups = param_groups_layer_decay(encoder, layer_decay=0.5)  # lr_scale is 1 of the last layer, 0.5 of the next, ...
    height = {parameter: -math.log2(group["lr_scale"]) for group in groups for parameter in group["params"]}
    for parameter in encoder.parameters():
        parameter.requires_grad_(parameter in trained)
    deepest = min((height[parameter] for parameter in trained), default=0.0)  # a head that is not trained has a layer
    whole = max(1.0, max(height.values()) - deepest)
    return {parameter: stem_scale ** ((height[parameter] - deepest) / whole) for parameter in trained}


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Build AdamW for the trained parameters of ``model``, with one group per learning rate and weight decay.

    The ``peak`` of a group is its learning rate at the peak of the schedule.

    Args:
        model: The model; its backbone is the module ``encoder``.
        config: The optimiser's settings.
    """
    backbone_scale = 1.0 if config.backbone_scale is None else config.backbone_scale
    layer_scales = _layer_scales(model.get_submodule("encoder"), config.stem_scale)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Matrices and kernels. Queries and position embeddings have no decay; their names do not end with weight.
            decayed = parameter.ndim > 1 and name.endswith(".weight")
            scale = 1.0
            if name.startswith("encoder."):
                scale = backbone_scale * layer_scales.get(parameter, 1.0)
            elif ".offsets." in name:
                scale = OFFSETS_SCALE
            groups.setdefault((scale, decayed), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak": config.lr * scale,
                "weight_decay": config.weight_decay if decayed else 0.0,
            }
            for (scale, decayed), parameters in groups.items()
        ],
        lr=config.lr,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Set the learning rate of every group to ``scale`` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * scale

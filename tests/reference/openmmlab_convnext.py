"""ConvNeXt computed from an OpenMMLab checkpoint's own names, as the MIM4D and UniPAD releases lay it out.

Float64 from the formulas of ConvNeXt (arXiv 2201.03545, figure 4): no convolution of a library is used, every one is a
sum over shifted or folded pixels. Names: ``downsample_layers.{i}.{0|1}``, ``stages.{i}.{j}.{dwconv, norm, pwconv1,
pwconv2, gamma}``, ``norm3``.
"""

import math

import torch

EPS = 1e-6


def openmmlab_convnext(state_dict, images, prefix="img_backbone."):
    """The four stages' maps, and the last one after ``norm3``, [N, C, H/s, W/s] each.

    Args:
        state_dict: name -> tensor, of the whole checkpoint.
        images: [N, 3, H, W].
        prefix: What the backbone's names begin with.
    """
    weights = {k.removeprefix(prefix): v.double() for k, v in state_dict.items() if k.startswith(prefix)}
    x = images.double().permute(0, 2, 3, 1)  # channels last: [N, H, W, C]
    maps = []
    for stage in range(4):
        name = f"downsample_layers.{stage}"
        if stage == 0:
            x = layer_norm(fold(x, weights, f"{name}.0"), weights, f"{name}.1")
        else:
            x = fold(layer_norm(x, weights, f"{name}.0"), weights, f"{name}.1")
        number = 0
        while f"stages.{stage}.{number}.gamma" in weights:
            x = block(x, weights, f"stages.{stage}.{number}")
            number += 1
        maps.append(x.permute(0, 3, 1, 2))
    return maps, layer_norm(x, weights, "norm3").permute(0, 3, 1, 2)


def fold(x, weights, name):
    """A convolution whose stride is its kernel: each output sees a patch of its own."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]  # [C', C, k, k]
    n, height, width, channels = x.shape
    k = weight.shape[-1]
    patches = x.reshape(n, height // k, k, width // k, k, channels).permute(0, 1, 3, 5, 2, 4)
    return patches.reshape(n, height // k, width // k, channels * k * k) @ weight.flatten(1).T + bias


def block(x, weights, name):
    """Depthwise 7x7, norm, two linear layers with GELU between, layer scale, shortcut."""
    y = layer_norm(
        depthwise(x, weights[f"{name}.dwconv.weight"], weights[f"{name}.dwconv.bias"]), weights, f"{name}.norm"
    )
    y = y @ weights[f"{name}.pwconv1.weight"].T + weights[f"{name}.pwconv1.bias"]
    y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
    y = y @ weights[f"{name}.pwconv2.weight"].T + weights[f"{name}.pwconv2.bias"]
    return x + weights[f"{name}.gamma"] * y


def depthwise(x, weight, bias):
    """Each channel by its own kernel, zeros beyond the border: a sum of shifted images. weight [C, 1, k, k]."""
    n, height, width, channels = x.shape
    k = weight.shape[-1]
    r = k // 2
    padded = x.new_zeros(n, height + 2 * r, width + 2 * r, channels)
    padded[:, r : r + height, r : r + width] = x
    y = bias.expand_as(x)
    for i in range(k):
        for j in range(k):
            y = y + weight[:, 0, i, j] * padded[:, i : i + height, j : j + width]
    return y


def layer_norm(x, weights, name):
    """Over the channels of each site."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + EPS).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]

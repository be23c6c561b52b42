"""ConvNeXt on sparse sites: a dictionary of the sites that exist, and no others (submanifold convolution).

Float64 from the formulas of ConvNeXt (arXiv 2201.03545, figure 4), ConvNeXt-V2 (arXiv 2301.00808, section 3.3) and
SparK (arXiv 2301.03580, section 3.1); in torch only for its autograd. Parameters come as timm's state dict.
"""

import math

import torch

EPS = 1e-6


def masked_convnext(parameters, images, visible, patch=32):
    """The four stages' maps [N, C, H/s, W/s], zero where nothing exists.

    Args:
        parameters: name -> float64 tensor.
        images: [N, 3, H, W] float64.
        visible: [N, H/patch, W/patch] bool.
        patch: Side of a patch, pixels.
    """
    stride = parameters["stem.0.weight"].shape[-1]
    sites, features = [], []
    for n, top, left in visible.nonzero().tolist():
        for row in range(top * patch // stride, (top + 1) * patch // stride):
            for column in range(left * patch // stride, (left + 1) * patch // stride):
                pixels = images[n, :, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
                sites.append((n, row, column))
                features.append((parameters["stem.0.weight"] * pixels).sum((1, 2, 3)) + parameters["stem.0.bias"])
    if features:
        x = layer_norm(torch.stack(features), parameters, "stem.1")
    else:
        x = images.new_zeros(0, len(parameters["stem.0.bias"]))

    maps = []
    for stage in range(4):
        name = f"stages.{stage}"
        if f"{name}.downsample.1.weight" in parameters:
            x = layer_norm(x, parameters, f"{name}.downsample.0")
            sites, x = halve(
                sites, x, parameters[f"{name}.downsample.1.weight"], parameters[f"{name}.downsample.1.bias"]
            )
            stride *= 2
        number = 0
        while f"{name}.blocks.{number}.norm.weight" in parameters:
            x = block(sites, x, parameters, f"{name}.blocks.{number}")
            number += 1
        maps.append(scatter(sites, x, (len(images), images.shape[2] // stride, images.shape[3] // stride)))
    return maps


def block(sites, x, parameters, name):
    """Depthwise convolution, norm, two linear layers with GELU between, layer scale, shortcut; x [M, C].

    V2 has a response norm after the GELU in place of the layer scale.
    """
    y = depthwise(sites, x, parameters[f"{name}.conv_dw.weight"], parameters[f"{name}.conv_dw.bias"])
    y = layer_norm(y, parameters, f"{name}.norm")
    y = y @ parameters[f"{name}.mlp.fc1.weight"].flatten(1).T + parameters[f"{name}.mlp.fc1.bias"]
    y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
    if f"{name}.mlp.grn.weight" in parameters:
        y = response_norm(sites, y, parameters[f"{name}.mlp.grn.weight"], parameters[f"{name}.mlp.grn.bias"])
    y = y @ parameters[f"{name}.mlp.fc2.weight"].flatten(1).T + parameters[f"{name}.mlp.fc2.bias"]
    return x + (parameters[f"{name}.gamma"] * y if f"{name}.gamma" in parameters else y)


def response_norm(sites, x, weight, bias):
    """Scale each channel by its norm over the sites of an image, relative to the mean over channels; x [M, C]."""
    y = torch.zeros_like(x)
    for n in {n for n, _, _ in sites}:
        own = torch.tensor([k for k, site in enumerate(sites) if site[0] == n])
        length = (x[own] ** 2).sum(0).sqrt()
        y = y.index_add(0, own, x[own] * (length / (length.mean() + EPS)))
    return x + weight * y + bias


def depthwise(sites, x, weight, bias):
    """Each site sums, channel by channel, over those of its 7x7 neighbours that exist; weight [C, 1, 7, 7]."""
    number_of = {site: i for i, site in enumerate(sites)}
    size = weight.shape[-1]
    y = bias.expand_as(x)
    for i in range(size):
        for j in range(size):
            to, source = [], []
            for k, (n, row, column) in enumerate(sites):
                neighbour = number_of.get((n, row + i - size // 2, column + j - size // 2))
                if neighbour is not None:
                    to.append(k)
                    source.append(neighbour)
            y = y.index_add(0, torch.tensor(to, dtype=torch.long), weight[:, 0, i, j] * x[source])
    return y


def halve(sites, x, weight, bias):
    """The 2x2 convolution of stride 2: a site exists where its four children do; weight [C', C, 2, 2]."""
    number_of = {site: i for i, site in enumerate(sites)}
    parents = sorted({(n, row // 2, column // 2) for n, row, column in sites})
    y = bias.expand(len(parents), -1)
    for i in range(2):
        for j in range(2):
            children = [number_of[n, 2 * row + i, 2 * column + j] for n, row, column in parents]
            y = y + x[children] @ weight[:, :, i, j].T
    return parents, y


def layer_norm(x, parameters, name):
    """Layer norm over the channels of each site; x [M, C]."""
    mean = x.mean(1, keepdim=True)
    variance = ((x - mean) ** 2).mean(1, keepdim=True)
    return (x - mean) / (variance + EPS).sqrt() * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def scatter(sites, x, shape):
    """Sites [M, C] into a map [N, C, H, W] of zeros."""
    n, height, width = shape
    rows = torch.tensor([(a * height + b) * width + c for a, b, c in sites], dtype=torch.long)
    flat = x.new_zeros(n * height * width, x.shape[1]).index_add(0, rows, x)
    return flat.view(n, height, width, -1).permute(0, 3, 1, 2)

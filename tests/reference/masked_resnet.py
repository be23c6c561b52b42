"""ResNet on sparse sites: a dictionary of the sites that exist, and no others (submanifold convolution).

Float64 from the formulas of ResNet (arXiv 1512.03385, figure 5 and table 1), BatchNorm (arXiv 1502.03167, algorithm 1)
and SparK (arXiv 2301.03580, section 3.1); in torch only for its autograd. Parameters and running statistics come as a
state dict with timm's names.
"""

import torch

EPS = 1e-5
MOMENTUM = 0.1


class MaskedResNet:
    """``state`` is left as it was; what training makes of the running statistics is in ``statistics`` afterwards.

    Args:
        state: name -> float64 tensor.
        visible: [N, H/32, W/32] bool.
        training: Whether norms take their statistics from the sites.
    """

    def __init__(self, state, visible, training):
        self.state, self.visible, self.training = state, visible, training
        self.statistics = {}

    def __call__(self, images):
        """The four stages' maps [N, C, H/s, W/s], zero where nothing exists; images [N, 3, H, W] float64."""
        sites = self.sites(1)
        x = torch.stack([images[n, :, i, j] for n, i, j in sites]) if sites else images.new_zeros(0, images.shape[1])
        x = self.norm(self.convolve(x, 1, 2, "conv1"), "bn1").relu()
        x = self.pool(x, 2, 4)
        maps, stride = [], 4
        for stage in range(1, 5):
            number = 0
            while f"layer{stage}.{number}.conv1.weight" in self.state:
                halves = stage > 1 and number == 0
                x = self.block(x, stride, stride * (1 + halves), f"layer{stage}.{number}")
                stride *= 1 + halves
                number += 1
            maps.append(self.scatter(x, stride, images))
        return maps

    def sites(self, stride):
        """(n, row, column) of all that exist on the grid of a stride, in reading order."""
        n, height, width = (self.visible.shape[0], *(side * 32 // stride for side in self.visible.shape[1:]))
        return [
            (a, i, j)
            for a in range(n)
            for i in range(height)
            for j in range(width)
            if self.visible[a, i * stride // 32, j * stride // 32]
        ]

    def block(self, x, before, after, name):
        """Two 3x3 convolutions, the first strided; or 1x1, 3x3 strided, 1x1. x [M, C] on the grid of ``before``."""
        if f"{name}.conv3.weight" in self.state:
            y = self.norm(self.convolve(x, before, before, f"{name}.conv1"), f"{name}.bn1").relu()
            y = self.norm(self.convolve(y, before, after, f"{name}.conv2"), f"{name}.bn2").relu()
            y = self.norm(self.convolve(y, after, after, f"{name}.conv3"), f"{name}.bn3")
        else:
            y = self.norm(self.convolve(x, before, after, f"{name}.conv1"), f"{name}.bn1").relu()
            y = self.norm(self.convolve(y, after, after, f"{name}.conv2"), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in self.state:
            x = self.norm(self.convolve(x, before, after, f"{name}.downsample.0"), f"{name}.downsample.1")
        return (x + y).relu()

    def convolve(self, x, before, after, name):
        """Each site sums over those of its neighbours that exist; no bias."""
        weight = self.state[f"{name}.weight"]  # [C', C, k, k]
        k, step = weight.shape[-1], after // before
        number_of = {site: i for i, site in enumerate(self.sites(before))}
        sites = self.sites(after)
        y = x.new_zeros(len(sites), len(weight))
        for i in range(k):
            for j in range(k):
                to, source = [], []
                for m, (n, row, column) in enumerate(sites):
                    neighbour = number_of.get((n, row * step + i - k // 2, column * step + j - k // 2))
                    if neighbour is not None:
                        to.append(m)
                        source.append(neighbour)
                y = y.index_add(0, torch.tensor(to, dtype=torch.long), x[source] @ weight[:, :, i, j].T)
        return y

    def pool(self, x, before, after):
        """The largest of the 3x3 neighbours that exist."""
        number_of = {site: i for i, site in enumerate(self.sites(before))}
        step, largest = after // before, []
        for n, row, column in self.sites(after):
            near = [(n, row * step + i, column * step + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            largest.append(x[[number_of[site] for site in near if site in number_of]].max(0).values)
        return torch.stack(largest) if largest else x[:0]

    def norm(self, x, name):
        """Over all sites, channel by channel; with fewer than two there is no variance, and the running one serves."""
        mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        if self.training and len(x) > 1:
            own_mean = x.mean(0)
            squares = ((x - own_mean) ** 2).sum(0)
            unbiased = squares / (len(x) - 1)
            self.statistics[f"{name}.running_mean"] = (1 - MOMENTUM) * mean + MOMENTUM * own_mean.detach()
            self.statistics[f"{name}.running_var"] = (1 - MOMENTUM) * variance + MOMENTUM * unbiased.detach()
            mean, variance = own_mean, squares / len(x)
        return (x - mean) / (variance + EPS).sqrt() * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def scatter(self, x, stride, images):
        """Sites [M, C] into a map [N, C, H, W] of zeros."""
        n, height, width = len(images), images.shape[2] // stride, images.shape[3] // stride
        rows = torch.tensor([(a * height + i) * width + j for a, i, j in self.sites(stride)], dtype=torch.long)
        flat = x.new_zeros(n * height * width, x.shape[1]).index_add(0, rows, x)
        return flat.view(n, height, width, -1).permute(0, 3, 1, 2)

"""3. The neck: fill the hidden sites with mask tokens and join several stages at one stride."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bounds import check_bounds


def group_norm(channels: int) -> nn.GroupNorm:
    """Make a GroupNorm with 16 channels per group: its statistics do not depend on the other items of a batch.

    >>> group_norm(64).num_groups
    4
    """
    return nn.GroupNorm(max(1, channels // 16), channels)


@dataclass(frozen=True, kw_only=True)
class NeckConfig:
    """Settings of the neck."""

    stages: tuple[int, ...] = (2, 3)
    """Encoder stages to join, 0 to 3, ending with 3; the output has the stride of the first: 4, 8, 16 or 32 px."""
    # At a stride of 32 px the lift misses most distant voxels.
    channels: int = 256
    """Width C of the output."""

    def __post_init__(self) -> None:
        if tuple(sorted(set(self.stages))) != self.stages or self.stages[-1:] != (3,) or self.stages[0] < 0:
            stages = " ".join(map(str, self.stages))
            raise ValueError(f"neck.stages = {stages} must rise within 0 .. 3 and end with 3: all stages are trained")
        check_bounds(self, {"channels": (1, 4096)}, "neck.")


class Neck(nn.Module):
    """A feature pyramid (arXiv 1612.03144) with one output level, over the maps of a masked encoder.

    Args:
        config: Stages and width.
        channels: C_i of the encoder's maps, coarsest last. The coarsest is stage 3; stages that an encoder with fewer
            than four maps does not have are left out.
        strides: Strides s_i of the same maps, pixels.
    """

    def __init__(self, config: NeckConfig, channels: Sequence[int], strides: Sequence[int] = (4, 8, 16, 32)) -> None:
        super().__init__()
        missing = 4 - len(channels)
        self.indices = tuple(stage - missing for stage in config.stages if stage >= missing)
        self.stride = strides[self.indices[0]]
        self.laterals = nn.ModuleList(nn.Conv2d(channels[i], config.channels, 1) for i in self.indices)
        # SparK's "densifying" (arXiv 2301.03580, section 3.2): each stage has one learned vector for its hidden sites.
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(config.channels)) for _ in self.indices)
        for token in self.mask_tokens:
            nn.init.trunc_normal_(token, std=0.02)
        self.output = nn.Sequential(
            nn.Conv2d(config.channels, config.channels, 3, padding=1, bias=False), group_norm(config.channels)
        )

    def forward(self, maps: list[Tensor], visible: Tensor) -> Tensor:
        """Join the stages, from the coarsest to the finest.

        Args:
            maps: The encoder's maps [N, C_i, H/s_i, W/s_i], coarsest last.
            visible: [N, H/patch, W/patch] bool, True where a patch is visible.

        Returns:
            [N, C, H/stride, W/stride], at the stride of the finest stage.
        """
        joined: Tensor | None = None
        for index, lateral, token in reversed(list(zip(self.indices, self.laterals, self.mask_tokens, strict=True))):
            x = lateral(maps[index])  # [N, C, H/s_i, W/s_i]
            is_visible = F.interpolate(visible[:, None].float(), size=x.shape[-2:], mode="nearest").bool()
            x = torch.where(is_visible, x, token.to(x.dtype)[:, None, None])
            joined = x if joined is None else x + F.interpolate(joined, size=x.shape[-2:], mode="nearest")
        assert joined is not None
        return self.output(joined)

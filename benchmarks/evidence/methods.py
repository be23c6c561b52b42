"""Pretraining methods to compare with MIM4D: 2D pixel prediction, and MIM4D without one of its parts."""

import dataclasses

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mim4d.backbones.encoder import PATCH
from mim4d.clip import Clip
from mim4d.method.model import MIM4D, MaskedModel, ModelConfig
from mim4d.method.neck import group_norm


class Pixels(MaskedModel):
    """Predict the pixels of hidden patches by a small 2D decoder: SparK's recipe (arXiv 2301.03580, section 3).

    The maps of all stages, with a learned vector at hidden sites, enter a U-Net from stride 32 to 4. The target is each
    patch's pixels, standardised by their own mean and deviation; only hidden patches count. Unlike in the original, the
    decoder uses GroupNorm, and one pixel shuffle replaces its last two upsamplings.
    """

    WIDTH = 64
    """Channels of the decoder at stride 4; doubled at each coarser stage, at most four times as many."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        widths = [min(4, 1 << stage) * self.WIDTH for stage in range(4)]
        self.laterals = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(self.pyramid.channels, widths, strict=True))
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths)
        for token in self.mask_tokens:
            nn.init.trunc_normal_(token, std=0.02)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), group_norm(b), nn.ReLU())
            for a, b in zip(widths[1:], widths[:-1], strict=True)
        )
        self.output = nn.Sequential(nn.Conv2d(self.WIDTH, 3 * 4 * 4, 1), nn.PixelShuffle(4))
        self.train()

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """Return ``loss``, the mean squared error of standardised hidden patches, and a detached copy."""
        maps, visible = self.features(clip)
        x: Tensor | None = None
        for stage in (3, 2, 1, 0):
            here = self.laterals[stage](maps[stage])
            seen = F.interpolate(visible[:, None].float(), size=here.shape[-2:]).bool()
            here = torch.where(seen, here, self.mask_tokens[stage].to(here.dtype)[:, None, None])
            x = here if x is None else here + self.blocks[stage](F.interpolate(x, scale_factor=2.0))
        assert x is not None
        error = (_patches(self.output(x).float()) - _standardised(_patches(self.normalised(clip)))).square().mean(-1)
        hidden = ~visible
        loss = (error * hidden).sum() / hidden.sum().clamp(min=1)
        return {"loss": loss, "hidden_pixels": loss.detach()}


def _patches(images: Tensor) -> Tensor:
    return rearrange(images, "n c (y p) (x q) -> n y x (c p q)", p=PATCH, q=PATCH)


def _standardised(patches: Tensor) -> Tensor:
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


class NoTemporalPath(MIM4D):
    """MIM4D without the temporal path: same clips and target frames, each rendered from its own volume only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.temporal = None


class Unwarped(MIM4D):
    """MIM4D without the ego-motion warp: other frames' volumes enter the decoder as if the car stood still."""

    def warp_others(self, volumes: Tensor, clip: Clip, targets: Tensor) -> tuple[Tensor, Tensor]:
        still = torch.eye(4, device=clip.device).expand_as(clip.current_from_ego)
        return super().warp_others(volumes, dataclasses.replace(clip, current_from_ego=still), targets)


class Timeless(MIM4D):
    """MIM4D without continuous time: the decoder gets the distance in frames instead of the gap in seconds."""

    def warp_others(self, volumes: Tensor, clip: Clip, targets: Tensor) -> tuple[Tensor, Tensor]:
        warped, gaps = super().warp_others(volumes, clip, targets)
        order = torch.arange(gaps.shape[1], device=gaps.device)
        # Frames are ordered by time. The target, between -1 and 1, is not one of them.
        return warped, (order - (gaps < 0).sum(1, keepdim=True) + (gaps > 0)).to(gaps)

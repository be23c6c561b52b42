"""What MIM4D is compared with: pixels filled in in 2D, and MIM4D without one of its parts."""

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
    """Hidden patches of single images filled in by a small 2D decoder: SparK's recipe (arXiv 2301.03580, section 3).

    Every stage's map, with a learned vector where nothing was seen, joins a U-Net from stride 32 to 4; the target is
    each patch's own pixels less their mean, over their deviation; only hidden patches count. Unlike the original, the
    decoder's norms are GroupNorms and its last two doublings are one pixel shuffle.
    """

    WIDTH = 64
    """Of the decoder at stride 4; twice as much at each coarser stage, up to four times."""

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
        """``loss``, the mean squared error over hidden patches in their variances, and the same without gradient."""
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
    """Without the temporal path: the same clips and target frames, each rendered from its own volume alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.temporal = None


class Unwarped(MIM4D):
    """Without the ego-motion warp: other frames' volumes as they are, as if the car had not moved."""

    def warp_others(self, volumes: Tensor, clip: Clip, targets: Tensor) -> tuple[Tensor, Tensor]:
        still = torch.eye(4, device=clip.device).expand_as(clip.current_from_ego)
        return super().warp_others(volumes, dataclasses.replace(clip, current_from_ego=still), targets)


class Timeless(MIM4D):
    """Without continuous time: the decoder is told how many frames away another is instead of its gap in seconds."""

    def warp_others(self, volumes: Tensor, clip: Clip, targets: Tensor) -> tuple[Tensor, Tensor]:
        warped, gaps = super().warp_others(volumes, clip, targets)
        order = torch.arange(gaps.shape[1], device=gaps.device)
        # Frames are in the order of time and the target, which stands between -1 and 1, is not among the others.
        return warped, (order - (gaps < 0).sum(1, keepdim=True) + (gaps > 0)).to(gaps)

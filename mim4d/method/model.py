"""MIM4D (arXiv 2403.08760): the whole forward pass, steps 1 to 8, on one screen."""

from dataclasses import dataclass, field

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ..backbones.encoder import PATCH, MIM4DEncoder
from ..clip import FRAMES, Clip
from ..geometry import VoxelGrid
from .lift import Lift, LiftConfig
from .losses import LossConfig, compare
from .mask import count_visible, draw_targets, visible_patches
from .neck import Neck, NeckConfig
from .rays import Supervision, choose_rays
from .render import RenderConfig, Renderer
from .rng import Stream, uniform
from .temporal import TemporalConfig, TemporalDecoder
from .warp import warp


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The method's settings. Where the published ones differ, see the preset ``paper``."""

    drop_path: float = 0.2
    """Stochastic depth rate of the backbone."""
    frozen: int = 0
    """Parts of the backbone kept as they are, from the front: 0 none, 1 the stem, 2 the stem and first stage, ..."""
    mask_ratio: float = 0.3
    """Share of 32 px patches hidden in every image."""
    grid: VoxelGrid = field(default_factory=VoxelGrid)
    """The volume that frames are lifted into."""
    neck: NeckConfig = field(default_factory=NeckConfig)
    """Step 3."""
    lift: LiftConfig = field(default_factory=LiftConfig)
    """Step 4."""
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    """Step 6."""
    render: RenderConfig = field(default_factory=RenderConfig)
    """Step 7."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Step 8."""

    def __post_init__(self) -> None:
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio = {self.mask_ratio} must be at least 0 and below 1")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path = {self.drop_path} must be at least 0 and below 1")
        if not 0 <= self.frozen <= 5:
            raise ValueError(f"frozen = {self.frozen} must lie in 0 .. 5: it counts the stem and four stages")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(MethodConfig):
    """All that the model is built from: the method's settings and those that it shares with the data."""

    encoder: str = "mim4d_convnext_small"
    """The backbone's name in timm, one of mim4d's."""
    frames: int = FRAMES
    """T, frames per clip; 1 leaves the temporal path out."""
    supervision: Supervision = "rgbd"
    """rgbd: rays through LiDAR points, colour and depth; rgb: rays through any pixels, colour alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 1:
            raise ValueError(f"frames = {self.frames} must be at least 1")


class MaskedModel(nn.Module):
    """What every way to learn from masked images shares: the encoder, which outlives it, and what it is shown."""

    def __init__(self, config: ModelConfig) -> None:
        """Make the encoder.

        Raises:
            ValueError: If it has no masked forward.
        """
        super().__init__()
        self.config = config
        encoder = timm.create_model(config.encoder, num_classes=0, drop_path_rate=config.drop_path)
        if not isinstance(encoder, MIM4DEncoder):
            raise ValueError(
                f"{config.encoder} has no masked forward: pretraining needs one of timm.list_models('mim4d_*')"
            )
        self.encoder = encoder
        self._holds_statistics = False
        encoder.requires_grad_(False)  # nothing in pretraining sees the head
        for part in encoder.parts()[config.frozen :]:
            part.requires_grad_(True)
        normalise = resolve_model_data_config(encoder)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(normalise["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(normalise["std"]).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "MaskedModel":
        """As of any module, but frozen parts and BatchNorms that hold their statistics stay in evaluation mode."""
        super().train(mode)
        for part in self.encoder.parts()[: self.config.frozen]:
            part.eval()
        if self._holds_statistics:
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def hold_statistics(self) -> None:
        """Keep the encoder's BatchNorms at their running statistics, in training too; weights and biases still train.

        For an encoder that starts from pretrained weights. One from scratch has no statistics yet: its BatchNorms take
        those of each frame.
        """
        self._holds_statistics = True
        self.train(self.training)

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """One training step: ``loss`` and what was measured on the way.

        Returns:
            ``loss``, a scalar, and further values without gradient: scalars of the whole batch, and values per clip [B]
            with NaN for a clip on which nothing could be measured.
        """
        raise NotImplementedError

    def terms(self, clip: Clip) -> dict[str, Tensor]:
        """The weighted terms of the loss, scalars with gradient: their sum is ``loss``."""
        return {"loss": self(clip)["loss"]}

    def baselines(self, clip: Clip) -> dict[str, Tensor]:
        """The losses, and those of what they are measured against."""
        return self(clip)

    def visible(self, clip: Clip) -> Tensor:
        """The clip's spatial mask [B, T, V, H/32, W/32], True where a patch is seen."""
        return visible_patches(clip.seeds, clip.num_frames, clip.num_cameras, clip.image_size, self.config.mask_ratio)

    def normalised(self, clip: Clip) -> Tensor:
        """All images of all frames as the encoder wants them: [B*T*V, 3, H, W]."""
        return (clip.images.flatten(0, 2).float() - self.mean) / self.std

    def features(self, clip: Clip) -> tuple[list[Tensor], Tensor]:
        """Steps 1 and 2: mask all images of all frames and encode their visible patches.

        Returns:
            The encoder's four maps [B*T*V, C_i, H/s_i, W/s_i], and the mask [B*T*V, H/32, W/32].
        """
        visible = self.visible(clip).flatten(0, 2)
        maps = self.encoder.forward_masked(
            self.normalised(clip),
            visible,
            num_visible=count_visible(clip.image_size, self.config.mask_ratio),
            norm_group=clip.num_cameras,  # statistics of one frame: none of another frame, which may be dropped
        )
        return maps, visible


class MIM4D(MaskedModel):
    """Masked multi-camera video in, rendering losses out. Only ``encoder`` outlives the pretraining."""

    def __init__(self, config: ModelConfig) -> None:
        """Put the parts together; see :class:`MaskedModel`."""
        super().__init__(config)
        self.neck = Neck(config.neck, self.encoder.widths())
        self.lift = Lift(config.lift, config.neck.channels, self.neck.stride, config.grid)
        temporal = config.frames > 1
        self.temporal = (
            TemporalDecoder(config.temporal, config.lift.channels, config.grid, config.frames) if temporal else None
        )
        sky = config.supervision == "rgb"
        self.renderer = Renderer(config.render, config.lift.channels, config.grid, sky=sky)
        self.train()

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """One training step's losses.

        Args:
            clip: B clips on this module's device, of any number of cameras and, where the model is temporal, T >= 2.

        Returns:
            Scalars ``loss``; ``frames``, how many frames were really used; and ``rays``, the share of rays with a
            target. Per clip [B], NaN where nothing was seen: ``direct_rgb``, ``direct_depth``, ``temporal_rgb``,
            ``temporal_depth`` (mean absolute errors; depth in metres) with ``*_psnr``, ``*_abs_rel`` and ``*_delta``;
            ``direct_*_hidden`` and ``direct_*_visible``, the errors of rays through hidden and through visible patches.
        """
        return self.score(*self._views(clip))

    def terms(self, clip: Clip) -> dict[str, Tensor]:
        """The weighted terms of the loss: ``direct_rgb``, ``direct_depth``, ``temporal_rgb``, ``temporal_depth``.

        Those of depth are there if it is supervised, those of time if there is a temporal path.
        """
        return self._compare(*self._views(clip))[0]

    def _views(self, clip: Clip) -> tuple[dict[str, Tensor], Clip, Tensor]:
        targets = draw_targets(clip.seeds, clip.num_frames)  # [B, K]
        volumes = self.encode(clip)  # [B, T, C, Z, Y, X]
        views = {"direct": pick(volumes, targets)}  # [B*K, C, Z, Y, X]
        if self.temporal is not None:
            views["temporal"] = self.temporal(*self.warp_others(volumes, clip, targets)).volume
        return views, clip, targets

    @torch.no_grad()
    def baselines(self, clip: Clip) -> dict[str, Tensor]:
        """The losses, and those of what the temporal decoder must beat: no features at all (``zero_*``), and the mean
        of the warped other frames sent straight to the renderer (``mean_*``)."""
        targets = draw_targets(clip.seeds, clip.num_frames)
        volumes = self.encode(clip)
        views = {"direct": pick(volumes, targets)}
        if self.temporal is not None:
            warped, gaps = self.warp_others(volumes, clip, targets)
            mean = warped.mean(1)
            views |= {"temporal": self.temporal(warped, gaps).volume, "zero": torch.zeros_like(mean), "mean": mean}
        return self.score(views, clip, targets)

    def encode(self, clip: Clip) -> Tensor:
        """Steps 1 to 4: every frame's own volume [B, T, C, Z, Y, X] from its visible patches."""
        b, t, v = clip.images.shape[:3]
        features = self.neck(*self.features(clip))
        return self.lift(features.unflatten(0, (b, t, v)), clip)

    def warp_others(self, volumes: Tensor, clip: Clip, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Step 5: drop each target frame and bring the others into its ego frame.

        Args:
            volumes: [B, T, C, Z, Y, X].
            clip: For poses and times.
            targets: [B, K] int64.

        Returns:
            Warped volumes [B*K, T-1, C, Z, Y, X], and their signed gaps to the target [B*K, T-1] in seconds.

        Raises:
            ValueError: If the clip has a single frame: there is nothing to rebuild it from.
        """
        if clip.num_frames < 2:
            raise ValueError(
                "the temporal path needs clips of 2 frames or more, got 1: set frames = 1 to go without it"
            )
        others = torch.arange(clip.num_frames - 1, device=clip.device).expand(*targets.shape, -1)
        others = others + (others >= targets[..., None]).long()  # [B, K, T-1]: every frame but the target
        poses = clip.source_from_target(targets, others).flatten(0, 1)
        gaps = pick(clip.times, others) - pick(clip.times, targets)[:, None]
        return warp(pick(volumes, others), poses, self.config.grid), gaps

    def score(self, views: dict[str, Tensor], clip: Clip, targets: Tensor) -> dict[str, Tensor]:
        """Steps 7 and 8: render each kind of volume along the same rays, and compare.

        Args:
            views: Volumes [B*K, C, Z, Y, X] by kind; ``direct`` and ``temporal`` are learnt from.
            clip: For what was seen.
            targets: [B, K] int64.

        Returns:
            What :meth:`forward` returns.
        """
        terms, measures = self._compare(views, clip, targets)
        return {"loss": torch.stack(list(terms.values())).sum(), **measures}

    def _compare(
        self, views: dict[str, Tensor], clip: Clip, targets: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted terms of the loss, and all that stands beside it."""
        config = self.config
        rays = choose_rays(clip, targets, config.render.rays_per_view, config.grid, config.supervision)
        jitter = None
        if self.training:
            shape = (targets.shape[1], rays.valid.shape[1], config.render.uniform_samples)
            jitter = uniform(clip.seeds, Stream.JITTER, shape).flatten(0, 1)
        on_visible = through_visible(rays.pixels, pick(self.visible(clip), targets))
        terms: dict[str, Tensor] = {}
        measures: dict[str, Tensor] = {}
        for name, volumes in views.items():
            rendered = self.renderer(volumes, rays.origins, rays.directions, jitter)
            # None of the target frame's patches, hidden or not, has a part in the other kinds.
            compared = compare(rendered, rays, clip.batch_size, on_visible if name == "direct" else None)
            measures |= {f"{name}_{what}": value for what, value in compared.measures.items()}
            if name in ("direct", "temporal"):
                terms[f"{name}_rgb"] = config.loss.rgb * compared.errors["rgb"]
                if config.supervision == "rgbd":
                    terms[f"{name}_depth"] = config.loss.depth * compared.errors["depth"] / self.renderer.field.scale
        frames = torch.full((), float(clip.num_frames if self.temporal is not None else 1), device=clip.device)
        return terms, measures | {"frames": frames, "rays": rays.valid.float().mean()}


def through_visible(pixels: Tensor, visible: Tensor) -> Tensor:
    """Whether rays go through patches that the encoder sees.

    Args:
        pixels: [G, R, 2], view by view, the same number in each.
        visible: [G, V, H/32, W/32] bool.

    Returns:
        [G, R] bool.
    """
    groups, views = visible.shape[:2]
    column, row = (pixels.unflatten(1, (views, -1)) / PATCH).long().unbind(-1)  # [G, V, R/V]
    group = torch.arange(groups, device=pixels.device)[:, None, None]
    view = torch.arange(views, device=pixels.device)[:, None]
    return visible[group, view, row, column].flatten(1)


def pick(per_frame: Tensor, frames: Tensor) -> Tensor:
    """Take frames [B, K, ...] out of [B, T, ...] and fold K into the batch: [B*K, ..., ...]."""
    rows = torch.arange(len(frames), device=frames.device).view(-1, *[1] * (frames.dim() - 1))
    return per_frame[rows, frames].flatten(0, 1)

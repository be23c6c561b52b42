"""MIM4D (arXiv 2403.08760): the whole forward pass, steps 1 to 8."""

from dataclasses import dataclass, field

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ..backbones.masked import masked_maps
from ..backbones.pyramid import make_backbone, parts_of, patch_of, pyramid_of, trained_parameters
from ..clip import FRAMES, Clip
from ..geometry import VoxelGrid
from .augment import mirror_half, relight
from .consistency import against_lidar, consistency
from .flow import FlowHead, flow_loss
from .lift import Lift, LiftConfig
from .losses import LossConfig, compare
from .mask import count_visible, draw_others, draw_targets, visible_patches
from .neck import Neck, NeckConfig
from .rays import Rays, Supervision, choose_rays, transform_rays, with_depth_of_lift
from .render import RenderConfig, Renderer
from .rng import Stream, uniform
from .temporal import TemporalConfig, TemporalDecoder
from .warp import warp


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings of the method. The preset paper has the published values."""

    drop_path: float = 0.2
    """Stochastic depth rate of the backbone."""
    frozen: int = 0
    """Number of backbone parts that stay fixed, from the front: 0 none, 1 the stem, 2 stem and first stage, ..."""
    mask_ratio: float = 0.3
    """Fraction of the 32 px patches that are hidden in every image."""
    augment: bool = True
    """Whether clips are mirrored at random and their images shown to the encoder in other light, in training."""
    grid: VoxelGrid = field(default_factory=VoxelGrid)
    """The volume that frames are lifted into."""
    neck: NeckConfig = field(default_factory=NeckConfig)
    """The neck, which joins stages of the encoder (step 3 of the method)."""
    lift: LiftConfig = field(default_factory=LiftConfig)
    """The lift, from image features to voxels (step 4)."""
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    """The temporal decoder, which rebuilds a dropped frame (step 6)."""
    render: RenderConfig = field(default_factory=RenderConfig)
    """Volume rendering (step 7)."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights of the losses (step 8)."""

    def __post_init__(self) -> None:
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio = {self.mask_ratio} must be at least 0 and below 1")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path = {self.drop_path} must be at least 0 and below 1")
        if self.frozen < 0:
            raise ValueError(f"frozen = {self.frozen} must be at least 0: it counts the stem and the stages")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(MethodConfig):
    """Settings of the model: those of the method, and those that it shares with the data."""

    encoder: str = "mim4d_convnext_small"
    """The backbone's name in timm, one of mim4d's."""
    frames: int = FRAMES
    """T, frames per clip; 1 turns the temporal path off."""
    supervision: Supervision = "rgbd"
    """rgbd: rays through LiDAR points, colour and depth; rgb: rays through any pixels, colour only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 1:
            raise ValueError(f"frames = {self.frames} must be at least 1")
        if self.loss.flow and self.frames < 2:
            raise ValueError(f"loss.flow = {self.loss.flow} needs frames of 2 or more, got {self.frames}")


class MaskedModel(nn.Module):
    """Base class of models that are pretrained on masked images: the encoder and its inputs.

    Only ``encoder`` is used after pretraining.

    Args:
        config: The model's settings.

    Raises:
        ValueError: If the encoder has no masked forward, or fewer parts than are frozen.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        encoder = make_backbone(config.encoder, drop_path=config.drop_path)
        self.encoder = encoder
        self.pyramid, self.patch = pyramid_of(encoder), patch_of(encoder)
        self._holds_statistics = False
        trained = trained_parameters(encoder)  # a head gets no gradient in pretraining, so it stays as it is
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name in trained)
        parts = parts_of(encoder)
        if config.frozen > len(parts):
            raise ValueError(f"frozen = {config.frozen} must be at most {len(parts)}, the parts of {config.encoder}")
        self._frozen = parts[: config.frozen]
        for part in self._frozen:
            part.freeze()
        normalise = resolve_model_data_config(encoder)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(normalise["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(normalise["std"]).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "MaskedModel":
        """Set training mode; frozen parts and BatchNorms with held statistics stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.hold()
        if self._holds_statistics:
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def hold_statistics(self) -> None:
        """Make the encoder's BatchNorms use their running statistics in training, too; weights and biases still train.

        This is for an encoder that starts from pretrained weights. One that starts from scratch has no statistics yet:
        its BatchNorms use those of each frame.
        """
        self._holds_statistics = True
        self.train(self.training)

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """Compute the loss and further measures of one training step.

        Returns:
            ``loss``, a scalar, and values without gradient: scalars of the whole batch, and values per clip [B] with
            NaN for a clip in which there was nothing to measure.
        """
        raise NotImplementedError

    def terms(self, clip: Clip) -> dict[str, Tensor]:
        """Compute the weighted terms of the loss: scalars with gradient, whose sum is ``loss``."""
        return {"loss": self(clip)["loss"]}

    def baselines(self, clip: Clip) -> dict[str, Tensor]:
        """Compute the losses, and the losses of the baselines that the model is compared with."""
        return self(clip)

    def visible(self, clip: Clip) -> Tensor:
        """Draw the spatial mask of clips, [B, T, V, H/patch, W/patch] bool, True where a patch is visible."""
        return visible_patches(
            clip.seeds, clip.num_frames, clip.num_cameras, clip.image_size, self.config.mask_ratio, self.patch
        )

    def normalised(self, clip: Clip) -> Tensor:
        """Normalise all images of all frames with the encoder's mean and standard deviation: [N, 3, H, W]."""
        augmented = self.training and self.config.augment
        images = relight(clip.images, clip.seeds) if augmented else clip.images.float()  # [B, T, V, 3, H, W]
        return (images.flatten(0, 2) - self.mean) / self.std

    def features(self, clip: Clip) -> tuple[list[Tensor], Tensor]:
        """Steps 1 and 2: mask all images of all frames and encode their visible patches.

        Returns:
            The encoder's maps [N, C_i, H/s_i, W/s_i], coarsest last, and the mask [N, H/patch, W/patch].
        """
        visible = self.visible(clip).flatten(0, 2)  # [N, H/patch, W/patch]
        maps = masked_maps(
            self.encoder,
            self.normalised(clip),
            visible,
            num_visible=count_visible(clip.image_size, self.config.mask_ratio, self.patch),
            # BatchNorm statistics are those of one frame, because another frame may be the one that is dropped.
            norm_group=clip.num_cameras,
            indices=self.pyramid.indices,
        )
        return maps, visible


class MIM4D(MaskedModel):
    """The model of MIM4D, from masked multi-camera video to rendering losses.

    Args:
        config: The model's settings.

    Raises:
        ValueError: If the encoder has no masked forward, or fewer parts than are frozen.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.neck = Neck(config.neck, self.pyramid.channels, self.pyramid.strides)
        self.lift = Lift(config.lift, config.neck.channels, self.neck.stride, config.grid)
        temporal = config.frames > 1
        self.temporal = (
            TemporalDecoder(config.temporal, config.lift.channels, config.grid, config.frames) if temporal else None
        )
        sky = config.supervision == "rgb"
        self.renderer = Renderer(config.render, config.lift.channels, config.grid, sky=sky)
        self.flow = FlowHead(config.lift.channels, config.grid) if config.loss.flow else None
        if not config.loss.renders:  # what gets no gradient must not wait for one on other processes
            lifts = () if self.flow is not None else (self.lift.context, self.lift.refine)
            for module in (*lifts, self.temporal, self.renderer):
                if module is not None:
                    module.requires_grad_(False)
        self.train()

    def forward(self, clip: Clip) -> dict[str, Tensor]:
        """Compute the losses of one training step.

        With direct volumes from the target frame itself and temporal volumes from the other frames (the latter only if
        T > 1; the depth terms only with supervision ``rgbd`` or with consistency), and the depth of the lift in every
        image::

            loss = sum over direct, temporal of (loss.rgb * rgb error + loss.depth * depth error / scene scale)
                 + loss.other_rays * (the same for direct volumes, along rays of another frame)
                 + loss.consistency * photometric consistency + loss.lift_depth * log depth error
                 + loss.flow * photometric error of points that move by the flow

        Args:
            clip: B clips on the device of this module, with any number of cameras; T >= 2 if the model is temporal.

        Returns:
            Scalars: ``loss``; ``frames``, the number of frames that were used; ``rays``, the fraction of rays with an
            observation. Per clip [B], NaN where nothing was observed: the mean absolute errors ``direct_rgb``,
            ``direct_depth``, ``temporal_rgb`` and ``temporal_depth`` (depth in metres), with ``*_psnr``, ``*_abs_rel``
            and ``*_delta``; and ``direct_*_hidden`` and ``direct_*_visible``, the errors of rays through hidden and
            through visible patches. Also per clip: ``other_rgb``, ``other_depth``, ``other_psnr``, ``other_abs_rel``
            and ``other_delta``, those of the direct volumes along rays of another frame; ``consistency``; ``flow``; and
            ``lift_depth``, ``lift_abs_rel`` and ``lift_delta``, the errors of the lift's depth against LiDAR, in
            evaluation and where LiDAR supervises it.
        """
        return self._total(*self._losses(clip))

    def terms(self, clip: Clip) -> dict[str, Tensor]:
        """Compute the weighted terms of the loss.

        Returns:
            ``direct_rgb``, ``direct_depth``, ``temporal_rgb``, ``temporal_depth``, ``other_rgb``, ``other_depth``,
            ``consistency``, ``lift_depth`` and ``flow``. The depth terms exist only if depth is supervised, the
            temporal and the other ones only if there is another frame; a term of weight 0 does not exist.
        """
        return self._losses(clip)[0]

    @torch.no_grad()
    def baselines(self, clip: Clip) -> dict[str, Tensor]:
        """Compute the losses, and those of the baselines of the temporal decoder and of the flow.

        Returns:
            As :meth:`forward`, with ``zero_*``, the errors of volumes of zeros, ``mean_*``, those of the mean of
            the warped other frames without the decoder, and ``zero_flow``, that of a flow of zeros.
        """
        return self._total(*self._losses(clip, baselines=True))

    def _losses(self, clip: Clip, *, baselines: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Steps 1 to 8: return the weighted terms of the loss, and all measures."""
        config = self.config.loss
        if self.training and self.config.augment:
            clip = mirror_half(clip)
        encoded = self.encoded_frames(clip)
        features = self.images(clip.at(encoded))  # [B, K, V, C, h, w], K = T but for supervision by consistency alone
        depth = self.lift.depth(features, clip.at(encoded))  # [B, K, V, D, h, w]
        log_depth = self.lift.log_depth(depth)  # [B, K, V, h, w]
        terms, measures = self.score_depth(log_depth, clip, encoded)
        if self.flow is not None:
            flow = self.velocities(features, depth, clip)  # [B, T, 2, Y, X]
            errors = flow_loss(flow, log_depth.detach(), clip, self.config.grid)  # [B]
            terms["flow"] = config.flow * errors.mean()
            measures["flow"] = errors.detach()
            if baselines:
                measures["zero_flow"] = flow_loss(torch.zeros_like(flow), log_depth, clip, self.config.grid)
        if not config.renders:
            return terms, measures
        targets = draw_targets(clip.seeds, clip.num_frames)  # [B, K]
        features, depth = (scale_gradient(x, config.rendered_gradient) for x in (features, depth))
        volumes = self.lift(features, depth, clip)  # [B, T, C, Z, Y, X]
        by_kind = {"direct": pick(volumes, targets)}  # [G, C, Z, Y, X]
        if self.temporal is not None:
            warped, gaps = self.warp_others(volumes, clip, targets)
            by_kind["temporal"] = self.temporal(warped, gaps)
            if baselines:
                mean = warped.mean(1)
                by_kind |= {"zero": torch.zeros_like(mean), "mean": mean}
        rendered_terms, rendered_measures = self.score(by_kind, log_depth, clip, targets)
        return terms | rendered_terms, measures | rendered_measures

    def encoded_frames(self, clip: Clip) -> slice:
        """Return the frames that are encoded: in training, where only the depth of the lift learns, the middle one.

        Its neighbours show nearly the same, so they would teach little more; their images supervise its depth.
        """
        if not self.training or self.config.loss.renders or self.flow is not None:
            return slice(None)
        middle = clip.num_frames // 2
        return slice(middle, middle + 1)

    def images(self, clip: Clip) -> Tensor:
        """Steps 1 to 3: compute the features of every image from its visible patches, [B, T, V, C, h, w]."""
        return self.neck(*self.features(clip)).unflatten(0, clip.images.shape[:3])

    def encode(self, clip: Clip) -> Tensor:
        """Steps 1 to 4: compute the volume of every frame from its visible patches.

        Returns:
            [B, T, C, Z, Y, X], each volume in the ego frame of its frame.
        """
        features = self.images(clip)
        return self.lift(features, self.lift.depth(features, clip), clip)

    def warp_others(self, volumes: Tensor, clip: Clip, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Step 5: drop each target frame and warp the others to its ego frame.

        Args:
            volumes: [B, T, C, Z, Y, X].
            clip: For poses and times.
            targets: [B, K] int64.

        Returns:
            Warped volumes [G, S, C, Z, Y, X] with S = T - 1, and their signed time gaps to the target [G, S], seconds.

        Raises:
            ValueError: If the clips have a single frame, so that there is no other one.
        """
        if clip.num_frames < 2:
            raise ValueError(
                "the temporal path needs clips of 2 frames or more, got 1: set frames = 1 to train without it"
            )
        others = torch.arange(clip.num_frames - 1, device=clip.device).expand(*targets.shape, -1)
        others = others + (others >= targets[..., None]).long()  # [B, K, S], every frame but the target
        poses = clip.source_from_target(targets, others).flatten(0, 1)  # [G, S, 4, 4]
        gaps = pick(clip.times, others) - pick(clip.times, targets)[:, None]  # [G, S]
        return warp(pick(volumes, others), poses, self.config.grid), gaps

    def velocities(self, features: Tensor, depth: Tensor, clip: Clip) -> Tensor:
        """Compute the flow of every frame from its volume and the warped other ones; ``loss.flow`` must be above 0.

        Args:
            features: [B, T, V, C_in, h, w]; like the depth, it gets no gradient.
            depth: [B, T, V, D, h, w], the probabilities of the depth bins.
            clip: For calibration, poses and times; T >= 2.

        Returns:
            [B, T, 2, Y, X], (x, y) in m/s over ground in the ego frame of each frame.
        """
        assert self.flow is not None
        volumes = self.lift(features.detach(), depth.detach(), clip)  # [B, T, C, Z, Y, X]
        frames = torch.arange(clip.num_frames, device=clip.device).expand(clip.batch_size, -1)  # [B, T]
        flow = self.flow(volumes.flatten(0, 1), *self.warp_others(volumes, clip, frames))
        return flow.unflatten(0, frames.shape)

    def _total(self, terms: dict[str, Tensor], measures: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": torch.stack(list(terms.values())).sum(), **measures}

    def score_depth(self, log_depth: Tensor, clip: Clip, frames: slice) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Step 8b: score the lift's own log depth of K frames, [B, K, V, h, w]; returns what :meth:`_losses` does."""
        config = self.config
        terms: dict[str, Tensor] = {}
        measures: dict[str, Tensor] = {}
        if config.loss.consistency:
            errors = consistency(log_depth, clip, frames)  # [B]
            terms["consistency"] = config.loss.consistency * errors.mean()
            measures["consistency"] = errors.detach()
        supervised = config.loss.lift_depth > 0 and config.supervision == "rgbd"
        if clip.points.shape[2] and (supervised or not self.training):
            error, found = against_lidar(log_depth, clip.at(frames), config.lift.depth_range)
            measures |= {f"lift_{name}": value for name, value in found.items()}
            if supervised:
                terms["lift_depth"] = config.loss.lift_depth * error.mean()
        return terms, measures

    def score(
        self, volumes: dict[str, Tensor], log_depth: Tensor, clip: Clip, targets: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Steps 7 and 8a: render each kind of volume along the same rays and compare with the observations.

        With ``loss.other_rays``, the direct volumes are also rendered along rays of another frame and compared with
        what was observed there, so that several images and sweeps supervise one volume. The rays are moved as if the
        world stood still. They are wrong for what moves, and for what only the other frame sees.

        Args:
            volumes: Volumes [G, C, Z, Y, X] by kind. ``direct`` is required; it and ``temporal`` contribute to the
                loss.
            log_depth: [B, T, V, h, w] of the lift, the observation of depth where there is no LiDAR.
            clip: For the other observations.
            targets: [B, K] int64.

        Returns:
            The weighted terms of the loss, and all measures.
        """
        config = self.config
        own = self.draw_rays(log_depth, clip, targets)
        rays_by_kind = dict.fromkeys(volumes, own)
        if config.loss.other_rays and clip.num_frames > 1:
            others = draw_others(clip.seeds, targets, clip.num_frames)  # [B, K]
            target_from_other = clip.source_from_target(others, targets[..., None]).flatten(0, 2)  # [G, 4, 4]
            volumes = volumes | {"other": volumes["direct"]}
            rays = self.draw_rays(log_depth, clip, others)
            rays_by_kind["other"] = transform_rays(rays, target_from_other, config.grid)
        jitter = None
        if self.training:
            shape = (targets.shape[1], own.valid.shape[1], config.render.uniform_samples)  # [K, R, M]
            jitter = uniform(clip.seeds, Stream.JITTER, shape).flatten(0, 1)  # [G, R, M]
        on_visible = through_visible(own.pixels, pick(self.visible(clip), targets), self.patch)  # [G, R]
        weights = {"direct": 1.0, "temporal": 1.0, "other": config.loss.other_rays}
        terms: dict[str, Tensor] = {}
        measures: dict[str, Tensor] = {}
        for kind, rays in rays_by_kind.items():
            rendered = self.renderer(volumes[kind], rays.origins, rays.directions, jitter)
            # The other kinds do not depend on the target frame's patches, so there is no difference to measure.
            compared = compare(rendered, rays, clip.batch_size, on_visible if kind == "direct" else None)
            measures |= {
                f"{kind}_{name}": value
                for name, value in compared.measures.items()
                # The lift's depth was not measured by anything.
                if not self._from_lift or name.startswith(("rgb", "psnr"))
            }
            if kind in weights:
                terms[f"{kind}_rgb"] = weights[kind] * config.loss.rgb * compared.errors["rgb"]
                if self._from_lift or config.supervision == "rgbd":
                    depth = compared.errors["depth"] / self.renderer.field.scale
                    terms[f"{kind}_depth"] = weights[kind] * config.loss.depth * depth
        frames = torch.full((), float(clip.num_frames if self.temporal is not None else 1), device=clip.device)
        return terms, measures | {"frames": frames, "rays": own.valid.float().mean()}

    @property
    def _from_lift(self) -> bool:
        """Whether rendering learns the depth of the lift."""
        return self.training and self.config.supervision == "rgb" and self.config.loss.consistency > 0

    def draw_rays(self, log_depth: Tensor, clip: Clip, frames: Tensor) -> Rays:
        """Draw rays of frames and look up what was observed along them.

        Args:
            log_depth: [B, T, V, h, w] of the lift, the observation of depth where there is no LiDAR.
            clip: For the other observations.
            frames: [B, K] int64.

        Returns:
            Rays with G = B*K, in the ego frames of their own frames.
        """
        config = self.config
        # Held-out clips are scored against LiDAR where there is some, also if it does not supervise.
        seen = config.supervision if self.training or not clip.points.shape[2] else "rgbd"
        rays = choose_rays(clip, frames, config.render.rays_per_view, config.grid, seen)
        return with_depth_of_lift(rays, log_depth, clip, frames, config.grid) if self._from_lift else rays


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Return ``x`` itself, whose gradient is multiplied by ``scale``.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> torch.autograd.grad(scale_gradient(x, 0.1), x)
    (tensor(0.1000),)
    """
    if scale == 1:
        return x
    return x.detach() if scale == 0 else x.detach() + scale * (x - x.detach())


def through_visible(pixels: Tensor, visible: Tensor, patch: int) -> Tensor:
    """Find the rays that pass through visible patches.

    Args:
        pixels: [G, R, 2], ordered by camera, R / V for each of V cameras.
        visible: [G, V, H/patch, W/patch] bool.
        patch: Side of a patch in pixels.

    Returns:
        [G, R] bool.

    Two rays through one image, whose left patch is visible:

    >>> pixels = torch.tensor([[[31.5, 5.0], [32.5, 5.0]]])
    >>> through_visible(pixels, torch.tensor([True, False]).view(1, 1, 1, 2), patch=32)
    tensor([[ True, False]])
    """
    targets, cameras = visible.shape[:2]
    column, row = (pixels.unflatten(1, (cameras, -1)) / patch).long().unbind(-1)  # [G, V, R/V]
    target = torch.arange(targets, device=pixels.device)[:, None, None]  # [G, 1, 1]
    camera = torch.arange(cameras, device=pixels.device)[:, None]  # [V, 1]
    return visible[target, camera, row, column].flatten(1)


def pick(per_frame: Tensor, frames: Tensor) -> Tensor:
    """Select frames of each clip and merge the clips with their targets: G = B*K.

    Args:
        per_frame: [B, T, ...].
        frames: [B, K, ...] int64, indices into T.

    Returns:
        [G, ...]: the axes of ``frames`` after K, then those of ``per_frame`` after T.

    >>> pick(torch.tensor([[10, 11, 12], [20, 21, 22]]), torch.tensor([[2, 0], [2, 1]]))
    tensor([12, 10, 22, 21])
    """
    clip = torch.arange(len(frames), device=frames.device).view(-1, *[1] * (frames.dim() - 1))  # [B, 1, ...]
    return per_frame[clip, frames].flatten(0, 1)

"""What every image backbone here is: timm's model with one method more, the masked forward that pretraining needs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

PATCH = 32
"""Side of a mask patch in pixels: the stride of the last stage, so that a patch is whole sites at every stage."""


class MIM4DEncoder(nn.Module):
    """A backbone whose dense use *is* timm's: the same modules, parameters and keys, so weights move both ways.

    This is the base class of the families in :mod:`mim4d.backbones`, each of which is timm's class too. Create one by
    name, ``timm.create_model("mim4d_convnext_small")`` after ``import mim4d``; the arguments are those of timm's class.
    """

    if TYPE_CHECKING:  # TorchScript takes the annotations of a class for attributes that it must be able to type
        feature_info: Any  # timm's models set it: channels, stride and name of what can be taken out

    @classmethod
    def from_pretrained(
        cls, repo_or_folder: str | Path, *, revision: str | None = None, token: str | bool | None = None, **kwargs: Any
    ) -> "MIM4DEncoder":
        """An encoder from the Hub or from a folder, in evaluation mode.

        Args:
            repo_or_folder: ``org/name`` on the Hub; a run of ``mim4d-pretrain``; or a folder with ``config.json`` and
                ``model.safetensors``.
            revision: Branch, tag or commit on the Hub.
            token: For private repositories; None for the one of ``hf auth login``.
            kwargs: As for ``timm.create_model``: ``num_classes``, ``drop_path_rate``, ``cache_dir``, ...; with
                ``features_only`` it is timm's wrapper of one.

        Raises:
            WeightsError: If there is nothing, or it is damaged, incomplete or of another architecture.
        """
        from ..hub.pull import encoder_from_pretrained  # it makes models by their names, which this module registers

        return encoder_from_pretrained(repo_or_folder, revision=revision, token=token, **kwargs)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        revision: str | None = None,
        tag: str | None = None,
        license: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Publish this encoder so that ``timm.create_model("hf-hub:ORG/NAME", pretrained=True)`` loads it anywhere.

        Weights go as safetensors, with a model card that says what is known of them: for those of a run,
        ``mim4d-hub push RUN`` knows more. The same weights again make no second commit.

        Args:
            repo: ``org/name``; made if it does not exist.
            private: Make it private. An existing public repository is refused then.
            revision: Branch, made if it does not exist; None for the default one.
            tag: Name for the commit.
            license: Of the weights, as the Hub names licences.
            token: With the right to write; None for the one of ``hf auth login``.

        Returns:
            The address of the commit that holds the weights.

        Raises:
            UserError: If it cannot be published; what was on the Hub stays as it was.
        """
        from ..hub.push import push_encoder

        return push_encoder(self, repo, private=private, revision=revision, tag=tag, license=license, token=token)

    def parts(self) -> list[nn.Module]:
        """The stem and the four stages, from the front: what can be frozen. The head is none of them."""
        raise NotImplementedError

    def widths(self) -> list[int]:
        """Channels of the four stages' maps."""
        return [stage["num_chs"] for stage in self.feature_info[-4:]]

    def forward_masked(
        self, images: Tensor, visible: Tensor, *, num_visible: int | None = None, norm_group: int | None = None
    ) -> list[Tensor]:
        """Features of the visible patches alone: what is hidden contributes nothing and receives nothing.

        The semantics are those of submanifold sparse convolution (SparK, arXiv 2301.03580, section 3.1): the sites of
        hidden patches are absent from every convolution and norm, at every stage. With everything visible this is the
        dense forward.

        Args:
            images: [N, 3, H, W], normalised as the model's ``pretrained_cfg`` says; H and W multiples of 32.
            visible: [N, H/32, W/32] bool, True where a patch is seen.
            num_visible: Visible patches per image, where every image has the same number. It must be right: it is not
                checked, because reading the mask makes the host wait for the device. None reads the mask.
            norm_group: Consecutive images that share the statistics of a BatchNorm in training mode, such as the V
                cameras of a frame: no image then depends on those outside its group. Needs ``num_visible``. None: all
                images share them, as in the dense forward. ConvNeXts have no BatchNorm.

        Returns:
            The four stages' maps [N, C_i, H/s_i, W/s_i], s = 4, 8, 16, 32, with exact zeros at hidden sites.

        Raises:
            ValueError: If the shapes or groups do not fit, the mask is not bool, or the model's stem, dilation or norms
                make patches mix.
        """
        n, _, height, width = images.shape
        if visible.shape != (n, height // PATCH, width // PATCH) or height % PATCH or width % PATCH:
            raise ValueError(
                f"visible: expected [{n}, {height / PATCH:g}, {width / PATCH:g}] (images are {height} x {width}, a "
                f"patch is {PATCH} px), got {list(visible.shape)}"
            )
        if visible.dtype != torch.bool:
            raise ValueError(f"visible: expected a bool mask, got {visible.dtype}")
        strides = [stage["reduction"] for stage in self.feature_info[-4:]]
        if strides != [4, 8, 16, PATCH]:
            raise ValueError(f"forward_masked needs strides 4, 8, 16, 32 (here {strides}): others mix patches")
        if norm_group is not None and (num_visible is None or norm_group < 1 or n % norm_group):
            raise ValueError(
                f"norm_group: expected a divisor of the {n} images, together with num_visible, got {norm_group} with "
                f"num_visible={num_visible}"
            )
        groups = n // (norm_group or n) if n else 1
        return self._forward_masked(images, visible, patch_indices(visible, num_visible), groups)

    def _forward_masked(self, images: Tensor, visible: Tensor, patches: "Patches", groups: int) -> list[Tensor]:
        """The family's own part of :meth:`forward_masked`, for shapes and strides that fit."""
        raise NotImplementedError


class Patches(NamedTuple):
    """Image, row and column of the P visible patches, int64 [P] each, image by image and row by row."""

    image: Tensor
    row: Tensor
    column: Tensor


def patch_indices(visible: Tensor, num_visible: int | None = None) -> Patches:
    """The indices of the visible patches.

    Args:
        visible: [N, h, w] bool.
        num_visible: Visible patches per image. With None they are counted, and the host waits for the device.
    """
    if num_visible is None:
        return Patches(*visible.nonzero().unbind(1))
    n, _, columns = visible.shape
    # A stable sort puts the visible patches first and leaves them in order.
    index = (~visible).flatten(1).byte().argsort(dim=1, stable=True)[:, :num_visible].flatten()  # [N * num_visible]
    image = torch.arange(n, device=visible.device)[:, None].expand(n, num_visible).flatten()
    return Patches(image, index // columns, index % columns)


def sites_of(visible: Tensor, x: Tensor) -> Tensor:
    """The patch mask [N, h, w] at the resolution of a map [N, C, H, W]: [N, H, W] bool."""
    factor = x.shape[-1] // visible.shape[-1]
    return visible.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)

"""The base class of the image backbones: timm's model with an additional masked forward for pretraining."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

PATCH = 32
"""Side of a mask patch in pixels: the stride of the last stage, so that a patch holds whole sites at every stage."""


class MIM4DEncoder(nn.Module):
    """A backbone with the modules, parameters, keys and dense forward of timm's class, so weights are exchangeable.

    The families in :mod:`mim4d.backbones` inherit from this class and from timm's. Create a model by name,
    ``timm.create_model("mim4d_convnext_small")`` after ``import mim4d``; the arguments are those of timm's class.
    """

    if TYPE_CHECKING:  # TorchScript would try to type every annotated attribute of the class
        feature_info: Any  # set by timm: channels, stride and name of each feature map

    @classmethod
    def from_pretrained(
        cls, repo_or_folder: str | Path, *, revision: str | None = None, token: str | bool | None = None, **kwargs: Any
    ) -> "MIM4DEncoder":
        """Load an encoder from the Hub or from a folder, in evaluation mode.

        Args:
            repo_or_folder: ``org/name`` on the Hub; a run folder of ``mim4d-pretrain``; or a folder with
                ``config.json`` and ``model.safetensors``.
            revision: Branch, tag or commit on the Hub.
            token: Access token for private repositories. None: that of ``hf auth login``.
            kwargs: Arguments of ``timm.create_model``: ``num_classes``, ``drop_path_rate``, ``cache_dir``, ...; with
                ``features_only`` the result is timm's feature wrapper.

        Raises:
            WeightsError: If the weights are missing, damaged, incomplete or of another architecture.
        """
        from ..hub.pull import encoder_from_pretrained  # imported on use, so that `import mim4d` is fast

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

        The weights are uploaded as safetensors with a model card. The card of ``mim4d-hub push RUN`` has more
        information about the training run. Uploading the same weights again makes no second commit.

        Args:
            repo: ``org/name``; created if it does not exist.
            private: Create a private repository; it is an error if the repository exists and is public.
            revision: Branch; created if it does not exist. None: the default branch.
            tag: Tag for the commit.
            license: Licence of the weights, by the Hub's name for it.
            token: Access token with write permission. None: that of ``hf auth login``.

        Returns:
            URL of the commit that holds the weights.

        Raises:
            UserError: If the encoder cannot be published; the Hub then stays unchanged.
        """
        from ..hub.push import push_encoder  # imported on use, so that `import mim4d` is fast

        return push_encoder(self, repo, private=private, revision=revision, tag=tag, license=license, token=token)

    def parts(self) -> list[nn.Module]:
        """Return the parts that can be frozen, from the front: the stem and the four stages, without the head."""
        raise NotImplementedError

    def widths(self) -> list[int]:
        """Return the channels C_i of the maps of the four stages."""
        return [stage["num_chs"] for stage in self.feature_info[-4:]]

    def forward_masked(
        self, images: Tensor, visible: Tensor, *, num_visible: int | None = None, norm_group: int | None = None
    ) -> list[Tensor]:
        """Compute the features of the visible patches; hidden patches have no influence and get no gradient.

        The semantics are those of submanifold sparse convolution (SparK, arXiv 2301.03580, section 3.1): the sites of
        hidden patches are absent from every convolution and norm, at every stage. If all patches are visible, the
        result is that of the dense forward.

        Args:
            images: [N, 3, H, W], normalised as the model's ``pretrained_cfg`` says; H and W multiples of 32.
            visible: [N, H/32, W/32] bool, True where a patch is visible.
            num_visible: Visible patches per image, if every image has the same number. It must be right: it is not
                checked, because reading the mask makes the host wait for the device. None: the mask is read.
            norm_group: Number of consecutive images that share the statistics of a BatchNorm in training mode, such as
                the V cameras of a frame; no image then depends on those of other groups. Needs ``num_visible``. None:
                all images share them, as in the dense forward. ConvNeXts have no BatchNorm.

        Returns:
            The four stages' maps [N, C_i, H/s_i, W/s_i], s_i = 4, 8, 16, 32, with exact zeros at hidden sites.

        Raises:
            ValueError: If the shapes or groups do not fit, the mask is not bool, or the model's stem, dilation or norms
                mix patches.
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
            raise ValueError(f"forward_masked: expected strides 4, 8, 16, 32, got {strides}: other models mix patches")
        if norm_group is not None and (num_visible is None or norm_group < 1 or n % norm_group):
            raise ValueError(
                f"norm_group: expected a divisor of the {n} images, together with num_visible, got {norm_group} and "
                f"num_visible={num_visible}"
            )
        groups = n // (norm_group or n) if n else 1
        return self._forward_masked(images, visible, patch_indices(visible, num_visible), groups)

    def _forward_masked(self, images: Tensor, visible: Tensor, patches: "Patches", groups: int) -> list[Tensor]:
        """Compute the maps of :meth:`forward_masked` from checked arguments; ``groups`` is N / ``norm_group``."""
        raise NotImplementedError


class Patches(NamedTuple):
    """Indices of the A visible patches of all images, ordered by image, row and column."""

    image: Tensor
    """[A] int64."""
    row: Tensor
    """[A] int64, in units of patches."""
    column: Tensor
    """[A] int64, in units of patches."""


def patch_indices(visible: Tensor, num_visible: int | None = None) -> Patches:
    """Find the visible patches.

    Args:
        visible: [N, H/32, W/32] bool.
        num_visible: Visible patches per image. None: they are counted, and the host waits for the device.

    >>> visible = torch.tensor([[[True, False, False], [True, False, True]]])
    >>> patch_indices(visible, num_visible=3)
    Patches(image=tensor([0, 0, 0]), row=tensor([0, 1, 1]), column=tensor([0, 0, 2]))
    """
    if num_visible is None:
        return Patches(*visible.nonzero().unbind(1))
    n, _, columns = visible.shape
    # A stable sort puts the visible patches first and keeps their order.
    index = (~visible).flatten(1).byte().argsort(dim=1, stable=True)[:, :num_visible].flatten()  # [A]
    image = torch.arange(n, device=visible.device)[:, None].expand(n, num_visible).flatten()  # [A]
    return Patches(image, index // columns, index % columns)


def sites_of(visible: Tensor, x: Tensor) -> Tensor:
    """Enlarge the patch mask to the resolution of a map.

    Args:
        visible: [N, H/32, W/32] bool.
        x: [N, C, h, w], with k x k sites per patch.

    Returns:
        [N, h, w] bool.

    >>> sites_of(torch.tensor([[[True, False]]]), torch.zeros(1, 8, 2, 4))
    tensor([[[ True,  True, False, False],
             [ True,  True, False, False]]])
    """
    k = x.shape[-1] // visible.shape[-1]
    return visible.repeat_interleave(k, dim=1).repeat_interleave(k, dim=2)

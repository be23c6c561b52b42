"""Image backbones for driving perception, pretrained on multi-camera video.

Importing this package registers the models with timm: ``timm.create_model("mim4d_convnext_small")``. Pretraining lives
in :mod:`mim4d.pretrain` and is not imported here.
"""

from .backbones import MIM4DEncoder, forward_masked
from .hub.catalog import register_names
from .version import __version__

register_names()  # of the team's hub, without the network

__all__ = ["MIM4DEncoder", "__version__", "forward_masked"]

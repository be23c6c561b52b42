"""Image backbones: timm's classes with a masked forward, registered with timm under names of ``mim4d_*``.

``encoder`` says what all share; ``convnext`` and ``resnet`` are the families;
``masked`` gives any other timm model a masked forward, CNNs by way of ``sites``.
"""

from . import convnext, resnet
from .encoder import MIM4DEncoder
from .masked import forward_masked
from .sites import NoMaskedForwardError

__all__ = ["MIM4DEncoder", "NoMaskedForwardError", "convnext", "forward_masked", "resnet"]

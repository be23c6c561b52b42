"""Image backbones: timm's classes with a masked forward, registered with timm under names of ``mim4d_*``.

``encoder`` holds their common base class, ``convnext`` and ``resnet`` are the families. ``masked`` is a masked forward
for any other timm model, which uses ``sites`` for CNNs.
"""

from . import convnext, resnet
from .encoder import MIM4DEncoder
from .masked import forward_masked
from .sites import NoMaskedForwardError

__all__ = ["MIM4DEncoder", "NoMaskedForwardError", "convnext", "forward_masked", "resnet"]

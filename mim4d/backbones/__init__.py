"""Image backbones: timm's classes with a masked forward, registered with timm under names of ``mim4d_*``.

``encoder`` says what all share; ``convnext`` and ``resnet`` are the families.
"""

from . import convnext, resnet
from .encoder import MIM4DEncoder

__all__ = ["MIM4DEncoder", "convnext", "resnet"]

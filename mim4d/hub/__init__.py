"""Load, convert, publish and download encoder weights.

In reading order: ``folder`` (the files that timm, the Hub and mim4d share), ``fetch`` (verified files of the Hub),
``team`` (the hub that the user names), ``sources`` (weights from folders, files, the Hub and timm), ``load`` (weights
into a model), ``published`` (weights with a timm name), ``catalog`` (what the team's hub holds), ``names`` and
``openmmlab`` (conversion), ``pull``, ``card`` and ``push`` (from and to the Hub), ``cli`` (the command ``mim4d-hub``).
"""

from .catalog import use
from .openmmlab import convert_checkpoint

__all__ = ["convert_checkpoint", "use"]

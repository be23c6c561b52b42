"""Weights on the way: to the Hub and from it, into a model, from other codebases and to them.

Read in this order: ``folder`` (the file set that timm, the Hub and we share), ``fetch`` (the Hub's files, verified),
``sources`` (all places that weights come from), ``load`` (into a model, strictly), ``published`` (weights with a name),
``names`` and ``openmmlab`` (conversion), ``card`` and ``push`` (to the Hub), ``cli`` (the command ``mim4d-hub``).
"""

from .openmmlab import convert_checkpoint

__all__ = ["convert_checkpoint"]

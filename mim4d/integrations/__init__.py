"""The encoder as other codebases' own backbones: :mod:`mim4d.integrations.openmmlab`.

What builds its backbone with timm or plain PyTorch needs nothing from here: see ``docs/integrations.md``.
"""

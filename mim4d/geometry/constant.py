"""Known numbers as tensors, without waiting for a GPU."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers [N] on the device and in the dtype of ``like``: the same tensor each time, not to be changed.

    ``like.new_tensor(values)`` would copy them anew at every call, and the host waits for such a copy until the GPU has
    done all that it was given before.
    """
    return _made(tuple(values), like.dtype, like.device)


@cache
def _made(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # or what was first asked for there could not be trained with later
        return torch.tensor(values, dtype=dtype, device=device)

"""Cached constant tensors, which a GPU step can use without waiting for a copy from the host."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """Return a cached tensor of fixed numbers.

    ``like.new_tensor(values)`` would copy the numbers from the host at every call, and the host waits for such a copy
    until the GPU has finished all the work queued before it.

    Args:
        values: The numbers.
        like: A tensor that has the device and dtype of the result.

    Returns:
        [len(values)]. Every call with the same arguments returns the same tensor: do not modify it in place.

    >>> constant([1, 2], torch.zeros(3))
    tensor([1., 2.])
    """
    return _cached_tensor(tuple(values), like.dtype, like.device)


@cache
def _cached_tensor(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # Autograd cannot save an inference tensor for backward, and the first call may come from inference mode.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)

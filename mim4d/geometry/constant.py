"""Cached constant tensors, which a GPU step can use without waiting for a copy from the host."""

from collections.abc import Sequence

import torch
from torch import Tensor

_Key = tuple[tuple[float, ...], torch.dtype, torch.device]
_made: dict[_Key, Tensor] = {}


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
    key = (tuple(values), like.dtype, like.device)
    if torch.compiler.is_compiling():  # the graph holds its own constants, and would be remade whenever the cache grows
        return torch.tensor(key[0], dtype=like.dtype, device=like.device)
    if key not in _made:
        # Autograd cannot save an inference tensor for backward, and the first call may come from inference mode.
        with torch.inference_mode(False):
            tensor = torch.tensor(key[0], dtype=like.dtype, device=like.device)
        if type(tensor) is not Tensor:  # a fake one without data, which no later call must get
            return tensor
        _made[key] = tensor
    return _made[key]

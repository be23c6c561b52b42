"""Gradient norms in the encoder per loss term."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from ..clip import Clip
from ..method.model import MaskedModel


def encoder_gradients(model: MaskedModel, clips: Sequence[Clip], accelerator: Accelerator) -> dict[str, float]:
    """Compute the L2 norm of the encoder's gradient for each weighted loss term alone.

    Runs its own forward and backward passes, so that training steps cost no more. Weights, ``.grad``, BatchNorm's
    statistics and torch's random state do not change. Every process has to call it.

    Args:
        model: Not wrapped, in training mode.
        clips: This process's batches of one step, on any device.
        accelerator: The run's.

    Returns:
        ``grad_encoder_<term>``: the norm of the gradient that is averaged over batches and processes, before clipping.
        Terms without a gradient, because there was nothing to compare, are left out.
    """
    weights = [weight for weight in model.encoder.parameters() if weight.requires_grad]
    if not weights:
        return {}
    device = accelerator.device
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    sums: dict[str, Tensor] = {}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for clip in clips:
            with accelerator.autocast():
                terms = model.terms(clip.to(device))
            for number, (name, term) in enumerate(terms.items(), 1):
                parts = torch.autograd.grad(term, weights, retain_graph=number < len(terms), materialize_grads=True)
                # In host memory: one such vector at a time is on the device.
                vector = torch.cat([part.flatten() for part in parts]).cpu() / len(clips)
                sums[name] = sums.get(name, 0) + vector
    for buffer, before in buffers:
        buffer.copy_(before)
    norms = {name: float(accelerator.reduce(total.to(device), "mean").norm()) for name, total in sums.items()}
    return {f"grad_encoder_{name}": norm for name, norm in norms.items() if norm}

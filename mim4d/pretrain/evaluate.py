"""How well the model does on clips it does not learn from, and whether time helps it."""

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..data import ClipLoader
from .model import MaskedModel


@torch.no_grad()
def evaluate(model: MaskedModel, clips: ClipLoader, accelerator: Accelerator) -> dict[str, float]:
    """Errors on held-out clips, with the same masks and rays every time, averaged over clips and processes.

    Args:
        model: Not wrapped; back in its own mode afterwards.
        clips: This process's share.
        accelerator: Of the run.

    Returns:
        ``val_direct_rgb``, ``val_direct_depth``, ... and, where there is a temporal path, ``val_temporal_*`` beside
        what it must beat: ``val_zero_*`` (no features) and ``val_mean_*`` (the mean of the warped other frames).
    """
    training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    count = 0
    for clip in clips:
        with accelerator.autocast():
            values = model.baselines(clip.to(accelerator.device, non_blocking=True))
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + value.float() * clip.batch_size
        count += clip.batch_size
    model.train(training)
    shares = gather_object([({name: float(value) for name, value in sums.items()}, count)])
    total = sum(n for _, n in shares)
    names = [name for name in shares[0][0] if "_" in name]  # neither the summed loss nor what describes the step
    return {f"val_{name}": sum(part.get(name, 0.0) for part, _ in shares) / total for name in names}

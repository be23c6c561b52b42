"""Evaluation on held-out clips, with baselines for the temporal decoder."""

import math

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..data import ClipLoader
from ..method.model import MaskedModel
from .meter import averages, totals
from .processes import end_all

ABOUT_THE_STEP = ("loss", "frames", "rays")
"""Values that are not errors: the weighted sum, and what was used."""


@torch.no_grad()
def evaluate(model: MaskedModel, clips: ClipLoader, accelerator: Accelerator) -> dict[str, float]:
    """Compute errors on held-out clips, with the same masks and rays every time, averaged over clips and processes.

    Args:
        model: Not wrapped; its training mode is restored afterwards.
        clips: This process's clips.
        accelerator: The run's.

    Returns:
        ``val_direct_rgb``, ``val_direct_depth``, ... and, with a temporal path, ``val_temporal_*`` and its baselines
        ``val_zero_*`` (no features) and ``val_mean_*`` (the mean of the warped other frames); with LiDAR,
        ``val_lift_*``. Values that were measured for no clip are left out.

    Raises:
        UserError: On the main process, if the loss is not finite.
        SystemExit: With code 2 on the others.
    """
    training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    for clip in clips:
        with accelerator.autocast():
            values = model.baselines(clip.to(accelerator.device, non_blocking=True))
        for name, total in totals(values, clip.batch_size).items():
            sums[name] = sums.get(name, 0) + total
    model.train(training)
    shares = gather_object([{name: total.tolist() for name, total in sums.items()}])  # empty where there is no clip
    whole = {name: [sum(share[name][i] for share in shares if share) for i in (0, 1)] for name in shares[0]}
    means = averages(whole)
    if not math.isfinite(means["loss"]):
        what = f"the loss of the held-out clips is {means['loss']}"
        end_all(accelerator, f"{what}: lower --optim.lr or use --precision fp32")
    return {f"val_{name}": value for name, value in means.items() if name not in ABOUT_THE_STEP}

"""Scores of a finished run that need no trained head: depth, rebuilt frames and motion on held-out clips.

All runs are scored in the same way, whatever their settings: nothing masked, along the same LiDAR rays.
"""

import dataclasses
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from mim4d.clip import Clip
from mim4d.data import evaluation_clips, make_evaluation_loader
from mim4d.errors import UserError
from mim4d.eval.labels import Annotations, footprints, rasterise
from mim4d.geometry import VoxelGrid, transform
from mim4d.method.model import MIM4D
from mim4d.pretrain.datasets import open_data
from mim4d.pretrain.evaluate import evaluate
from mim4d.pretrain.folder import RunFolder
from mim4d.pretrain.trainer import Method, trained_model

from .methods import Unwarped

SEED = 0
"""Seed of the rays, the same for all runs."""
MOVING = 0.5
"""Least speed over ground of a moving vehicle, m/s."""
MIN_VISIBILITY = 2
"""Least nuScenes visibility level of a vehicle that counts, as in BEV segmentation."""


def unlabelled(run: Path, method: Method, *, clips: int) -> dict[str, float]:
    """Score a finished run.

    Args:
        run: The run folder.
        method: Builds the run's model.
        clips: Number of held-out clips, spread evenly over the split.

    Returns:
        An empty dict for a method without rendering. Else ``depth_abs_rel`` and ``depth_delta`` (the fraction of rays
        within a factor of 1.25) of visible frames. With a temporal path, also ``temporal_rgb`` (0 to 1) and
        ``temporal_depth`` (metres) of frames rebuilt from the others; ``mean_*`` and ``zero_*`` as in
        :func:`mim4d.pretrain.evaluate.evaluate`; the number of ``moving_vehicles`` in the clips' current frames; and,
        if there are any, the error of the flow on them, ``flow_epe`` (m/s), and that of predicting no motion,
        ``zero_flow_epe``.

    Raises:
        UserError: If there is no finished run, or no held-out clip with LiDAR.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    model = trained_model(folder, method=method)
    if not isinstance(model, MIM4D):
        return {}
    # This changes the rays only: a renderer that was trained with a sky keeps it.
    model.config = dataclasses.replace(model.config, mask_ratio=0.0, supervision="rgbd")
    model.eval()

    accelerator = Accelerator(
        mixed_precision="bf16" if config.precision == "bf16" else "no", cpu=not torch.cuda.is_available()
    )
    model.to(accelerator.device)
    # Key frames with LiDAR, because boxes are annotated there, and no replacement of broken clips.
    config = dataclasses.replace(config, supervision="rgbd", sweeps=False, on_error="raise")
    _, held_out = open_data(config, accelerator)
    if held_out is None:
        raise UserError(f"{run} has no held-out split to be scored on")
    loader = make_evaluation_loader(
        held_out, count=clips, batch_size=config.batch_size, seed=SEED, workers=config.workers
    )
    errors = evaluate(model, loader, accelerator)
    scores = {f"depth_{name}": errors[f"val_direct_{name}"] for name in ("abs_rel", "delta")}
    if model.temporal is None:
        return scores
    for view in ("temporal", "mean", "zero"):
        scores |= {f"{view}_{name}": errors[f"val_{view}_{name}"] for name in ("rgb", "depth")}

    numbers = [number for number, _ in evaluation_clips(held_out, clips, SEED)]
    sweeps = held_out.frames.lidar[held_out.clips[numbers, -1]]
    annotations = _annotations(held_out.root, config.version)
    samples = iter([annotations.tokens[row] for row in held_out.index.records["sample"][sweeps]])
    missed: list[tuple[float, float]] = []
    for clip in loader:
        with accelerator.autocast():
            flows = velocities(model, clip.to(accelerator.device))
        for flow in flows.cpu().numpy():
            missed += flow_errors(flow, moving(annotations.boxes(next(samples))), model.config.grid)
    scores["moving_vehicles"] = float(len(missed))
    if missed:
        scores["flow_epe"], scores["zero_flow_epe"] = np.mean(missed, axis=0).tolist()
    return scores


@lru_cache(maxsize=1)
def _annotations(root: Path, version: str) -> Annotations:
    """Open the tables once: it takes the devkit many seconds for a large root, and all runs share it."""
    return Annotations(root, version)


@torch.no_grad()
def velocities(model: MIM4D, clip: Clip) -> Tensor:
    """Return the flow of the current frame, from the other frames only: [B, 2, Y, X] m/s over ground, in its ego frame.

    The decoder's flow is a displacement to the nearest frame, divided by the gap that it was given. For a model that
    was given frames instead of seconds, this converts it to seconds; for one without the warp, it removes the car's own
    motion. Neither model could know these, and neither is penalised for them.
    """
    if model.temporal is None:
        raise ValueError("a model of one frame has no flow: expected frames of 2 or more")
    rows = torch.arange(clip.batch_size, device=clip.device)
    targets = torch.full((clip.batch_size, 1), clip.num_frames - 1, device=clip.device)
    warped, told = model.warp_others(model.encode(clip), clip, targets)
    nearest = told.abs().argmin(dim=1)
    offset = model.temporal.flow(model.temporal(warped, told)).float() * told[rows, nearest, None, None, None]  # metres
    if isinstance(model, Unwarped):
        here = model.config.grid.centers(offset)[0]  # [Y, X, 3]
        there = here + torch.nn.functional.pad(offset.permute(0, 2, 3, 1), (0, 1))
        current_from_nearest = clip.current_from_ego[rows, nearest]
        there = transform(current_from_nearest, there.flatten(1, 2)).unflatten(1, here.shape[:2])
        offset = (there - here)[..., :2].permute(0, 3, 1, 2)
    return offset / clip.times[rows, nearest, None, None, None]


def moving(boxes: NDArray[np.void]) -> NDArray[np.void]:
    """Select the boxes [N] of visible moving vehicles; a box without a known velocity does not count."""
    speeds = np.linalg.norm(boxes["velocity"], axis=1)
    return boxes[boxes["vehicle"] & (boxes["visibility"] >= MIN_VISIBILITY) & (speeds > MOVING)]


def flow_errors(flow: NDArray[np.float32], boxes: NDArray[np.void], grid: VoxelGrid) -> list[tuple[float, float]]:
    """Compare a flow [2, Y, X] in m/s with the velocities of boxes, and with predicting no motion.

    Returns:
        Both mean errors over a box's cells, in m/s, for each box whose footprint contains the centre of a cell.
    """
    errors = []
    for shape, velocity in zip(footprints(boxes), boxes["velocity"], strict=True):
        cells = flow[:, rasterise([shape], grid)]  # [2, cells]
        if cells.size:
            missed = np.linalg.norm(cells - velocity[:, None], axis=0).mean()
            errors.append((float(missed), float(np.linalg.norm(velocity))))
    return errors

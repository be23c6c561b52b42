"""Score the BEV flow of a run on the annotated vehicles of held-out key frames, against a flow of zeros.

    python -m benchmarks.flow runs/flow         # a run with --method.loss.flow above 0

A vehicle's flow is the mean over the BEV cells whose centres lie in its box.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from mim4d.clip import Clip
from mim4d.data import NuScenesClips
from mim4d.errors import UserError
from mim4d.eval.labels import Annotations
from mim4d.flags import report_user_errors
from mim4d.geometry import VoxelGrid
from mim4d.method.model import MIM4D
from mim4d.pretrain.datasets import open_data
from mim4d.pretrain.folder import RunFolder
from mim4d.pretrain.trainer import trained_model

MOVING = 1.0
"""Vehicles faster than this move, m/s."""
VISIBLE = 2
"""Least visibility of a vehicle: 40 % or more of it in the cameras."""


@dataclass(frozen=True)
class Options:
    """Score the flow of a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""


class Score(NamedTuple):
    """Mean errors of the flow of vehicles, m/s; NaN where there is none."""

    moving: int
    """Number of vehicles that move."""
    error: float
    """Length of flow minus velocity, mean over those."""
    zero: float
    """The same for a flow of zeros: their speed."""
    still: int
    """Number of the other vehicles."""
    still_error: float
    """Length of flow minus velocity, mean over those."""


def flow_of(box: np.void, flow: Tensor, grid: VoxelGrid) -> NDArray[np.float64] | None:
    """Average the flow over the cells whose centres lie in a box.

    Args:
        box: Of the type :data:`mim4d.eval.labels.BOX`.
        flow: [2, Y, X], m/s in the ego frame.
        grid: The voxels, whose columns are the cells.

    Returns:
        [2], m/s; None if there is no such cell.
    """
    offset = grid.centers(flow)[0, ..., :2].double().numpy() - box["center"][:2]  # [Y, X, 2]
    cos, sin = np.cos(box["yaw"]), np.sin(box["yaw"])
    along, across = offset @ np.array([cos, sin]), offset @ np.array([-sin, cos])  # [Y, X]
    length, width, _ = box["size"]
    inside = (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2)
    return flow.double().numpy()[:, inside].mean(1) if inside.any() else None


def score(frames: list[tuple[Tensor, NDArray[np.void]]], grid: VoxelGrid) -> Score:
    """Compare flows [2, Y, X] of key frames with their annotated boxes [N].

    Vehicles count that are visible, of known velocity, and in at least one cell.
    """
    velocities, flows = [], []
    for flow, boxes in frames:
        known = boxes["vehicle"] & (boxes["visibility"] >= VISIBLE) & np.isfinite(boxes["velocity"]).all(1)
        for box in boxes[known]:
            if (found := flow_of(box, flow, grid)) is not None:
                velocities.append(box["velocity"])
                flows.append(found)
    truth = np.array(velocities).reshape(-1, 2)  # [vehicles, 2]
    speed = np.linalg.norm(truth, axis=1)
    error = np.linalg.norm(np.array(flows).reshape(-1, 2) - truth, axis=1)
    moving = speed > MOVING

    def mean(values: NDArray[np.float64]) -> float:
        return float(values.mean()) if len(values) else float("nan")

    return Score(
        int(moving.sum()), mean(error[moving]), mean(speed[moving]), int((~moving).sum()), mean(error[~moving])
    )


def key_frames(clips: NuScenesClips, annotations: Annotations) -> Iterator[tuple[Clip, NDArray[np.void]]]:
    """Read the clips whose current frame is a key frame, with the boxes of that frame."""
    for number, frame in enumerate(clips.clips[:, -1]):
        row = clips.frames.lidar[frame] if clips.has_lidar else clips.frames.cameras[frame, 0]
        if (sample := clips.index.records["sample"][row]) >= 0:
            yield clips[number], annotations.boxes(annotations.tokens[sample])


@torch.no_grad()
def current_flow(model: MIM4D, clip: Clip) -> Tensor:
    """Compute the flow [2, Y, X] of the current frame of one clip, on the CPU."""
    features = model.images(clip)
    return model.velocities(features, model.lift.depth(features, clip), clip)[0, -1].cpu()


def main() -> None:
    """Score the newest checkpoint of a run, and print one line."""
    folder = RunFolder(tyro.cli(Options).run)
    config = folder.read_config()
    model = trained_model(folder)
    if not isinstance(model, MIM4D) or model.flow is None:
        raise UserError(f"{folder.root} has no flow: it needs a run with --method.loss.flow above 0")
    _, held_out = open_data(config, Accelerator(cpu=True))
    if held_out is None:
        raise UserError(f"{folder.root} has no held-out scenes: name them by --val-split")
    annotations = Annotations(held_out.root, config.version, held_out.reference)
    model.eval()
    found = score(
        [(current_flow(model, clip), boxes) for clip, boxes in key_frames(held_out, annotations)], config.method.grid
    )
    print(
        f"{found.moving} moving vehicles: error {found.error:.2f} m/s, zero flow {found.zero:.2f} m/s; "
        f"{found.still} others: error {found.still_error:.2f} m/s"
    )


if __name__ == "__main__":
    with report_user_errors():
        main()

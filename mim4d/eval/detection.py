"""3D detection by a centre-based BEV head, scored by the nuscenes-devkit.

Objects as points (CenterPoint, arXiv 2006.11275, section 4.1): one heatmap per class, whose peaks are the centres of
boxes, and at each peak offset, height, size, yaw, velocity and attribute. The devkit's ``DetectionEval`` computes mAP,
NDS and the five errors from a file in the official submission format.
"""

import contextlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import UserError
from ..geometry import VoxelGrid, constant
from ..io.tensors import first_line
from .augmentation import BEVAugmentation
from .labels import ATTRIBUTES, BOX, CLASSES, Annotations, footprints, write_json
from .task import Figures, extent, upsampled

REGRESSED = 10
"""Regressed values: offset x, y in cells; z in metres; log of length, width, height in metres; sine and cosine of yaw;
velocity x, y in m/s."""
CHANNELS = len(CLASSES) + REGRESSED + len(ATTRIBUTES)
MAX_BOXES = 300
"""Largest number of boxes per sample; the devkit allows 500."""
ERRORS = {"trans_err": "mATE", "scale_err": "mASE", "orient_err": "mAOE", "vel_err": "mAVE", "attr_err": "mAAE"}
SUBMISSION = "submission.json"
PREDICTED = np.dtype([*BOX.descr, ("score", "f8")])
"""A box of :data:`mim4d.eval.labels.BOX` and its score, 0 to 1."""


@dataclass(frozen=True)
class DetectionTarget:
    """Target of one sample with N boxes in the grid."""

    heat: Tensor
    """[classes, Y, X], 1 at the cells of the boxes' centres."""
    cells: Tensor
    """[N, 2] int64: row and column of each box's centre."""
    values: Tensor
    """[N, REGRESSED], NaN where unknown."""
    attributes: Tensor
    """[N] int64, -1 for none."""


class Detection:
    """The task. The ground truth of a sample is its boxes [N] of :data:`BOX` of the ten classes that contain points.

    Boxes without LiDAR or radar points are not trained on, because the devkit does not score them.
    """

    name = "det3d"
    grid = VoxelGrid(x=(-51.2, 51.2), y=(-51.2, 51.2), z=(-3.2, 4.8), voxel=(0.8, 0.8, 8.0))

    def read(self, annotations: Annotations, token: str) -> NDArray[np.void]:
        """Read the boxes of a sample."""
        boxes = annotations.boxes(token)
        return boxes[(boxes["label"] >= 0) & (boxes["points"] > 0)]

    def target(self, truth: NDArray[np.void], augmentation: BEVAugmentation) -> DetectionTarget:
        """Turn the augmented boxes in the grid into a heatmap and the values at its peaks."""
        boxes = augmentation.boxes(truth)
        low, cell = np.array([self.grid.x[0], self.grid.y[0]]), np.array(self.grid.voxel[:2])
        _, height, width = self.grid.shape
        places = (boxes["center"][:, :2] - low) / cell
        inside = ((places >= 0) & (places < (width, height))).all(1)
        boxes, places = boxes[inside], places[inside]
        columns_rows = places.astype(np.int64)
        values = np.concatenate(
            [
                places - columns_rows - 0.5,
                boxes["center"][:, 2:],
                np.log(boxes["size"]),
                np.stack([np.sin(boxes["yaw"]), np.cos(boxes["yaw"])], axis=-1),
                boxes["velocity"],
            ],
            axis=1,
        )
        return DetectionTarget(
            heat=torch.from_numpy(self._heat(boxes, columns_rows)),
            cells=torch.from_numpy(columns_rows[:, ::-1].copy()),
            values=torch.from_numpy(values).float(),
            attributes=torch.from_numpy(boxes["attribute"].astype(np.int64)),
        )

    def _heat(self, boxes: NDArray[np.void], columns_rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the maximum of one Gaussian per box [classes, Y, X]: 0.8 cells wide, wider for large boxes."""
        _, height, width = self.grid.shape
        reach = 0.15 * np.sqrt(boxes["size"][:, 0] * boxes["size"][:, 1]) / self.grid.voxel[0]
        spread = np.maximum(0.8, reach)[:, None]
        across = np.exp(-0.5 * ((np.arange(width) - columns_rows[:, :1]) / spread) ** 2)
        along = np.exp(-0.5 * ((np.arange(height) - columns_rows[:, 1:]) / spread) ** 2)
        heat = np.zeros((len(CLASSES), height, width), dtype=np.float32)
        for label, row, column in zip(boxes["label"], along, across, strict=True):
            np.maximum(heat[label], np.outer(row, column), out=heat[label])
        return heat

    def head(self, channels: int, up: int, examples: Iterable[Any]) -> nn.Module:
        """Build a head that returns [B, CHANNELS, Y, X]: logits of the heatmaps, values, logits of the attributes."""
        bias = torch.zeros(CHANNELS)
        bias[: len(CLASSES)] = -4.0  # few cells are peaks
        return upsampled(channels, up, bias)

    def loss(self, output: Tensor, targets: list[DetectionTarget]) -> Tensor:
        """Return the focal loss of the heatmaps (arXiv 1808.01244, eq. 1) plus L1 and cross-entropy at the peaks.

        Args:
            output: [B, CHANNELS, Y, X].
            targets: B targets, of N boxes in total.
        """
        output = output.float()
        device = output.device
        heat = torch.stack([target.heat for target in targets]).to(device)  # [B, classes, Y, X]
        logits = output[:, : len(CLASSES)]  # [B, classes, Y, X]
        probability, peak = logits.sigmoid(), heat == 1
        at_peak = -F.logsigmoid(logits) * (1 - probability) ** 2
        elsewhere = -F.logsigmoid(-logits) * probability**2 * (1 - heat) ** 4
        focal = torch.where(peak, at_peak, elsewhere).sum() / peak.sum().clamp(min=1)

        sample = torch.repeat_interleave(torch.tensor([len(target.cells) for target in targets])).to(device)  # [N]
        rows, columns = torch.cat([target.cells for target in targets]).to(device).unbind(1)
        predicted = output[sample, len(CLASSES) :, rows, columns]  # [N, REGRESSED + attributes]
        values = torch.cat([target.values for target in targets]).to(device)  # [N, REGRESSED]
        known = values.isfinite()
        error = (predicted[:, :REGRESSED] - values.nan_to_num()).abs() * known
        weights = constant([1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2], error)  # as CenterPoint
        count = max(1, len(values))
        attributes = torch.cat([target.attributes for target in targets]).to(device)  # [N]
        entropy = F.cross_entropy(predicted[:, REGRESSED:], attributes, ignore_index=-1, reduction="sum")
        return focal + 0.25 * (error * weights).sum() / count + 0.2 * entropy / count

    def boxes(self, output: Tensor) -> list[NDArray[np.void]]:
        """Return the predicted boxes [N] of :data:`PREDICTED` of each sample, in descending order of scores.

        Args:
            output: [B, CHANNELS, Y, X].
        """
        logits = output[:, : len(CLASSES)].float()  # [B, classes, Y, X]
        peaks = logits.masked_fill(logits < F.max_pool2d(logits, 3, stride=1, padding=1), -torch.inf)
        scores, flat = peaks.flatten(1).topk(MAX_BOXES)  # [B, MAX_BOXES] each
        _, height, width = self.grid.shape
        label, cell = flat // (height * width), flat % (height * width)
        row, column = cell // width, cell % width
        batch = torch.arange(len(output), device=output.device)[:, None]
        # [B, MAX_BOXES, REGRESSED + attributes]
        values = output[batch, len(CLASSES) :, row, column].float().cpu().double().numpy()
        boxes = np.zeros(scores.shape, PREDICTED)
        cells = torch.stack([column, row], dim=-1).cpu().numpy() + 0.5 + values[..., :2]  # [B, MAX_BOXES, 2]
        boxes["center"][..., :2] = cells * self.grid.voxel[:2] + (self.grid.x[0], self.grid.y[0])
        boxes["center"][..., 2] = values[..., 2]
        boxes["size"] = np.exp(values[..., 3:6].clip(-3, 4))
        boxes["yaw"] = np.arctan2(values[..., 6], values[..., 7])
        boxes["velocity"] = values[..., 8:10]
        boxes["label"] = label.cpu().numpy()
        boxes["attribute"] = _likeliest(values[..., REGRESSED:], boxes["label"])
        boxes["score"] = scores.sigmoid().cpu().numpy()
        return [sample[sample["score"] > 0] for sample in boxes]  # a cell that is no peak has a score of 0

    def scores(self, annotations: Annotations, split: str) -> "DetectionScores":
        """Return an empty score; see :class:`DetectionScores` for errors."""
        return DetectionScores(self, annotations, split)

    def draw(self, axis: Axes, truth: NDArray[np.void], output: Tensor | None) -> None:
        """Draw boxes from above with a line along their yaw; predicted ones are the paler the lower their score."""
        boxes = truth if output is None else self.boxes(output)[0]
        axis.set_facecolor("whitesmoke")
        for box, shape in zip(boxes, footprints(boxes), strict=True):
            alpha = float(box["score"]) ** 0.5 if "score" in (box.dtype.names or ()) else 1.0
            if alpha > 0.3:
                x, y = np.array(shape.exterior.coords).T
                colour = f"C{box['label']}"
                axis.plot(y, x, color=colour, alpha=alpha, linewidth=1.0)
                tip = box["center"][:2] + 0.5 * box["size"][0] * np.array([np.cos(box["yaw"]), np.sin(box["yaw"])])
                axis.plot(
                    [box["center"][1], tip[1]], [box["center"][0], tip[0]], color=colour, alpha=alpha, linewidth=1.0
                )
        left, right, low, high = extent(self.grid)
        axis.set_xlim(left, right)
        axis.set_ylim(low, high)


def _likeliest(logits: NDArray[np.float64], labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the most probable attribute that a class can have, [...] for labels [...]; -1 for classes without any."""
    from nuscenes.eval.detection.utils import detection_name_to_rel_attributes

    fits = np.array([[name in detection_name_to_rel_attributes(label) for name in ATTRIBUTES] for label in CLASSES])
    best = np.where(fits[labels], logits, -np.inf).argmax(-1)
    return np.where(fits[labels].any(-1), best, -1)


class DetectionScores:
    """Collects predicted boxes for the devkit."""

    def __init__(self, task: Detection, annotations: Annotations, split: str) -> None:
        """Check that the devkit can score a split.

        Raises:
            UserError: If it cannot.
        """
        from nuscenes.eval.common.loaders import get_samples_of_custom_split, load_gt, load_gt_of_sample_tokens
        from nuscenes.eval.detection.data_classes import DetectionBox
        from nuscenes.utils.splits import is_predefined_split

        try:
            # DetectionEval will read the same, and rejects unknown splits and attributes.
            with contextlib.redirect_stderr(io.StringIO()):
                if is_predefined_split(split):
                    load_gt(annotations.nusc, split, DetectionBox)
                else:
                    tokens = get_samples_of_custom_split(split, annotations.nusc)
                    load_gt_of_sample_tokens(annotations.nusc, tokens, DetectionBox)
        except Exception as error:  # the devkit uses assert, and raises KeyErrors
            raise UserError(f"the nuscenes-devkit cannot score the split {split}: {first_line(error)}") from error
        self._task, self._annotations, self._split = task, annotations, split
        self._boxes: dict[str, NDArray[np.void]] = {}

    def add(self, output: Tensor, truths: list[Any], tokens: list[str]) -> None:
        """Add a batch of outputs [B, CHANNELS, Y, X]."""
        self._boxes |= dict(zip(tokens, self._task.boxes(output), strict=True))

    def result(self, out: Path) -> Figures:
        """Write the submission into ``out`` and return the metrics of :func:`score_submission`."""
        write_submission(out / SUBMISSION, self._annotations, self._boxes)
        return score_submission(out / SUBMISSION, self._annotations, self._split, out)


def write_submission(path: Path, annotations: Annotations, boxes: dict[str, NDArray[np.void]]) -> None:
    """Write boxes in nuScenes' submission format.

    Args:
        path: The file.
        annotations: Annotations of the root.
        boxes: [N] of :data:`PREDICTED` in the ego frame by sample token, for every sample of the split.

    Raises:
        UserError: If the file cannot be written.
    """
    meta = {f"use_{what}": what == "camera" for what in ("camera", "lidar", "radar", "map", "external")}
    results = {token: _records(annotations, token, rows) for token, rows in boxes.items()}
    if results and not any(results.values()):
        # The devkit refuses a file without any box. This one is out of every class's range, so it is not scored.
        far = np.zeros(1, PREDICTED)
        far["center"], far["size"], far["attribute"] = 1e4, 1.0, -1
        token = next(iter(results))
        results[token] = _records(annotations, token, far)
    write_json(path, {"meta": meta, "results": results})


def _records(annotations: Annotations, token: str, boxes: NDArray[np.void]) -> list[dict[str, Any]]:
    """Return the records of a sample's boxes, in the global frame."""
    from pyquaternion import Quaternion

    global_from_ego = annotations.global_from_ego(token)
    rotation = global_from_ego[:3, :3]
    orientation = Quaternion(matrix=rotation)
    records = []
    for box in boxes:
        length, width, height = (float(side) for side in box["size"])
        box_orientation = orientation * Quaternion(axis=(0, 0, 1), radians=box["yaw"])
        records.append(
            {
                "sample_token": token,
                "translation": (rotation @ box["center"] + global_from_ego[:3, 3]).tolist(),
                "size": [width, length, height],
                "rotation": box_orientation.elements.tolist(),
                "velocity": (rotation @ [*np.nan_to_num(box["velocity"]), 0.0])[:2].tolist(),
                "detection_name": CLASSES[box["label"]],
                "detection_score": float(box["score"]),
                "attribute_name": ATTRIBUTES[box["attribute"]] if box["attribute"] >= 0 else "",
            }
        )
    return records


def score_submission(path: Path, annotations: Annotations, split: str, out: Path) -> Figures:
    """Score a submission file with the devkit.

    Args:
        path: The file.
        annotations: Annotations of the root.
        split: An official split of the root's version, or a split of its ``splits.json``.
        out: Folder for the devkit's ``metrics_summary.json``.

    Returns:
        ``NDS``, ``mAP``, the errors ``mATE`` (m), ``mASE`` (1 - IoU), ``mAOE`` (rad), ``mAVE`` (m/s), ``mAAE``
        (fraction) and ``AP_<class>``; ``mAP_uncut`` and ``AP_uncut_<class>``, the mean precision over recall. nuScenes'
        own AP ignores precision and recall below 10 %, so that all weak detectors score 0.

    Raises:
        UserError: If the devkit does not know the split, or the file does not fit it.
    """
    import matplotlib

    with matplotlib.rc_context():
        from nuscenes.eval.common.config import config_factory
        from nuscenes.eval.detection.evaluate import DetectionEval
    settings = config_factory("detection_cvpr_2019")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            evaluation = DetectionEval(annotations.nusc, settings, str(path), split, str(out), verbose=False)
            summary = evaluation.main(plot_examples=0, render_curves=False)
    except Exception as error:  # the devkit uses assert, and raises bare Exceptions
        raise UserError(f"the nuscenes-devkit cannot score {path} on the split {split}: {error}") from error
    with contextlib.suppress(OSError):  # the devkit makes it; it stays if other files are in it
        (out / "plots").rmdir()
    curves = json.loads((out / "metrics_details.json").read_text())
    uncut = {n: np.mean([curves[f"{n}:{d}"]["precision"][1:] for d in settings.dist_ths]) for n in CLASSES}
    return {
        "NDS": summary["nd_score"],
        "mAP": summary["mean_ap"],
        **{name: summary["tp_errors"][error] for error, name in ERRORS.items()},
        "mAP_uncut": float(np.mean(list(uncut.values()))),
        **{f"AP_{name}": value for name, value in summary["mean_dist_aps"].items()},
        **{f"AP_uncut_{name}": float(value) for name, value in uncut.items()},
    }

"""3D detection by a centre-based BEV head, scored by the nuscenes-devkit.

Objects as points (CenterPoint, arXiv 2006.11275, section 4.1): a heatmap a class whose peaks are the boxes' middles,
and at each peak what remains: offset, height, size, heading, velocity, attribute. The devkit's ``DetectionEval``
computes mAP, NDS and the five errors from a file in the official submission format.
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
"""Offset x, y in cells; z in metres; log of length, width, height; sine and cosine of yaw; velocity x, y in m/s."""
CHANNELS = len(CLASSES) + REGRESSED + len(ATTRIBUTES)
MOST = 300
"""Boxes a sample; the devkit allows 500."""
ERRORS = {"trans_err": "mATE", "scale_err": "mASE", "orient_err": "mAOE", "vel_err": "mAVE", "attr_err": "mAAE"}
SUBMISSION = "submission.json"
PREDICTED = np.dtype([*BOX.descr, ("score", "f8")])
"""A box of :data:`mim4d.eval.labels.BOX` and how sure the model is of it, 0 to 1."""


@dataclass(frozen=True)
class DetectionTarget:
    """Of one sample with N boxes in the grid."""

    heat: Tensor
    """[classes, Y, X], 1 at the cells of the boxes' middles."""
    cells: Tensor
    """[N, 2] int64: row and column of each box's middle."""
    values: Tensor
    """[N, REGRESSED], NaN where not known."""
    attributes: Tensor
    """[N] int64, -1 for none."""


class Detection:
    """The task; a kept sample is its boxes [N] of :data:`BOX`, as far as they are of the ten classes and have points.

    The devkit leaves out boxes without LiDAR or radar points, so they are not learnt either.
    """

    name = "det3d"
    grid = VoxelGrid(x=(-51.2, 51.2), y=(-51.2, 51.2), z=(-3.2, 4.8), voxel=(0.8, 0.8, 8.0))

    def read(self, annotations: Annotations, token: str) -> NDArray[np.void]:
        """The boxes."""
        boxes = annotations.boxes(token)
        return boxes[(boxes["label"] >= 0) & (boxes["points"] > 0)]

    def target(self, kept: NDArray[np.void], augmentation: BEVAugmentation) -> DetectionTarget:
        """The boxes in the grid as a heatmap and what its peaks are to say."""
        boxes = augmentation.boxes(kept)
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
        """Gaussians of a little under a cell, wider for long things; where several reach, the highest counts."""
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
        """Maps [B, CHANNELS, Y, X]: logits of the heat, REGRESSED, logits of the attributes."""
        bias = torch.zeros(CHANNELS)
        bias[: len(CLASSES)] = -4.0  # hardly a cell is a peak
        return upsampled(channels, up, bias)

    def loss(self, output: Tensor, targets: list[DetectionTarget]) -> Tensor:
        """CornerNet's focal loss of the heat (arXiv 1808.01244, eq. 1), L1 and cross-entropy at the peaks."""
        output = output.float()
        device = output.device
        heat = torch.stack([target.heat for target in targets]).to(device)
        logits = output[:, : len(CLASSES)]
        share, peak = logits.sigmoid(), heat == 1
        near = -F.logsigmoid(logits) * (1 - share) ** 2
        far = -F.logsigmoid(-logits) * share**2 * (1 - heat) ** 4
        focal = torch.where(peak, near, far).sum() / peak.sum().clamp(min=1)

        sample = torch.repeat_interleave(torch.tensor([len(target.cells) for target in targets])).to(device)
        rows, columns = torch.cat([target.cells for target in targets]).to(device).unbind(1)
        found = output[sample, len(CLASSES) :, rows, columns]  # [N, REGRESSED + attributes]
        values = torch.cat([target.values for target in targets]).to(device)
        known = values.isfinite()
        apart = (found[:, :REGRESSED] - values.nan_to_num()).abs() * known
        weights = constant([1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2], apart)  # as CenterPoint
        count = max(1, len(values))
        attributes = torch.cat([target.attributes for target in targets]).to(device)
        named = F.cross_entropy(found[:, REGRESSED:], attributes, ignore_index=-1, reduction="sum")
        return focal + 0.25 * (apart * weights).sum() / count + 0.2 * named / count

    def boxes(self, output: Tensor) -> list[NDArray[np.void]]:
        """The boxes [N] of :data:`PREDICTED` of each sample of an output, most confident first."""
        logits = output[:, : len(CLASSES)].float()
        peaks = logits.masked_fill(logits < F.max_pool2d(logits, 3, stride=1, padding=1), -torch.inf)
        scores, places = peaks.flatten(1).topk(MOST)  # [B, MOST]
        _, height, width = self.grid.shape
        label, rest = places // (height * width), places % (height * width)
        row, column = rest // width, rest % width
        batch = torch.arange(len(output), device=output.device)[:, None]
        values = output[batch, len(CLASSES) :, row, column].float().cpu().double().numpy()
        found = np.zeros(scores.shape, PREDICTED)
        cells = torch.stack([column, row], dim=-1).cpu().numpy() + 0.5 + values[..., :2]
        found["center"][..., :2] = cells * self.grid.voxel[:2] + (self.grid.x[0], self.grid.y[0])
        found["center"][..., 2] = values[..., 2]
        found["size"] = np.exp(values[..., 3:6].clip(-3, 4))
        found["yaw"] = np.arctan2(values[..., 6], values[..., 7])
        found["velocity"] = values[..., 8:10]
        found["label"] = label.cpu().numpy()
        found["attribute"] = _likeliest(values[..., REGRESSED:], found["label"])
        found["score"] = scores.sigmoid().cpu().numpy()
        return [row[row["score"] > 0] for row in found]  # where there is no peak it is 0

    def scores(self, annotations: Annotations, split: str) -> "DetectionScores":
        """An empty collection."""
        return DetectionScores(self, annotations, split)

    def draw(self, axis: Axes, kept: NDArray[np.void], output: Tensor | None) -> None:
        """Boxes from above with a line towards where they head; predicted ones the paler the less sure."""
        boxes = kept if output is None else self.boxes(output)[0]
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
    """The likeliest attribute that goes with a class, -1 for classes that have none."""
    from nuscenes.eval.detection.utils import detection_name_to_rel_attributes

    fits = np.array([[name in detection_name_to_rel_attributes(label) for name in ATTRIBUTES] for label in CLASSES])
    best = np.where(fits[labels], logits, -np.inf).argmax(-1)
    return np.where(fits[labels].any(-1), best, -1)


class DetectionScores:
    """Collects boxes for the devkit."""

    def __init__(self, task: Detection, annotations: Annotations, split: str) -> None:
        """Score ``split`` of a root.

        Raises:
            UserError: If the devkit does not know it.
        """
        from nuscenes.eval.common.loaders import get_samples_of_custom_split, load_gt, load_gt_of_sample_tokens
        from nuscenes.eval.detection.data_classes import DetectionBox
        from nuscenes.utils.splits import is_predefined_split

        try:
            # What DetectionEval will read: it knows neither all splits nor all attributes.
            with contextlib.redirect_stderr(io.StringIO()):
                if is_predefined_split(split):
                    load_gt(annotations.nusc, split, DetectionBox)
                else:
                    tokens = get_samples_of_custom_split(split, annotations.nusc)
                    load_gt_of_sample_tokens(annotations.nusc, tokens, DetectionBox)
        except Exception as error:  # it asserts, and raises KeyErrors
            raise UserError(f"the nuscenes-devkit cannot score the split {split}: {first_line(error)}") from error
        self._task, self._annotations, self._split = task, annotations, split
        self._boxes: dict[str, NDArray[np.void]] = {}

    def add(self, output: Tensor, kept: list[Any], tokens: list[str]) -> None:
        """Add a batch."""
        self._boxes |= dict(zip(tokens, self._task.boxes(output), strict=True))

    def result(self, out: Path) -> Figures:
        """``NDS``, ``mAP`` and the errors; leaves the submission and the devkit's summary in ``out``."""
        write_submission(out / SUBMISSION, self._annotations, self._boxes)
        return score_submission(out / SUBMISSION, self._annotations, self._split, out)


def write_submission(path: Path, annotations: Annotations, boxes: dict[str, NDArray[np.void]]) -> None:
    """Write boxes in nuScenes' submission format.

    Args:
        path: The file.
        annotations: Of the root they belong to.
        boxes: [N] of :data:`PREDICTED` in the ego frame, by sample; every sample of the split has to be there.

    Raises:
        UserError: If the disk refuses.
    """
    meta = {f"use_{what}": what == "camera" for what in ("camera", "lidar", "radar", "map", "external")}
    results = {token: _records(annotations, token, rows) for token, rows in boxes.items()}
    if results and not any(results.values()):
        # The devkit refuses a file without any box, so one stands where it counts neither way: out of every range.
        nowhere = np.zeros(1, PREDICTED)
        nowhere["center"], nowhere["size"], nowhere["attribute"] = 1e4, 1.0, -1
        token = next(iter(results))
        results[token] = _records(annotations, token, nowhere)
    write_json(path, {"meta": meta, "results": results})


def _records(annotations: Annotations, token: str, boxes: NDArray[np.void]) -> list[dict[str, Any]]:
    """A sample's boxes, in the global frame."""
    from pyquaternion import Quaternion

    global_from_ego = annotations.global_from_ego(token)
    turn = global_from_ego[:3, :3]
    in_global = Quaternion(matrix=turn)
    records = []
    for box in boxes:
        length, width, height = (float(side) for side in box["size"])
        rotation = in_global * Quaternion(axis=(0, 0, 1), radians=box["yaw"])
        records.append(
            {
                "sample_token": token,
                "translation": (turn @ box["center"] + global_from_ego[:3, 3]).tolist(),
                "size": [width, length, height],
                "rotation": rotation.elements.tolist(),
                "velocity": (turn @ [*np.nan_to_num(box["velocity"]), 0.0])[:2].tolist(),
                "detection_name": CLASSES[box["label"]],
                "detection_score": float(box["score"]),
                "attribute_name": ATTRIBUTES[box["attribute"]] if box["attribute"] >= 0 else "",
            }
        )
    return records


def score_submission(path: Path, annotations: Annotations, split: str, out: Path) -> Figures:
    """Let the devkit score a submission file.

    Args:
        path: The file.
        annotations: Of the root.
        split: One that the devkit knows for the root's version, or one of its ``splits.json``.
        out: Folder for the devkit's ``metrics_summary.json``.

    Returns:
        ``NDS``, ``mAP``, the errors ``mATE`` (m), ``mASE`` (1 - IoU), ``mAOE`` (rad), ``mAVE`` (m/s), ``mAAE`` (share)
        and ``AP_<class>``; ``mAP_uncut`` and ``AP_uncut_<class>``, the mean precision over recall: nuScenes' AP counts
        alone what is above 10 % of each, so that weak detectors all have 0.

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
            judge = DetectionEval(annotations.nusc, settings, str(path), split, str(out), verbose=False)
            summary = judge.main(plot_examples=0, render_curves=False)
    except Exception as error:  # it asserts, and raises bare Exceptions
        raise UserError(f"the nuscenes-devkit cannot score {path} on the split {split}: {error}") from error
    with contextlib.suppress(OSError):  # of the devkit; empty, but where something else was before
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

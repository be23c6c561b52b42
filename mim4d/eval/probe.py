"""Ridge probes: what can be read from a frozen backbone's maps by a linear function, solved in closed form.

Targets in the image, one per cell of the feature map at the first stride of 8 pixels or more:

``depth``
    The logarithm of the depth of the cell's nearest LiDAR point along the optical axis, 1 to 60 m.
``vehicle``
    Whether the ray through the cell's centre hits the box of a vehicle. Not if a LiDAR point in the cell that is more
    than 0.5 m above the ground is more than 1 m nearer than where the ray enters the box.
``drivable``
    Whether that ray meets the ground in the drivable area. Not if a vehicle, or a LiDAR point as above, is nearer.
    Cells whose rays meet the ground outside the range of 50 m do not count.

In BEV, in cells of 1 m, 50 m to each side, of the maps that two voxels above a cell sample: ``vehicle`` and
``drivable``, whether the centre of the cell lies in such a shape. Vehicles less visible than ``min_visibility`` do not
count, neither do cells that no camera sees.

There is no trained part: no seed of weights, no schedule. Of the labelled samples, the last quarter (of the scenes, if
there are several) chooses the penalty and the threshold of the IoU.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..clip import Clip
from ..geometry import VoxelGrid, box_interval, constant, invert, pixel_rays, project, transform
from .labels import Annotations, footprints, rasterise
from .ridge import Gram, average_precision, best_threshold, fit, intersection_over_union, r_squared
from .task import Figures
from .view import voxel_projections

STRIDE = 8
"""Smallest stride of the cells, pixels."""
DEPTHS = (1.0, 60.0)
"""Range of depths that count, metres."""
RAISED, MARGIN = 0.5, 1.0
"""A LiDAR point higher above the ground than the first hides what is farther by the second, metres."""
FINE = VoxelGrid(x=(-50.0, 50.0), y=(-50.0, 50.0), z=(-1.0, 3.0), voxel=(0.5, 0.5, 4.0))
"""Raster in which rays look up the drivable area."""
BEV = VoxelGrid(x=(-50.0, 50.0), y=(-50.0, 50.0), z=(-1.0, 3.0), voxel=(1.0, 1.0, 2.0))
"""Cells in BEV, and the two voxels above each."""
WAVES = 6
"""Number of cosines along each axis in the features of position."""
PATCH = 4
"""Number of colours along each side of a cell in the features of raw pixels."""
ROWS = 2000
"""Largest number of cells per sample to fit for each of depth, image and BEV, chosen at random; all are scored."""
FIGURES = (
    *("depth_r2", "depth_abs_rel", "vehicle_ap", "drivable_ap"),
    *("bev_vehicle_ap", "bev_vehicle_iou", "bev_drivable_iou"),
)
"""Figures that a probe measures, 0 to 1."""
POSITION, PIXELS, ALL = "position alone", "raw pixels", "all stages"
"""Names of the two baseline features, which need no backbone, and of all maps together."""


class Rows(NamedTuple):
    """Cells to fit or to score."""

    features: Tensor
    """[cells, C] float32."""
    targets: Tensor
    """[cells, K] float32."""


Observation = Mapping[str, Rows]
"""Cells of one sample for ``depth`` (K = 1), and for ``image`` and ``bev`` (K = 2: vehicle and drivable, 0 or 1)."""


class ProbeTruth(NamedTuple):
    """Ground truth of a sample."""

    seen: NDArray[np.void]
    """Vehicles that count, [boxes] of :data:`mim4d.eval.labels.BOX`."""
    hidden: NDArray[np.void]
    """Vehicles that are hardly visible, [boxes] of the same type."""
    drivable: NDArray[np.bool_] | None
    """[Y, X] of :data:`FINE`; None without a map."""
    bev: NDArray[np.bool_]
    """[3, Y, X] of :data:`BEV`: vehicle, drivable, and whether the cell counts."""


class ProbeReader:
    """Reader of the ground truth of probes."""

    name = "probe"

    def __init__(self, min_visibility: int = 2) -> None:
        """Count vehicles of nuScenes' visibility ``min_visibility`` (1 to 4) and up."""
        self.min_visibility = min_visibility

    def read(self, annotations: Annotations, token: str) -> ProbeTruth:
        """Read the boxes and the drivable area; a location without a map has none."""
        boxes = annotations.boxes(token)
        boxes = boxes[boxes["vehicle"]]
        visible = boxes["visibility"] >= self.min_visibility
        seen, hidden = boxes[visible], boxes[~visible]
        shapes = None
        if annotations.has_map(token):
            shapes = annotations.map_layers(token, ("drivable",), FINE.x[1] + 1)["drivable"]
        vehicle = rasterise(footprints(seen), BEV)
        counts = vehicle | ~rasterise(footprints(hidden), BEV)
        drivable = rasterise(shapes or [], BEV)
        fine = None if shapes is None else rasterise(shapes, FINE)
        return ProbeTruth(seen, hidden, fine, np.stack([vehicle, drivable, counts]))


class Cells(NamedTuple):
    """Targets of the cells of all V maps of a sample, each [V, h, w]."""

    depth: Tensor
    """Depth of the nearest LiDAR point, metres; inf without one."""
    vehicle: Tensor
    """Bool, as all fields below."""
    drivable: Tensor
    counts: Tensor
    """Whether vehicle and drivable count."""


def image_cells(clip: Clip, truth: ProbeTruth, size: tuple[int, int]) -> Cells:
    """Compute the targets in the images; the module's docstring defines them.

    Args:
        clip: One clip of one frame, with its LiDAR.
        truth: Its annotations.
        size: (h, w) of the maps.
    """
    intrinsics, pose = clip.intrinsics[0, -1], clip.ego_from_camera[0, -1]  # [V, 3, 3], [V, 4, 4]
    (height, width), (h, w) = clip.image_size, size
    points = clip.points[0, -1, : int(clip.num_points[0, -1])]  # [P, 3]
    nearest = nearest_depth(points, clip, size)  # [V, h*w]
    raised = nearest_depth(points[points[:, 2] > RAISED], clip, size)  # [V, h*w]
    v, u = torch.meshgrid(
        (torch.arange(h, device=clip.device) + 0.5) * height / h,
        (torch.arange(w, device=clip.device) + 0.5) * width / w,
        indexing="ij",
    )
    origins, rays = pixel_rays(torch.stack([u, v], dim=-1).flatten(0, 1), intrinsics, pose)  # [V, h*w, 3] each
    along = (rays * pose[:, None, :3, 2]).sum(-1)  # [V, h*w], depth per metre of the ray
    seen, hidden = (_entry(origins, rays, boxes) * along for boxes in (truth.seen, truth.hidden))  # inf: none
    vehicle = seen < raised + MARGIN
    vehicle &= seen.isfinite()
    # Where the ray meets the ground, z = 0.
    falls = rays[..., 2] < -1e-6
    to_ground = torch.where(falls, -origins[..., 2] / rays[..., 2].clamp(max=-1e-6), 0)  # [V, h*w]
    on_ground = origins + to_ground[..., None] * rays  # [V, h*w, 3]
    inside = FINE.contains(on_ground) & falls
    free = (to_ground * along < raised + MARGIN) & (to_ground * along < torch.minimum(seen, hidden))
    drivable = torch.zeros_like(inside)
    if truth.drivable is not None:
        x, y, _ = FINE.index_of(on_ground).round().long().unbind(-1)
        last = len(truth.drivable) - 1
        raster = torch.from_numpy(truth.drivable).to(clip.device)
        drivable = inside & free & raster[y.clamp(0, last), x.clamp(0, last)]
    covered = (hidden < raised + MARGIN) & hidden.isfinite() & ~vehicle
    counts = (inside | ~falls | vehicle) & ~covered
    return Cells(*(x.unflatten(1, size) for x in (nearest, vehicle, drivable, counts)))


def nearest_depth(points: Tensor, clip: Clip, size: tuple[int, int]) -> Tensor:
    """Depth of the nearest of ``points`` [P, 3] (ego frame) in each cell, [V, h*w] metres; inf where there is none."""
    pixels, depth = project(clip.intrinsics[0, -1], transform(invert(clip.ego_from_camera[0, -1]), points))
    (height, width), (h, w) = clip.image_size, size
    column, row = (pixels / constant((width / w, height / h), pixels)).floor().unbind(-1)  # [V, P] each
    inside = (depth > 0) & (column >= 0) & (column < w) & (row >= 0) & (row < h)
    camera = torch.arange(clip.num_cameras, device=clip.device)[:, None].expand_as(depth)
    cell = ((camera * h + row) * w + column)[inside].long()
    found = depth.new_full((clip.num_cameras * h * w,), torch.inf)
    return found.scatter_reduce_(0, cell, depth[inside], "amin").view(clip.num_cameras, h * w)


def _entry(origins: Tensor, rays: Tensor, boxes: NDArray[np.void]) -> Tensor:
    """Metres along rays [..., 3] to the first of some boxes; inf for rays that hit none."""
    first = torch.full_like(rays[..., 0], torch.inf)
    for box in boxes:
        cos, sin = math.cos(box["yaw"]), math.sin(box["yaw"])
        box_from_ego = rays.new_tensor([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        half = torch.from_numpy(box["size"].copy()).to(rays) / 2
        center = torch.from_numpy(box["center"].copy()).to(rays)
        near, far = box_interval((origins - center) @ box_from_ego.T, rays @ box_from_ego.T, -half, half)
        first = torch.where(near < far, torch.minimum(first, near), first)
    return first


def columns_of(strides: Sequence[int], channels: Sequence[int], heights: int) -> dict[str, slice]:
    """Where the features of each kind stand among the columns that :class:`Observer` makes.

    Args:
        strides: Of the maps, pixels.
        channels: Of the maps.
        heights: Values per channel: 1 in the image, the voxels above a cell in BEV. Position has one.
    """
    names = [PIXELS, *(f"stride {stride}" for stride in strides)]
    found, end = {POSITION: slice(0, WAVES**2)}, WAVES**2
    for name, count in zip(names, (3 * PATCH**2, *channels), strict=True):
        found[name] = slice(end, end := end + count * heights)
    return {**found, ALL: slice(found[PIXELS].stop, end)}


def _waves(y: Tensor, x: Tensor) -> Tensor:
    """Features of position ``y``, ``x`` [cells] in 0 to 1: products of cosines along both axes, [cells, WAVES**2]."""
    order = torch.arange(WAVES, device=x.device) * math.pi
    down, across = (torch.cos(place[:, None] * order) for place in (y, x))  # [cells, WAVES] each
    return (down[:, :, None] * across[:, None]).flatten(1)


class Observer:
    """Makes the features and targets of a sample's cells from a backbone's maps."""

    def __init__(self, strides: Sequence[int], channels: Sequence[int]) -> None:
        """Take the strides and channels of the maps, coarsest last."""
        self.stride = next((stride for stride in strides if stride >= STRIDE), strides[-1])
        image, bev = (columns_of(strides, channels, heights) for heights in (1, BEV.shape[0]))
        self.columns = {"depth": image, "image": image, "bev": bev}
        """Columns of each kind of cells, by name of the features."""

    def __call__(
        self, maps: Sequence[Tensor], clip: Clip, truth: ProbeTruth, rows: int | None, seed: int
    ) -> Observation:
        """Return the cells of one sample.

        Args:
            maps: [V, C_i, h_i, w_i], coarsest last.
            clip: One clip of one frame, with its LiDAR.
            truth: Its annotations.
            rows: Largest number of cells of each kind, chosen at random; None for all.
            seed: Of the draw.
        """
        height, width = clip.image_size
        size = height // self.stride, width // self.stride
        images = F.adaptive_avg_pool2d(clip.images[0, -1].float() / 255, (PATCH * size[0], PATCH * size[1]))
        levels = [F.pixel_unshuffle(images, PATCH), *(resampled(x.float(), size) for x in maps)]
        features = torch.cat(levels, dim=1)  # [V, C, h, w]
        generator = torch.Generator().manual_seed(seed)

        def some(mask: Tensor) -> Tensor:
            """Numbers of the cells that a flat mask holds, at most ``rows``."""
            found = mask.flatten().nonzero().squeeze(1)
            if rows is None or len(found) <= rows:
                return found
            return found[torch.randperm(len(found), generator=generator)[:rows].to(found.device)]

        cells = image_cells(clip, truth, size)
        flat = features.permute(0, 2, 3, 1).flatten(0, 2)  # [V*h*w, C]

        def image_features(chosen: Tensor) -> Tensor:
            row, column = chosen % (size[0] * size[1]) // size[1], chosen % size[1]
            return torch.cat([_waves((row + 0.5) / size[0], (column + 0.5) / size[1]), flat[chosen]], dim=1)

        measured = some((cells.depth >= DEPTHS[0]) & (cells.depth <= DEPTHS[1]))
        counted = some(cells.counts)
        labels = torch.stack([cells.vehicle, cells.drivable], dim=-1).flatten(0, 2).float()  # [V*h*w, 2]
        points = voxel_projections(BEV, clip, size, self.stride)[0].view(BEV.shape[0], -1, 2)  # [Z, Y*X, 2]
        vehicle, drivable, counts = torch.from_numpy(truth.bev).to(clip.device).flatten(1)  # [Y*X] each
        above = some(counts & (points[..., 0] > -2).any(0))
        return {
            "depth": Rows(image_features(measured), cells.depth.flatten()[measured, None].log()),
            "image": Rows(image_features(counted), labels[counted]),
            "bev": Rows(self._pull(features, points, above), torch.stack([vehicle, drivable], 1)[above].float()),
        }

    def _pull(self, features: Tensor, points: Tensor, chosen: Tensor) -> Tensor:
        """Features [cells, WAVES**2 + C*Z] of BEV cells ``chosen`` [cells] from maps [V, C, h, w] at [Z, Y*X, 2]."""
        stacked = features.transpose(0, 1).flatten(1, 2)[None]  # cameras one below the other: [1, C, V*h, w]
        above = F.grid_sample(stacked, points[None, :, chosen], padding_mode="zeros", align_corners=False)
        _, height, width = BEV.shape
        waves = _waves((chosen // width + 0.5) / height, (chosen % width + 0.5) / width)
        return torch.cat([waves, above[0].permute(2, 0, 1).flatten(1)], dim=1)


def resampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [V, C, h_i, w_i] at (h, w): means of finer cells, or interpolated."""
    if maps.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def hold_back(scenes: Sequence[int]) -> list[bool]:
    """Choose which of some samples choose the penalty.

    Args:
        scenes: The scene of each sample, two samples or more.

    Returns:
        True for the quarter of the scenes that appears last; of a single scene, for the last quarter of its samples.
    """
    order = list(dict.fromkeys(scenes))
    if len(order) > 1:
        held = set(order[-math.ceil(len(order) / 4) :])
        return [scene in held for scene in scenes]
    first = len(scenes) - math.ceil(len(scenes) / 4)
    return [place >= first for place in range(len(scenes))]


def solve_probes(
    columns: Mapping[str, Mapping[str, slice]],
    train: Callable[[], Iterable[Observation]],
    held_back: Callable[[], Iterable[Observation]],
    test: Iterable[Observation],
) -> dict[str, Figures]:
    """Fit all probes and score them.

    Args:
        columns: See :attr:`Observer.columns`.
        train: Starts a pass over the samples to fit on.
        held_back: The same, over those that choose the penalty and the thresholds; it is called twice.
        test: The samples to score.

    Returns:
        :data:`FIGURES` by name of the features; None where there is nothing to score, or to fit on.
    """
    grams: list[dict[str, Gram]] = []
    for samples in (train(), held_back()):
        sums: dict[str, Gram] = {}
        for observation in samples:
            for kind, rows in observation.items():
                if kind not in sums:
                    sums[kind] = Gram(rows.features.shape[1], rows.targets.shape[1], rows.features.device)
                sums[kind].add(*rows)
        grams.append(sums)
    solved = {
        kind: {name: fit(grams[0][kind], grams[1][kind], where) for name, where in columns[kind].items()}
        for kind in columns
        if grams[0][kind].rows and grams[1][kind].rows
    }

    def predict(samples: Iterable[Observation], which: int, kinds: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return predictions [features, K, cells] of the final or the trial fits, and targets [K, cells], by kind."""
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {kind: [] for kind in kinds}
        for observation in samples:
            for kind, found in parts.items():
                x, y = observation[kind].features.double(), observation[kind].targets
                fits = [(columns[kind][name], both[which]) for name, both in solved[kind].items()]
                predicted = [x[:, where] @ linear.weight + linear.bias for where, linear in fits]
                found.append((torch.stack(predicted).mT.cpu(), y.T.cpu()))
        return {kind: (torch.cat([p for p, _ in f], -1), torch.cat([y for _, y in f], -1)) for kind, f in parts.items()}

    trial = predict(held_back(), 1, solved.keys() & {"bev"})
    final = predict(test, 0, solved)
    names = next(iter(columns.values()))
    return {name: dict(_figures(number, trial, final)) for number, name in enumerate(names)}


def _figures(
    number: int, trial: Mapping[str, tuple[Tensor, Tensor]], final: Mapping[str, tuple[Tensor, Tensor]]
) -> Iterator[tuple[str, float | None]]:
    """Yield the figures of the features of a number."""
    found: dict[str, float | None] = dict.fromkeys(FIGURES)
    if "depth" in final and final["depth"][1].numel():
        predicted, truth = final["depth"][0][number, 0].clamp(*map(math.log, DEPTHS)), final["depth"][1][0].double()
        found["depth_r2"] = r_squared(predicted, truth)
        found["depth_abs_rel"] = min(1.0, float((torch.exp(predicted - truth) - 1).abs().mean()))
    for kind, prefix in (("image", ""), ("bev", "bev_")):
        for k, target in enumerate(("vehicle", "drivable")) if kind in final else ():
            predicted, truth = final[kind][0][number, k], final[kind][1][k] > 0.5
            found[f"{prefix}{target}_ap"] = average_precision(predicted, truth)
            if kind == "bev":
                threshold = best_threshold(trial[kind][0][number, k], trial[kind][1][k] > 0.5)
                found[f"bev_{target}_iou"] = intersection_over_union(predicted >= threshold, truth)
    yield from ((name, found[name]) for name in FIGURES)


def table(rows: Mapping[str, Figures]) -> list[str]:
    """Lines of a table of figures in percent, a row per kind of features."""
    heads = [name.replace("_", " ") for name in FIGURES]
    lines = [f"{'%':16}" + "".join(f"{head:>18}" for head in heads)]
    for name, figures in rows.items():
        values = ("-" if figures[f] is None else f"{100 * figures[f]:.1f}" for f in FIGURES)
        lines.append(f"{name:16}" + "".join(f"{value:>18}" for value in values))
    return lines

"""Ground truth of a sample in its ego frame: boxes from the tables, map layers from the map expansion.

The ego frame is that of the sample's LiDAR sweep, as in :class:`mim4d.clip.Clip`.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from ..data.columns import Fault, Table, is_rotation, is_vector, shown
from ..data.devkit import open_devkit
from ..data.tables import LIDAR, raise_faults
from ..errors import UserError
from ..geometry import VoxelGrid
from ..io.files import write_file

logger = logging.getLogger(__name__)

CLASSES = (
    *("car", "truck", "bus", "trailer", "construction_vehicle"),
    *("pedestrian", "motorcycle", "bicycle", "traffic_cone", "barrier"),
)
"""nuScenes' ten detection classes."""
ATTRIBUTES = (
    *("vehicle.moving", "vehicle.parked", "vehicle.stopped", "cycle.with_rider", "cycle.without_rider"),
    *("pedestrian.moving", "pedestrian.standing", "pedestrian.sitting_lying_down"),
)
"""nuScenes' attributes; a box has at most one."""
BOX = np.dtype(
    [
        ("center", "f8", 3),  # ego frame, metres
        ("size", "f8", 3),  # length, width, height, metres
        ("yaw", "f8"),  # angle from the ego frame's x axis to the length axis, radians
        ("velocity", "f8", 2),  # over ground, in the ego frame's axes, m/s; NaN if unknown
        ("label", "i4"),  # index in CLASSES, or -1
        ("attribute", "i4"),  # index in ATTRIBUTES, or -1
        ("vehicle", "?"),  # category vehicle.*; some of these are in none of the ten classes
        ("visibility", "i4"),  # 1 to 4: 0-40, 40-60, 60-80, 80-100 % visible in the cameras
        ("points", "i4"),  # number of LiDAR and radar points inside
    ]
)
"""Type of an annotated box."""
LAYERS = {
    "drivable": ("drivable_area",),
    "divider": ("road_divider", "lane_divider"),
    "crossing": ("ped_crossing",),
    "road": ("road_segment", "lane"),
}
"""Layers of the map expansion, by the name under which this module reads them."""


class Annotations:
    """Reader of a root's annotation tables and maps, one sample at a time."""

    def __init__(self, root: Path, version: str, reference: str = LIDAR) -> None:
        """Open the tables with the devkit. Impossible boxes are skipped; a warning counts them.

        Args:
            root: Folder that holds the folder of tables.
            version: Name of the folder of tables, such as ``v1.0-trainval``.
            reference: Channel whose capture times define the ego frames.

        Raises:
            UserError: If the tables cannot be read or have no annotations.
        """
        self.root = root
        impossible = _check_annotations(root / version)
        self.nusc: Any = open_devkit(root, version)
        for sample in self.nusc.sample:
            # Edited in place, because the devkit's scores read these lists.
            sample["anns"] = [token for token in sample["anns"] if token not in impossible]
            if reference in sample["data"]:
                sample["data"][LIDAR] = sample["data"][reference]  # the devkit reads this channel only
        names = {scene["token"]: scene["name"] for scene in self.nusc.scene}
        samples = sorted(self.nusc.sample, key=lambda sample: (names[sample["scene_token"]], sample["timestamp"]))
        self.tokens: tuple[str, ...] = tuple(sample["token"] for sample in samples)
        """Tokens of all samples, sorted by scene name and time as :attr:`mim4d.data.index.Index.samples` is."""
        self._maps: dict[str, LayeredMap] = {}

    def global_from_ego(self, token: str) -> NDArray[np.float64]:
        """Return the ego pose [4, 4] of a sample, in metres."""
        from nuscenes.utils.geometry_utils import transform_matrix
        from pyquaternion import Quaternion

        sweep = self.nusc.get("sample_data", self.nusc.get("sample", token)["data"][LIDAR])
        pose = self.nusc.get("ego_pose", sweep["ego_pose_token"])
        return transform_matrix(pose["translation"], Quaternion(pose["rotation"]))

    def boxes(self, token: str) -> NDArray[np.void]:
        """Return all annotated boxes of a sample, [N] of :data:`BOX`."""
        from nuscenes.eval.detection.utils import category_to_detection_name
        from pyquaternion import Quaternion

        global_from_ego = self.global_from_ego(token)
        rotation = global_from_ego[:3, :3].T  # ego_from_global
        annotations = self.nusc.get("sample", token)["anns"]
        rows = np.zeros(len(annotations), BOX)
        for row, annotation in zip(rows, annotations, strict=True):
            record = self.nusc.get("sample_annotation", annotation)
            category = record["category_name"]
            width, length, height = record["size"]
            heading = rotation @ Quaternion(record["rotation"]).rotation_matrix[:, 0]
            attributes = [self.nusc.get("attribute", a)["name"] for a in record["attribute_tokens"]]
            known = [ATTRIBUTES.index(a) for a in attributes if a in ATTRIBUTES]  # other data sets have their own, too
            name = category_to_detection_name(category)
            row["center"] = rotation @ (np.array(record["translation"]) - global_from_ego[:3, 3])
            row["size"] = length, width, height
            row["yaw"] = np.arctan2(heading[1], heading[0])
            row["velocity"] = (rotation @ self.nusc.box_velocity(annotation))[:2]
            row["label"] = CLASSES.index(name) if name else -1
            row["attribute"] = known[0] if known else -1
            row["vehicle"] = category.split(".")[0] == "vehicle"
            row["visibility"] = int(record["visibility_token"] or 4)
            counts = record["num_lidar_pts"], record["num_radar_pts"]
            row["points"] = 1 if -1 in counts else sum(counts)  # -1: not counted; the devkit scores such boxes
        return rows

    def has_map(self, token: str) -> bool:
        """Return whether the root has the map expansion of a sample's location."""
        return map_file(self.root, self._location(token)).is_file()

    def _location(self, token: str) -> str:
        scene = self.nusc.get("scene", self.nusc.get("sample", token)["scene_token"])
        return str(self.nusc.get("log", scene["log_token"])["location"])

    def map_layers(self, token: str, names: Sequence[str], reach: float) -> dict[str, list[BaseGeometry]]:
        """Return the map around a sample.

        Args:
            token: Token of the sample.
            names: Keys of :data:`LAYERS`.
            reach: Half the side of the square around the car to which the map is clipped, metres.

        Returns:
            Polygons and lines by name, in the ego frame, metres. An object that the square cuts in two is one
            multipolygon or multilinestring.

        Raises:
            UserError: If the root has no map expansion for the location.
        """
        location = self._location(token)
        if location not in self._maps:
            self._maps[location] = LayeredMap(self.root, location)
        pose = self.global_from_ego(token)
        yaw = np.arctan2(pose[1, 0], pose[0, 0])
        return {name: self._maps[location].around(name, pose[:2, 3], yaw, reach) for name in names}


def _check_annotations(folder: Path) -> set[str]:
    """Check the annotation tables.

    Returns:
        Tokens of the boxes to skip: their position, size or rotation is impossible.

    Raises:
        UserError: If a table has a value of the wrong type, or no box is possible.
    """
    faults: list[Fault] = []
    names = ("sample", "sample_annotation", "instance", "category", "attribute")
    sample, boxes, instance, category, attribute = (Table(folder / f"{name}.json", faults) for name in names)
    raise_faults(folder, faults)
    if not boxes.rows:
        raise UserError(f"{folder} has no annotations to train on or to score with")
    boxes.refer("sample_token", sample)
    boxes.refer("instance_token", instance)
    instance.refer("category_token", category)
    category.texts("name")
    attribute.texts("name")
    _check_columns(boxes, attribute)
    possible = _are_possible(boxes)
    raise_faults(folder, faults)
    impossible = [row for row, good in enumerate(possible) if not good]
    if impossible:
        first = boxes.rows[impossible[0]]
        where = f"{folder / boxes.name}: {len(impossible)} of {len(boxes.rows)} boxes"
        what = "expected sizes of 0.001 to 1000 m, finite positions and rotations"
        box = f"token {shown(first['token'])}, size {shown(first['size'])}, translation {shown(first['translation'])}"
        if len(impossible) == len(boxes.rows):
            raise UserError(f"{where} are impossible: {what}; the first: {box}, rotation {shown(first['rotation'])}")
        logger.warning("%s are impossible and skipped: %s; the first: %s", where, what, box)
    return {boxes.rows[row]["token"] for row in impossible}


def _check_columns(boxes: Table, attribute: Table) -> None:
    """Check attributes, links to other boxes, visibility and numbers of points."""
    known, links = attribute.tokens(), boxes.tokens()
    boxes.column(
        "attribute_tokens",
        lambda value: isinstance(value, list) and all(isinstance(token, str) and token in known for token in value),
        "a list of tokens of attribute.json",
        [],
    )
    for name in ("prev", "next"):
        boxes.column(
            name,
            lambda value: isinstance(value, str) and (value == "" or value in links),
            "a token of sample_annotation.json, or an empty text",
            "",
        )
    levels = (None, "", "1", "2", "3", "4")
    boxes.column(
        "visibility_token",
        lambda value: value is None or (isinstance(value, str) and value in levels),
        'one of "1", "2", "3", "4", or an empty text',
        "",
    )
    for name in ("num_lidar_pts", "num_radar_pts"):
        boxes.column(name, lambda value: type(value) is int and -1 <= value < 2**31, "a number of points, or -1", 0)


def _are_possible(boxes: Table) -> list[bool]:
    """Return whether each box has a possible position, size and rotation; values of another type are faults."""
    possible = []
    for name, length, is_possible in (
        ("translation", 3, lambda value: is_vector(value, 3)),
        ("size", 3, lambda value: is_vector(value, 3) and min(value) >= 1e-3 and max(value) <= 1e3),
        ("rotation", 4, is_rotation),
    ):
        values = boxes.column(name, _is_list_of_numbers(length), f"{length} numbers", [1.0] * length)
        possible.append([is_possible(value) for value in values])
    return [all(row) for row in zip(*possible, strict=True)]


def _is_list_of_numbers(length: int) -> Callable[[Any], bool]:
    """Return a check that a value is a list of ``length`` numbers, finite or not."""
    return lambda value: isinstance(value, list) and len(value) == length and {*map(type, value)} <= {int, float}


def map_file(root: Path, location: str) -> Path:
    """Return the path of a location's map expansion in a root."""
    return root / "maps" / "expansion" / f"{location}.json"


class LayeredMap:
    """The map expansion of one location, with a spatial index per layer."""

    def __init__(self, root: Path, location: str) -> None:
        """Read ``maps/expansion/<location>.json`` with the devkit.

        Raises:
            UserError: If the file is missing, broken or older than version 1.3.
        """
        import matplotlib

        with matplotlib.rc_context():  # the devkit changes the style of all plots
            from nuscenes.map_expansion.map_api import NuScenesMap

        file = map_file(root, location)
        if not file.is_file():
            raise UserError(
                f"no map {file}: unpack nuScenes' map expansion 1.3 into {root / 'maps'} (a synthetic world without "
                "maps must be made again)"
            )
        try:
            devkit = NuScenesMap(str(root), location)
        except Exception as error:  # the devkit raises errors of json, KeyError and Exception
            raise UserError(f"the nuscenes-devkit cannot read the map {file}: {error}") from error
        self._layers = {name: _read_layers(devkit, layers) for name, layers in LAYERS.items()}
        self._trees = {name: shapely.STRtree(shapes) for name, shapes in self._layers.items()}

    def around(self, name: str, center: NDArray[np.float64], yaw: float, reach: float) -> list[BaseGeometry]:
        """Return a layer around a car, clipped to a square and in the ego frame.

        Args:
            name: Key of :data:`LAYERS`.
            center: Position [2] of the car on the map, metres.
            yaw: Heading of the car on the map, radians.
            reach: Half the side of the square, metres.
        """
        rotation = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        square = shapely.box(-reach, -reach, reach, reach)
        on_map = shapely.transform(square, lambda ego: ego @ rotation.T + center)
        found = [self._layers[name][i] for i in sorted(self._trees[name].query(on_map, predicate="intersects"))]
        in_ego = [shapely.transform(shape, lambda xy: (xy - center) @ rotation) for shape in found]
        return [part for shape in in_ego if not (part := shapely.intersection(shape, square)).is_empty]


def _read_layers(devkit: Any, layers: Sequence[str]) -> list[BaseGeometry]:
    """Return all polygons and lines of the devkit's ``layers``."""
    shapes: list[BaseGeometry] = []
    for layer in layers:
        for record in getattr(devkit, layer):
            if "line_token" in record:
                shape = devkit.extract_line(record["line_token"])
                shapes += [] if shape.is_empty else [shape]
            else:
                tokens = record.get("polygon_tokens") or [record["polygon_token"]]
                shapes += [part for token in tokens for part in valid_polygons(devkit.extract_polygon(token))]
    return shapes


def valid_polygons(polygon: BaseGeometry) -> list[BaseGeometry]:
    """Split a polygon that crosses itself into valid polygons, without the parts that have no area."""
    parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(polygon)))  # a collection may hold MultiPolygons
    return [part for part in parts if part.geom_type == "Polygon"]


def footprints(boxes: NDArray[np.void]) -> list[BaseGeometry]:
    """Return the footprints of boxes [N] as rectangles in the ego frame."""
    corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2 * boxes["size"][:, None, :2]  # [N, 4, 2]
    cos, sin = np.cos(boxes["yaw"])[:, None], np.sin(boxes["yaw"])[:, None]
    x = cos * corners[..., 0] - sin * corners[..., 1] + boxes["center"][:, None, 0]
    y = sin * corners[..., 0] + cos * corners[..., 1] + boxes["center"][:, None, 1]
    return list(shapely.polygons(np.stack([x, y], axis=-1)))


def rasterise(shapes: Sequence[BaseGeometry], grid: VoxelGrid) -> NDArray[np.bool_]:
    """Rasterise polygons into a mask [Y, X]: True where the centre of a cell is inside one of them.

    Lift-Splat-Shoot rounds corners to cells and fills the polygons with OpenCV, borders included, which shifts boxes by
    half a cell and enlarges them by up to one cell. This mask has no such error.
    """
    _, height, width = grid.shape
    mask = np.zeros((height, width), dtype=bool)
    xs = grid.x[0] + (np.arange(width) + 0.5) * grid.voxel[0]
    ys = grid.y[0] + (np.arange(height) + 0.5) * grid.voxel[1]
    for shape in shapes:
        low_x, low_y, high_x, high_y = shape.bounds
        columns = slice(*np.searchsorted(xs, [low_x, high_x]))
        rows = slice(*np.searchsorted(ys, [low_y, high_y]))
        window = np.meshgrid(xs[columns], ys[rows])
        if window[0].size:
            shapely.prepare(shape)
            mask[rows, columns] |= shapely.contains_xy(shape, *window)
    return mask


def write_json(path: Path, values: Any, indent: int | None = None) -> None:
    """Write a JSON file atomically.

    Raises:
        UserError: If the file cannot be written.
    """
    text = json.dumps(values, indent=indent) + "\n"
    write_file(path, lambda partial: partial.write_text(text))

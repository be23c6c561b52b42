"""Ground truth of a sample in its ego frame: boxes from the tables, map layers from the map expansion.

The ego frame is the car's at the sample's LiDAR sweep, as in :class:`mim4d.clip.Clip`.
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

from ..data.tables import LIDAR, Fault, Table, TablesError, is_rotation, is_vector, open_devkit, shown
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
"""nuScenes' attributes, of which a box has one or none."""
BOX = np.dtype(
    [
        ("center", "f8", 3),  # ego frame, metres
        ("size", "f8", 3),  # length, width, height, metres
        ("yaw", "f8"),  # of the length, about z in the ego frame, radians
        ("velocity", "f8", 2),  # of the thing over ground, along the ego frame's x and y, m/s; NaN where not known
        ("label", "i4"),  # of CLASSES, -1 for none of them
        ("attribute", "i4"),  # of ATTRIBUTES, -1 for none of them
        ("vehicle", "?"),  # nuScenes' category vehicle.*, of which some are in none of the ten classes
        ("visibility", "i4"),  # 1 to 4: 0-40, 40-60, 60-80, 80-100 % seen by the six cameras
        ("points", "i4"),  # LiDAR and radar points in it
    ]
)
"""One annotated box."""
LAYERS = {
    "drivable": ("drivable_area",),
    "divider": ("road_divider", "lane_divider"),
    "crossing": ("ped_crossing",),
    "road": ("road_segment", "lane"),
}
"""Our names for what is read of the map expansion, and its layers."""


class Annotations:
    """Annotation tables and maps of a root, read sample by sample."""

    def __init__(self, root: Path, version: str, reference: str = LIDAR) -> None:
        """Open them with the devkit. Boxes that cannot be are left out, with a warning that counts them.

        Args:
            root: The folder that holds the version's tables.
            version: Of the tables.
            reference: Channel at whose times the ego frames are taken.

        Raises:
            UserError: If the tables cannot be read, or there is no annotation.
        """
        self.root = root
        left_out = _check_annotations(root / version)
        self.nusc: Any = open_devkit(root, version)
        for sample in self.nusc.sample:
            sample["anns"] = [token for token in sample["anns"] if token not in left_out]  # the devkit scores these
            if reference in sample["data"]:
                sample["data"][LIDAR] = sample["data"][reference]  # the devkit knows no other name
        names = {scene["token"]: scene["name"] for scene in self.nusc.scene}
        samples = sorted(self.nusc.sample, key=lambda sample: (names[sample["scene_token"]], sample["timestamp"]))
        self.tokens: tuple[str, ...] = tuple(sample["token"] for sample in samples)
        """Of all samples by scene name and time: the order of :attr:`mim4d.data.index.Index.samples`."""
        self._maps: dict[str, LayeredMap] = {}

    def global_from_ego(self, token: str) -> NDArray[np.float64]:
        """The car's pose [4, 4] at a sample's sweep, metres."""
        from nuscenes.utils.geometry_utils import transform_matrix
        from pyquaternion import Quaternion

        shot = self.nusc.get("sample_data", self.nusc.get("sample", token)["data"][LIDAR])
        pose = self.nusc.get("ego_pose", shot["ego_pose_token"])
        return transform_matrix(pose["translation"], Quaternion(pose["rotation"]))

    def boxes(self, token: str) -> NDArray[np.void]:
        """Return all annotated boxes of a sample, [N] of :data:`BOX`."""
        from nuscenes.eval.detection.utils import category_to_detection_name
        from pyquaternion import Quaternion

        global_from_ego = self.global_from_ego(token)
        turn = global_from_ego[:3, :3].T
        rows = np.zeros(len(anns := self.nusc.get("sample", token)["anns"]), BOX)
        for row, ann in zip(rows, anns, strict=True):
            record = self.nusc.get("sample_annotation", ann)
            category = record["category_name"]
            width, length, height = record["size"]
            heading = turn @ Quaternion(record["rotation"]).rotation_matrix[:, 0]
            attributes = [self.nusc.get("attribute", a)["name"] for a in record["attribute_tokens"]]
            known = [ATTRIBUTES.index(a) for a in attributes if a in ATTRIBUTES]  # a fleet may have its own
            name = category_to_detection_name(category)
            row["center"] = turn @ (np.array(record["translation"]) - global_from_ego[:3, 3])
            row["size"] = length, width, height
            row["yaw"] = np.arctan2(heading[1], heading[0])
            row["velocity"] = (turn @ self.nusc.box_velocity(ann))[:2]
            row["label"] = CLASSES.index(name) if name else -1
            row["attribute"] = known[0] if known else -1
            row["vehicle"] = category.split(".")[0] == "vehicle"
            row["visibility"] = int(record["visibility_token"] or 4)
            counts = record["num_lidar_pts"], record["num_radar_pts"]
            row["points"] = 1 if -1 in counts else sum(counts)  # nobody counted: the devkit scores such boxes too
        return rows

    def has_map(self, token: str) -> bool:
        """Whether the root has the map expansion of a sample's location."""
        return map_file(self.root, self._location(token)).is_file()

    def _location(self, token: str) -> str:
        scene = self.nusc.get("scene", self.nusc.get("sample", token)["scene_token"])
        return str(self.nusc.get("log", scene["log_token"])["location"])

    def map_layers(self, token: str, names: Sequence[str], reach: float) -> dict[str, list[BaseGeometry]]:
        """Return the map around a sample.

        Args:
            token: Of the sample.
            names: Of :data:`LAYERS`.
            reach: Half the side of the square round the car that is cut out, metres.

        Returns:
            Polygons and lines by name, in the ego frame, metres. An object cut in two is one multipolygon or
            multilinestring.

        Raises:
            UserError: If the root has no map expansion for the location.
        """
        location = self._location(token)
        if location not in self._maps:
            self._maps[location] = LayeredMap(self.root, location)
        pose = self.global_from_ego(token)
        yaw = np.arctan2(pose[1, 0], pose[0, 0])
        return {name: self._maps[location].near(name, pose[:2, 3], yaw, reach) for name in names}


def _check_annotations(folder: Path) -> set[str]:
    """Check the tables of annotations.

    Returns:
        Tokens of the boxes to leave out: their place, size or rotation cannot be.

    Raises:
        UserError: If a table has a value of another type, or no box is left.
    """
    faults: list[Fault] = []
    names = ("sample", "sample_annotation", "instance", "category", "attribute")
    sample, boxes, instance, category, attribute = (Table(folder / f"{name}.json", faults) for name in names)
    if faults:
        raise TablesError(folder, faults)
    if not boxes.rows:
        raise UserError(f"{folder} has no annotation to learn from or to compare with")
    boxes.refer("sample_token", sample)
    boxes.refer("instance_token", instance)
    instance.refer("category_token", category)
    category.texts("name")
    attribute.texts("name")
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
            "a token of sample_annotation.json, or nothing in quotes",
            "",
        )
    levels = (None, "", "1", "2", "3", "4")
    boxes.column(
        "visibility_token",
        lambda value: value is None or (isinstance(value, str) and value in levels),
        'one of "1", "2", "3", "4", or nothing in quotes',
        "",
    )
    for name in ("num_lidar_pts", "num_radar_pts"):
        boxes.column(name, lambda value: type(value) is int and -1 <= value < 2**31, "a number of points, or -1", 0)
    possible = []
    for name, length, can_be in (
        ("translation", 3, lambda value: is_vector(value, 3)),
        ("size", 3, lambda value: is_vector(value, 3) and min(value) >= 1e-3 and max(value) <= 1e3),
        ("rotation", 4, is_rotation),
    ):
        values = boxes.column(name, _is_list_of_numbers(length), f"{length} numbers", [1.0] * length)
        possible.append([can_be(value) for value in values])
    if faults:
        raise TablesError(folder, faults)
    impossible = [row for row, good in enumerate(zip(*possible, strict=True)) if not all(good)]
    if impossible:
        first = boxes.rows[impossible[0]]
        where = f"{folder / boxes.name}: {len(impossible)} of {len(boxes.rows)} boxes"
        what = "sizes are 0.001 to 1000 m, places and rotations finite"
        box = f"token {shown(first['token'])}, size {shown(first['size'])}, translation {shown(first['translation'])}"
        if len(impossible) == len(boxes.rows):
            raise UserError(f"{where} cannot be: {what}; the first: {box}, rotation {shown(first['rotation'])}")
        logger.warning("%s are left out, as they cannot be: %s; the first: %s", where, what, box)
    return {boxes.rows[row]["token"] for row in impossible}


def _is_list_of_numbers(length: int) -> Callable[[Any], bool]:
    """Whether a value has the type of a vector, whatever its numbers."""
    return lambda value: isinstance(value, list) and len(value) == length and {*map(type, value)} <= {int, float}


def map_file(root: Path, location: str) -> Path:
    """Return where a root has the map expansion of a location."""
    return root / "maps" / "expansion" / f"{location}.json"


class LayeredMap:
    """One location's map expansion, read by the devkit, with a spatial index of each layer."""

    def __init__(self, root: Path, location: str) -> None:
        """Read ``maps/expansion/<location>.json``.

        Raises:
            UserError: If it is missing, broken or of a version before 1.3.
        """
        import matplotlib

        with matplotlib.rc_context():  # the devkit changes the style of all plots
            from nuscenes.map_expansion.map_api import NuScenesMap

        file = map_file(root, location)
        if not file.is_file():
            raise UserError(
                f"no map {file}: unpack nuScenes' map expansion 1.3 into {root / 'maps'} (a world that was drawn "
                "without one has to be drawn anew)"
            )
        try:
            devkit = NuScenesMap(str(root), location)
        except Exception as error:  # json's, KeyErrors and bare Exceptions
            raise UserError(f"the nuscenes-devkit cannot read the map {file}: {error}") from error
        self._layers = {name: _read_layers(devkit, layers) for name, layers in LAYERS.items()}
        self._trees = {name: shapely.STRtree(shapes) for name, shapes in self._layers.items()}

    def near(self, name: str, middle: NDArray[np.float64], yaw: float, reach: float) -> list[BaseGeometry]:
        """Objects of a layer in the square of half side ``reach`` metres round an ego car, in its frame."""
        rotation = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        square = shapely.box(-reach, -reach, reach, reach)
        on_map = shapely.transform(square, lambda ego: ego @ rotation.T + middle)
        found = [self._layers[name][i] for i in sorted(self._trees[name].query(on_map, predicate="intersects"))]
        in_ego = [shapely.transform(shape, lambda xy: (xy - middle) @ rotation) for shape in found]
        return [part for shape in in_ego if not (part := shapely.intersection(shape, square)).is_empty]


def _read_layers(devkit: Any, layers: Sequence[str]) -> list[BaseGeometry]:
    """All geometries of some layers."""
    shapes: list[BaseGeometry] = []
    for layer in layers:
        for record in getattr(devkit, layer):
            if "line_token" in record:
                shape = devkit.extract_line(record["line_token"])
                shapes += [] if shape.is_empty else [shape]
            else:
                tokens = record.get("polygon_tokens") or [record["polygon_token"]]
                shapes += [part for token in tokens for part in repaired(devkit.extract_polygon(token))]
    return shapes


def repaired(polygon: BaseGeometry) -> list[BaseGeometry]:
    """A polygon's valid parts: one that crosses itself falls into several, and into lines, which enclose nothing."""
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
    """Rasterise polygons: [Y, X] bool, True where the cell centre lies in one of them.

    Lift-Splat-Shoot rounds corners to cells and lets OpenCV fill them with their borders, which shifts boxes by half a
    cell and makes them up to a cell larger; this is what it approximates.
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
    """Write a file whole or not at all.

    Raises:
        UserError: If the disk refuses.
    """
    text = json.dumps(values, indent=indent) + "\n"
    write_file(path, lambda partial: partial.write_text(text))

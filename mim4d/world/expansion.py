"""The vector map of a location in the format of nuScenes' map expansion 1.3, for ``NuScenesMap`` of the devkit."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from shapely.geometry import LineString, Polygon

Row = dict[str, Any]

VERSION = "1.3"
"""The oldest version that the devkit accepts."""
LAYERS = {
    "drivable_area": (),
    "road_segment": ("is_intersection", "drivable_area_token"),
    "road_block": (),
    "lane": (
        *("lane_type", "from_edge_line_token", "to_edge_line_token"),
        *("left_lane_divider_segments", "right_lane_divider_segments"),
    ),
    "lane_connector": (),
    "ped_crossing": ("road_segment_token",),
    "walkway": (),
    "stop_line": ("stop_line_type", "ped_crossing_tokens", "traffic_light_tokens", "road_block_token"),
    "carpark_area": ("orientation", "road_block_token"),
    "road_divider": ("road_segment_token",),
    "lane_divider": ("lane_divider_segments",),
    "traffic_light": (),
}
"""All layers that the devkit reads, with their fields beside the geometry. Some layers stay empty."""
VALUES: Row = {
    "is_intersection": False,
    "lane_type": "CAR",
    "stop_line_type": "TRAFFIC_LIGHT",
    "ped_crossing_tokens": [],
    "traffic_light_tokens": [],
    "lane_divider_segments": [],
    "left_lane_divider_segments": [],
    "right_lane_divider_segments": [],
    "orientation": None,
}
"""Values of the fields; tokens of missing records are empty."""


class ExpansionBuilder:
    """Builds the map of one location, place by place, in map coordinates (metres)."""

    def __init__(self, salt: str) -> None:
        """Start an empty map; tokens are hashes of ``salt``, the layer and the row number."""
        self._salt = salt
        self._layers: dict[str, list[Row]] = {name: [] for name in ("node", "line", "polygon", *LAYERS)}

    def add(
        self,
        polygons: dict[str, list[Polygon]],
        lines: dict[str, list[LineString]],
        offset: tuple[float, float],
    ) -> None:
        """Add a place.

        Args:
            polygons: Polygons by layer, in the frame of the place, see :func:`mim4d.world.street.map_layers`.
            lines: Lines by layer, in the same frame.
            offset: Position of the origin of the place on the map, metres.
        """
        for layer, shapes in polygons.items():
            for shape in shapes:
                token = self._polygon(shape, offset)
                name, value = ("polygon_tokens", [token]) if layer == "drivable_area" else ("polygon_token", token)
                self._record(layer, {name: value})
                if layer == "drivable_area":
                    self._record("road_segment", {"polygon_token": token})  # MapTR and others read its outline
        for layer, strings in lines.items():
            for string in strings:
                nodes = self._nodes(string.coords, offset)
                self._record(layer, {"line_token": self._row("line", {"node_tokens": nodes})})

    def text(self, size: tuple[float, float]) -> str:
        """Format the map as JSON, for a map of ``size`` (east, north) in metres."""
        extra: Row = {"version": VERSION, "canvas_edge": list(size), "arcline_path_3": {}, "connectivity": {}}
        return json.dumps({**extra, **self._layers})

    def _record(self, layer: str, geometry: Row) -> None:
        self._row(layer, geometry | {name: VALUES.get(name, "") for name in LAYERS[layer]})

    def _polygon(self, shape: Polygon, offset: tuple[float, float]) -> str:
        holes = [{"node_tokens": self._nodes(ring.coords[:-1], offset)} for ring in shape.interiors]
        exterior = self._nodes(shape.exterior.coords[:-1], offset)
        return self._row("polygon", {"exterior_node_tokens": exterior, "holes": holes})

    def _nodes(self, points: Iterable[Any], offset: tuple[float, float]) -> list[str]:
        positions = np.round(np.asarray(list(points)) + offset, 3).tolist()  # P pairs (x, y)
        return [self._row("node", {"x": x, "y": y}) for x, y in positions]

    def _row(self, layer: str, fields: Row) -> str:
        """Add a row and return its token."""
        rows = self._layers[layer]
        text = f"{self._salt}/{layer}/{len(rows)}"
        token = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        rows.append({"token": token, **fields})
        return token

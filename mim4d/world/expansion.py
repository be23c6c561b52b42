"""A location's vector map in the form of nuScenes' map expansion 1.3, which the devkit's ``NuScenesMap`` reads."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from shapely.geometry import LineString, Polygon

Row = dict[str, Any]

VERSION = "1.3"
"""The oldest that the devkit accepts."""
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
"""Every layer that the devkit asks for, those that streets do not have too, with its fields beside the geometry."""
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
"""What the fields hold; tokens of records that streets do not have are empty."""


class ExpansionBuilder:
    """Collects the map of one location, place by place. Coordinates are the map's, metres."""

    def __init__(self, salt: str) -> None:
        """Start with an empty map; tokens follow from ``salt`` and from what was added before."""
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
            polygons: By layer, in the place's own frame, see :func:`mim4d.world.street.map_layers`.
            lines: By layer, in the same frame.
            offset: Where that frame lies on the map, metres.
        """
        for layer, shapes in polygons.items():
            for shape in shapes:
                token = self._polygon(shape, offset)
                name, value = ("polygon_tokens", [token]) if layer == "drivable_area" else ("polygon_token", token)
                self._record(layer, {name: value})
                if layer == "drivable_area":
                    self._record("road_segment", {"polygon_token": token})  # what MapTR and others take the outline of
        for layer, strings in lines.items():
            for string in strings:
                nodes = self._nodes(string.coords, offset)
                self._record(layer, {"line_token": self._row("line", {"node_tokens": nodes})})

    def text(self, size: tuple[float, float]) -> str:
        """The file's content for a map of ``size`` (east, north), metres."""
        extra: Row = {"version": VERSION, "canvas_edge": list(size), "arcline_path_3": {}, "connectivity": {}}
        return json.dumps({**extra, **self._layers})

    def _record(self, layer: str, geometry: Row) -> None:
        self._row(layer, geometry | {name: VALUES.get(name, "") for name in LAYERS[layer]})

    def _polygon(self, shape: Polygon, offset: tuple[float, float]) -> str:
        holes = [{"node_tokens": self._nodes(ring.coords[:-1], offset)} for ring in shape.interiors]
        exterior = self._nodes(shape.exterior.coords[:-1], offset)
        return self._row("polygon", {"exterior_node_tokens": exterior, "holes": holes})

    def _nodes(self, points: Iterable[Any], offset: tuple[float, float]) -> list[str]:
        where = np.round(np.asarray(list(points)) + offset, 3).tolist()
        return [self._row("node", {"x": x, "y": y}) for x, y in where]

    def _row(self, layer: str, fields: Row) -> str:
        """Add a row and give its token."""
        rows = self._layers[layer]
        text = f"{self._salt}/{layer}/{len(rows)}"
        token = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        rows.append({"token": token, **fields})
        return token

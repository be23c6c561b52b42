"""Build the tables of a root in nuScenes format from the records of all key frames."""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .capture import SceneJob
from .rig import Calibration

Row = dict[str, Any]
Tables = dict[str, list[Row]]

CATEGORIES = (
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.wheelchair",
    "human.pedestrian.stroller",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.construction_worker",
    "animal",
    "vehicle.car",
    "vehicle.motorcycle",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.truck",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.trailer",
    "movable_object.barrier",
    "movable_object.trafficcone",
    "movable_object.pushable_pullable",
    "movable_object.debris",
    "static_object.bicycle_rack",
)
ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)
VISIBILITIES = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}


class TableBuilder:
    """Builds the tables scene by scene; tokens are hashes of the version, the seed and the key of the row."""

    def __init__(self, seed: int, version: str) -> None:
        self._salt = f"{version}/{seed}"
        self.tables: Tables = {
            "category": [self._row("category", n, name=n, description="") for n in CATEGORIES],
            "attribute": [self._row("attribute", n, name=n, description="") for n in ATTRIBUTES],
            "visibility": [{"token": k, "level": v, "description": ""} for k, v in VISIBILITIES.items()],
            "sensor": [],
        }
        for name in ("log", "map", "scene", "sample", "sample_data", "sample_annotation", "instance"):
            self.tables[name] = []
        self.tables["calibrated_sensor"], self.tables["ego_pose"] = [], []

    def token(self, table: str, *key: object) -> str:
        """Compute the token of a row."""
        text = "/".join([self._salt, table, *map(str, key)])
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    def _row(self, table: str, *key: object, **fields: Any) -> Row:
        return {"token": self.token(table, *key), **fields}

    def add_map(self, location: str, logs: Sequence[str], filename: str) -> None:
        """Add the mask of a location, for all of its logs."""
        tokens = [self.token("log", log) for log in logs]
        self.tables["map"].append(
            self._row("map", location, category="semantic_prior", log_tokens=tokens, filename=filename)
        )

    def add_scene(self, job: SceneJob, location: str, records: Sequence[Row]) -> None:
        """Add a scene; ``records`` are the records of its key frames in order."""
        day = datetime.fromtimestamp(job.start * 1e-6, timezone.utc).strftime("%Y-%m-%d")
        vehicle = job.logfile.split("-")[0]
        self.tables["log"].append(
            self._row("log", job.logfile, logfile=job.logfile, vehicle=vehicle, date_captured=day, location=location)
        )
        for calibration in job.calibrations():
            self._add_calibration(job, calibration)
        samples = [self.token("sample", job.name, i) for i in range(len(records))]
        self.tables["scene"].append(
            self._row(
                "scene",
                job.name,
                log_token=self.token("log", job.logfile),
                nbr_samples=len(records),
                first_sample_token=samples[0],
                last_sample_token=samples[-1],
                name=job.name,
                description=f"synthetic, {records[0]['story']}",
            )
        )
        stamps = [
            next(s["timestamp"] for s in r["shots"] if s["channel"] == "LIDAR_TOP" and s["is_key_frame"])
            for r in records
        ]
        for i, token in enumerate(samples):
            links = _links(samples, i)
            scene = self.token("scene", job.name)
            self.tables["sample"].append({"token": token, "timestamp": stamps[i], **links, "scene_token": scene})
        self._add_shots(job, samples, records)
        self._add_annotations(job, samples, records)

    def _add_calibration(self, job: SceneJob, calibration: Calibration) -> None:
        sensor = calibration.sensor
        modality = "camera" if sensor.is_camera else "lidar"
        row = self._row("sensor", sensor.channel, channel=sensor.channel, modality=modality)
        if row not in self.tables["sensor"]:
            self.tables["sensor"].append(row)
        intrinsics = calibration.intrinsics.copy()
        intrinsics[:2, 2] -= 0.5  # in nuScenes the first pixel's centre is (0, 0)
        self.tables["calibrated_sensor"].append(
            self._row(
                "calibrated_sensor",
                job.logfile,
                sensor.channel,
                sensor_token=row["token"],
                translation=calibration.position.tolist(),
                rotation=calibration.rotation.elements.tolist(),
                camera_intrinsic=intrinsics.tolist() if sensor.is_camera else [],
            )
        )

    def _add_shots(self, job: SceneJob, samples: Sequence[str], records: Sequence[Row]) -> None:
        sizes = {c.sensor.channel: c.size for c in job.calibrations()}
        for channel, (height, width) in sizes.items():
            shots = [(i, s) for i, r in enumerate(records) for s in r["shots"] if s["channel"] == channel]
            tokens = [self.token("sample_data", job.name, channel, s["timestamp"]) for _, s in shots]
            for k, (i, shot) in enumerate(shots):
                pose = {
                    "timestamp": shot["timestamp"],
                    "rotation": shot["rotation"],
                    "translation": shot["translation"],
                }
                self.tables["ego_pose"].append({"token": tokens[k], **pose})
                self.tables["sample_data"].append(
                    {
                        "token": tokens[k],
                        "sample_token": samples[i],
                        "ego_pose_token": tokens[k],
                        "calibrated_sensor_token": self.token("calibrated_sensor", job.logfile, channel),
                        "timestamp": shot["timestamp"],
                        "fileformat": shot["filename"].split(".")[1],
                        "is_key_frame": shot["is_key_frame"],
                        "height": height,
                        "width": width,
                        "filename": shot["filename"],
                        **_links(tokens, k),
                    }
                )

    def _add_annotations(self, job: SceneJob, samples: Sequence[str], records: Sequence[Row]) -> None:
        """Annotate each actor from the first to the last key frame in which it has LiDAR points."""
        for number in range(len(records[0]["boxes"])):
            boxes = [record["boxes"][number] for record in records]
            met = [i for i, box in enumerate(boxes) if box["num_lidar_pts"]]
            if not met:
                continue
            frames = range(met[0], met[-1] + 1)
            instance = self.token("instance", job.name, number)
            tokens = [self.token("sample_annotation", job.name, number, i) for i in frames]
            for k, i in enumerate(frames):
                box = boxes[i]
                attribute = [self.token("attribute", box["attribute"])] if box["attribute"] else []
                self.tables["sample_annotation"].append(
                    {
                        "token": tokens[k],
                        "sample_token": samples[i],
                        "instance_token": instance,
                        "visibility_token": box["visibility"],
                        "attribute_tokens": attribute,
                        "translation": box["translation"],
                        "size": box["size"],
                        "rotation": box["rotation"],
                        **_links(tokens, k),
                        "num_lidar_pts": box["num_lidar_pts"],
                        "num_radar_pts": 0,
                    }
                )
            self.tables["instance"].append(
                {
                    "token": instance,
                    "category_token": self.token("category", boxes[0]["category"]),
                    "nbr_annotations": len(tokens),
                    "first_annotation_token": tokens[0],
                    "last_annotation_token": tokens[-1],
                }
            )

    def write(self, folder: Path) -> None:
        """Write each table as ``<name>.json`` into an existing folder."""
        for name, rows in self.tables.items():
            (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))


def _links(tokens: Sequence[str], k: int) -> dict[str, str]:
    return {"prev": tokens[k - 1] if k else "", "next": tokens[k + 1] if k + 1 < len(tokens) else ""}

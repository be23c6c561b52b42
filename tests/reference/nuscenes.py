"""What a clip must hold, from the JSON tables by token, a record at a time, in float64."""

import json
from pathlib import Path

import numpy as np

from tests.reference import rigid


class Tables:
    """The raw tables of a root."""

    def __init__(self, root: Path, version: str):
        def by_token(name):
            return {record["token"]: record for record in json.loads((root / version / f"{name}.json").read_text())}

        self.sample, self.scene, self.sensor = by_token("sample"), by_token("scene"), by_token("sensor")
        self.sample_data, self.ego_pose = by_token("sample_data"), by_token("ego_pose")
        self.calibrated_sensor = by_token("calibrated_sensor")

    def records(self, scene: str, channel: str, key_frames: bool):
        """Records of a sensor in a scene by time."""
        found = [
            record
            for record in self.sample_data.values()
            if self.channel(record) == channel
            and self.scene[self.sample[record["sample_token"]]["scene_token"]]["name"] == scene
            and (record["is_key_frame"] or not key_frames)
        ]
        return sorted(found, key=lambda record: record["timestamp"])

    def channel(self, record):
        return self.sensor[self.calibration(record)["sensor_token"]]["channel"]

    def calibration(self, record):
        return self.calibrated_sensor[record["calibrated_sensor_token"]]

    def global_from_ego(self, record):
        pose = self.ego_pose[record["ego_pose_token"]]
        return rigid.pose(pose["rotation"], pose["translation"])

    def ego_from_sensor(self, record):
        calibration = self.calibration(record)
        return rigid.pose(calibration["rotation"], calibration["translation"])


def nearest(records, microseconds):
    """The record nearest in time."""
    return min(records, key=lambda record: abs(record["timestamp"] - microseconds))


def clips(times, length, gap, tolerance):
    """Every list of frame numbers of which each is the nearest to its wanted time and near enough."""
    found = []
    for now in range(len(times)):
        wanted = [times[now] - gap * k for k in reversed(range(length))]
        chosen = [min(range(len(times)), key=lambda i, at=at: (abs(times[i] - at), times[i])) for at in wanted]
        if all(abs(times[i] - at) <= tolerance for i, at in zip(chosen, wanted, strict=True)):
            found.append(chosen)
    return np.array(found).reshape(-1, length)

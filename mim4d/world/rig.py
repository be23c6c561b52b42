"""The ego car's sensors: names, calibration and when each fires, after nuScenes' car."""

from dataclasses import dataclass

import numpy as np
from pyquaternion import Quaternion

from .arrays import Array

FULL_SIZE = (900, 1600)
"""Rows and columns of a full-size image; nuScenes'."""


@dataclass(frozen=True)
class Sensor:
    """One sensor's place on the car."""

    channel: str
    position: tuple[float, float, float]
    """In the ego frame, metres."""
    heading: float
    """Of its optical axis (of the LiDAR: its y axis), degrees to the left of straight ahead."""
    pitch: float
    """Upward, degrees."""
    focal: float
    """Pixels of the full-size image; 0 for the LiDAR."""
    center: tuple[float, float]
    """Principal point in pixels of the full-size image, pixel centres at integers as nuScenes counts."""
    delay: float
    """When it fires, seconds relative to the LiDAR sweep's time."""

    @property
    def is_camera(self) -> bool:
        """Whether it is a camera."""
        return self.focal > 0


CAMERAS = (
    Sensor("CAM_FRONT", (1.70, 0.02, 1.51), 0.3, -0.3, 1266.0, (816.0, 491.0), -0.0355),
    Sensor("CAM_FRONT_RIGHT", (1.55, -0.49, 1.50), -56.4, -0.6, 1260.0, (808.0, 495.0), -0.0276),
    Sensor("CAM_BACK_RIGHT", (1.02, -0.48, 1.56), -110.8, -0.8, 1259.0, (807.0, 501.0), -0.0200),
    Sensor("CAM_BACK", (0.03, 0.00, 1.58), 179.9, 0.8, 809.0, (829.0, 482.0), -0.0104),
    Sensor("CAM_BACK_LEFT", (1.04, 0.48, 1.59), 108.6, -0.8, 1257.0, (792.0, 493.0), -0.0005),
    Sensor("CAM_FRONT_LEFT", (1.52, 0.49, 1.51), 55.2, 0.1, 1272.0, (827.0, 480.0), -0.0430),
)
LIDAR = Sensor("LIDAR_TOP", (0.94, 0.00, 1.84), 0.0, 0.0, 0.0, (0.0, 0.0), 0.0)
BEAMS = 32
COLUMNS = 1084
"""LiDAR firings a turn."""
ELEVATIONS = (-30.67, 10.67)
"""Of the lowest and highest beam, degrees."""


@dataclass(frozen=True)
class Calibration:
    """One sensor as mounted on the car of one log."""

    sensor: Sensor
    position: Array
    """In the ego frame [3], metres."""
    rotation: Quaternion
    """``ego_from_sensor``; cameras are x right, y down, z forward, the LiDAR is x right, y forward, z up."""
    intrinsics: Array
    """[3, 3] in pixels of the written image, pixel centres at halves; all zero for the LiDAR."""
    size: tuple[int, int]
    """Rows and columns of the written image; (0, 0) for the LiDAR."""

    @property
    def ego_from_sensor(self) -> Array:
        """[4, 4] metres."""
        pose = self.rotation.transformation_matrix
        pose[:3, 3] = self.position
        return pose


def image_size(scale: float) -> tuple[int, int]:
    """Rows and columns of an image written at ``scale`` times nuScenes' size."""
    return round(FULL_SIZE[0] * scale), round(FULL_SIZE[1] * scale)


def calibrate(rng: np.random.Generator, scale: float) -> tuple[Calibration, ...]:
    """Mount the seven sensors, LiDAR first, each a little off its nominal place as no two cars are alike.

    Args:
        rng: Source of the misalignments (under a centimetre and half a degree).
        scale: Size of the written images over nuScenes' 1600x900.
    """
    size = image_size(scale)
    stretch = np.array([size[1] / FULL_SIZE[1], size[0] / FULL_SIZE[0]])
    mounted = []
    for sensor in (LIDAR, *CAMERAS):
        position = np.round(np.array(sensor.position) + rng.uniform(-0.008, 0.008, 3), 4)
        heading, pitch, roll = np.array([sensor.heading, sensor.pitch, 0.0]) + rng.uniform(-0.3, 0.3, 3)
        turn = Quaternion(axis=(0, 0, 1), degrees=heading) * Quaternion(axis=(0, 1, 0), degrees=-pitch)
        turn = turn * Quaternion(axis=(1, 0, 0), degrees=roll)
        forward_left_up = np.array(
            [[0, 0, 1], [-1, 0, 0], [0, -1, 0]] if sensor.is_camera else [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]
        )
        rotation = turn * Quaternion(matrix=forward_left_up.astype(float))
        intrinsics = np.zeros((3, 3))
        if sensor.is_camera:
            focal = sensor.focal * (1 + rng.uniform(-0.003, 0.003))
            center = (np.array(sensor.center) + 0.5 + rng.uniform(-6, 6, 2)) * stretch
            intrinsics = np.array([[focal * stretch[0], 0, center[0]], [0, focal * stretch[1], center[1]], [0, 0, 1]])
        mounted.append(Calibration(sensor, position, rotation, intrinsics, size if sensor.is_camera else (0, 0)))
    return tuple(mounted)

"""The sensors of the ego car: names, poses, intrinsics and firing times, modelled on nuScenes."""

from dataclasses import dataclass

import numpy as np
from pyquaternion import Quaternion

from .arrays import Array

FULL_SIZE = (900, 1600)
"""Rows and columns of an image of nuScenes."""


@dataclass(frozen=True)
class Sensor:
    """A sensor and its nominal pose on the car."""

    channel: str
    position: tuple[float, float, float]
    """In the ego frame, metres."""
    heading: float
    """Heading of the optical axis (for the LiDAR: of the y axis), degrees to the left of straight ahead."""
    pitch: float
    """Upward pitch, degrees."""
    focal: float
    """Focal length in pixels of the full-size image; 0 for the LiDAR."""
    center: tuple[float, float]
    """Principal point in pixels of the full-size image; the first pixel's centre is (0, 0), as in nuScenes."""
    delay: float
    """Firing time relative to the LiDAR sweep, seconds."""

    @property
    def is_camera(self) -> bool:
        """Whether the sensor is a camera."""
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
"""LiDAR firings per turn."""
ELEVATIONS = (-30.67, 10.67)
"""Elevations of the lowest and the highest beam, degrees."""


@dataclass(frozen=True)
class Calibration:
    """The calibration of one sensor in one log."""

    sensor: Sensor
    position: Array
    """[3] position in the ego frame, metres."""
    rotation: Quaternion
    """Rotation of ``ego_from_sensor``. Cameras: x right, y down, z forward; LiDAR: x right, y forward, z up."""
    intrinsics: Array
    """[3, 3] in pixels of the written image; the first pixel's centre is (0.5, 0.5). 0 for the LiDAR."""
    size: tuple[int, int]
    """Rows and columns of the written image; (0, 0) for the LiDAR."""

    @property
    def ego_from_sensor(self) -> Array:
        """Pose of the sensor, [4, 4]."""
        pose = self.rotation.transformation_matrix
        pose[:3, 3] = self.position
        return pose


def image_size(scale: float) -> tuple[int, int]:
    """Compute the rows and columns of an image at ``scale`` times the size of nuScenes.

    >>> image_size(0.25)
    (225, 400)
    """
    return round(FULL_SIZE[0] * scale), round(FULL_SIZE[1] * scale)


def calibrate(rng: np.random.Generator, scale: float) -> tuple[Calibration, ...]:
    """Calibrate the seven sensors, LiDAR first, with small random deviations from their nominal poses.

    Args:
        rng: Random generator of the deviations, which are below 1 cm and half a degree.
        scale: Size of the written images as a fraction of 1600x900.
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

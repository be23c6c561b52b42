"""Write one key frame of a scene: its images and sweeps, and a record of them for the tables."""

import json
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyquaternion import Quaternion

from ..io.files import write_bytes
from . import annotate
from .arrays import Array, rotated
from .config import PERIOD
from .lidar import sweep
from .models import car
from .render import FINE, Contact, Painter, ShadowMap
from .rig import Calibration, calibrate
from .scene import Scene, make_scene
from .shapes import Shapes, join, placed
from .texture import Noise
from .traffic import EGO_MIDDLE, Actor
from .views import Pinhole, Sunlight


@dataclass(frozen=True)
class SceneJob:
    """The settings from which a scene is made; the same job always gives the same files."""

    name: str
    """Name of the scene, from the splits of nuScenes."""
    seed: int
    """Seed of the world."""
    place: int
    """Number of the place."""
    hand: int
    """+1 if traffic drives on the right, -1 if on the left."""
    offset: tuple[float, float]
    """Position of the origin of the place on the map, metres."""
    keyframes: int
    """Number of key frames."""
    scale: float
    """Image size as a fraction of 1600x900 pixels."""
    camera_rate: float
    """Images per second of each camera."""
    lidar_rate: float
    """Sweeps per second."""
    logfile: str
    """Name of the log of the drive."""
    start: int
    """Time of the first key frame, microseconds since the epoch."""

    @property
    def number(self) -> int:
        """Number of the scene, from its name."""
        return int(self.name.removeprefix("scene-"))

    @property
    def duration(self) -> float:
        """Time from the first to the last key frame, seconds."""
        return PERIOD * (self.keyframes - 1)

    def calibrations(self) -> tuple[Calibration, ...]:
        """Calibrate the sensors of this scene, LiDAR first."""
        return calibrate(np.random.default_rng([self.seed, self.number, 3]), self.scale)


@dataclass(frozen=True)
class Stage:
    """The static part of a scene, with its shadows; made once per process and scene."""

    scene: Scene
    still: Shapes
    """[shapes] of the scenery, and of the actors that stand still."""
    moving: tuple[tuple[int, Actor], ...]
    """The other actors, each with its number."""
    noise: Noise
    shadow: ShadowMap
    contact: Contact
    ego_car: Shapes

    def boxes(self, t: float) -> Shapes:
        """Make the bounding boxes of all actors at ``t`` seconds, as shapes [actors]."""
        return annotate.boxes(self.scene.actors, [actor.motion.pose(t) for actor in self.scene.actors])


@lru_cache(maxsize=2)
def stage_of(job: SceneJob) -> Stage:
    """Make the static parts of a scene."""
    scene = make_scene(job.seed, job.number, job.place, job.hand, job.duration)
    middle = np.array([*scene.ego.pose(job.duration / 2)[:2], 0.0])
    reach = 110.0 + 6.0 * job.duration
    sun = Sunlight(middle, scene.light.toward_sun, reach, 0.15)
    ego_car = placed(car(np.random.default_rng(0)).shapes, EGO_MIDDLE, 0.0, 0.0)
    scenery = join([scene.place.scenery, scene.signals])
    standing = [(i, actor) for i, actor in enumerate(scene.actors) if actor.motion.pace.still]
    moving = tuple((i, actor) for i, actor in enumerate(scene.actors) if not actor.motion.pace.still)
    poses = [actor.motion.pose(0.0) for _, actor in standing]
    objects = [placed(a.model.shapes, *pose, owner=i) for (i, a), pose in zip(standing, poses, strict=True)]
    still = join([scenery, *objects])
    boxes = annotate.boxes([actor for _, actor in standing], poses)
    contact = Contact.of(middle, reach, 0.15, 1.5, scenery) | Contact.of(middle, reach, 0.15, 0.9, boxes)
    return Stage(scene, still, moving, Noise(job.seed), ShadowMap.of(sun, still), contact, ego_car)


def capture(root: Path, job: SceneJob, frame: int) -> Path:
    """Write all images and sweeps after the previous key frame, up to and including key frame ``frame``.

    Args:
        root: Folder of the world.
        job: The scene.
        frame: Number of the key frame.

    Returns:
        The file of the record. It is written last: if it exists, so do all files that it names, and nothing is done.
    """
    record_file = root / ".parts" / job.name / f"{frame:04d}.json"
    if record_file.exists():
        return record_file
    stage = stage_of(job)
    shots: list[dict[str, Any]] = []
    areas = np.zeros((len(stage.scene.actors), 2), np.int64)
    swept = np.zeros((0, 3))
    for calibration in job.calibrations():
        sensor = calibration.sensor
        rate = job.camera_rate if sensor.is_camera else job.lidar_rate
        steps = round(rate * PERIOD) if frame else 1
        for back in range(steps - 1, -1, -1):
            key = back == 0
            stamp = job.start + round(1e6 * (frame * PERIOD - back / rate + sensor.delay))
            t = (stamp - job.start) * 1e-6
            moment = Moment(stage, job, calibration, t)
            folder = "samples" if key else "sweeps"
            name = f"{folder}/{sensor.channel}/{job.logfile}__{sensor.channel}__{stamp}"
            if sensor.is_camera:
                filename, data, area = moment.photograph(name, key)
                areas += area
            else:
                filename, data, points = moment.scan(name)
                swept = points if key else swept
            write_bytes(root / filename, data)
            shots.append(
                {
                    "channel": sensor.channel,
                    "timestamp": stamp,
                    "is_key_frame": key,
                    "filename": filename,
                    **moment.ego_pose(),
                }
            )
    record = {
        "shots": shots,
        "boxes": _annotations(stage, job, frame * PERIOD, swept, areas),
        "story": stage.scene.story,
    }
    write_bytes(record_file, json.dumps(record).encode())
    return record_file


class Moment:
    """A scene at the time of one measurement of one sensor."""

    def __init__(self, stage: Stage, job: SceneJob, calibration: Calibration, t: float) -> None:
        self.stage, self.job, self.calibration, self.t = stage, job, calibration, t
        self.ego = stage.scene.ego.pose(t)
        self.world_from_sensor = pose_matrix(*self.ego) @ calibration.ego_from_sensor
        poses = [actor.motion.pose(t) for _, actor in stage.moving]
        objects = [placed(a.model.shapes, *pose, owner=i) for (i, a), pose in zip(stage.moving, poses, strict=True)]
        actors = join(objects)
        sun = Sunlight(np.array([*self.ego[:2], 0.0]), stage.scene.light.toward_sun, 50.0, 0.15)
        shadow = ShadowMap.of(sun, join([actors, placed(stage.ego_car, *self.ego)]))
        scene = stage.scene
        contact = Contact.of(sun.center, 30.0, 0.15, 0.9, annotate.boxes([a for _, a in stage.moving], poses))
        self.shapes = join([stage.still, actors])
        self.painter = Painter(scene.place, scene.light, stage.noise, (stage.shadow, shadow), (stage.contact, contact))

    def view(self) -> Pinhole:
        """Return the view of the camera."""
        return Pinhole(self.calibration.size, self.calibration.intrinsics, self.world_from_sensor)

    def photograph(self, name: str, key: bool) -> tuple[str, bytes, Array]:
        """Render an image.

        Returns:
            Its file name, its JPEG data, and the area of each actor in it [actors, 2], see :func:`annotate.seen_area`
            (0 if it is no key frame).
        """
        view = self.view()
        picture, hits = self.painter.picture(view, self.shapes)
        area = np.zeros((len(self.stage.scene.actors), 2), np.int64)
        if key:
            area = annotate.seen_area(view.refined(FINE), hits, self.stage.boxes(self.t))
        buffer = BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=92)
        return f"{name}.jpg", buffer.getvalue(), area

    def scan(self, name: str) -> tuple[str, bytes, Array]:
        """Render a sweep.

        Returns:
            Its file name, its data as nuScenes stores it, and its points [P, 3] in the world.
        """
        rng = np.random.default_rng([self.job.seed, self.job.number, 4, round(self.t * 1e6) & 0xFFFFFFFF])
        points = sweep(self.painter, self.shapes, self.world_from_sensor, rng)
        pose = self.world_from_sensor
        return f"{name}.pcd.bin", points.tobytes(), rotated(pose[:3, :3], points[:, :3]) + pose[:3, 3]

    def ego_pose(self) -> dict[str, list[float]]:
        """Return the pose of the ego car on the map, as in the tables."""
        x, y, yaw = self.ego
        offset = self.job.offset
        return {"translation": [x + offset[0], y + offset[1], 0.0], "rotation": _about_z(yaw)}


def _annotations(stage: Stage, job: SceneJob, t: float, points: Array, areas: Array) -> list[dict[str, Any]]:
    """Make the annotations of all actors at a key frame, near or far."""
    found, scene = [], stage.scene
    for number, (actor, box) in enumerate(zip(scene.actors, stage.boxes(t), strict=True)):
        x, y, z = (float(v) for v in box["center"])
        length, width, height = actor.model.size
        seen, whole = (int(v) for v in areas[number])
        away = float(np.hypot(*(np.array([x, y]) - scene.ego.pose(t)[:2])))
        found.append(
            {
                "actor": number,
                "category": actor.model.category,
                "attribute": actor.attribute(t),
                "translation": [x + job.offset[0], y + job.offset[1], z],
                "size": [float(width), float(length), float(height)],
                "rotation": _about_z(float(box["yaw"])),
                "num_lidar_pts": annotate.points_inside(box, points) if away < annotate.REACH else 0,
                "visibility": annotate.visibility_level(seen / whole if whole else 0.0),
            }
        )
    return found


def pose_matrix(x: float, y: float, yaw: float) -> Array:
    """Make ``world_from_ego`` [4, 4] of a car on level ground."""
    pose = Quaternion(axis=(0, 0, 1), radians=yaw).transformation_matrix
    pose[:2, 3] = x, y
    return pose


def _about_z(yaw: float) -> list[float]:
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]

"""Clips from a root in nuScenes format: real nuScenes, one's own fleet, or the demo world."""

import hashlib
import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ..clip import FRAMES, Clip
from ..errors import BadDataError, UserError
from ..geometry import invert, make_pose, rotation_from_quaternion, transform
from .frames import NONE, find_clips, find_frames
from .images import Fit, find_bits, read_image
from .index import Index, open_index
from .lenses import Lens
from .lidar import FLOATS_PER_POINT, read_points
from .tables import LIDAR

logger = logging.getLogger(__name__)

CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
INSTEAD = " instead of "
BLIND_RADIUS = 3.0
"""LiDAR points nearer than this to the LiDAR, horizontally, in metres, are on the car itself (published: 3 m)."""
MOST_VOID = 0.5
"""What fraction of an undistorted image may show nothing before its lens is taken for misread."""
PROBES = 16
"""Images per camera that are looked at to find the scale of 16-bit grey."""
SUBSTITUTES = 200
"""How many other clips are tried in the place of a bad one; enough where one file in twenty is there."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to read.

    Raises:
        UserError: If a value cannot be.
    """

    dataroot: str = ""
    """Folder of the data set: it holds samples/ and a folder for each version."""
    version: str = "v1.0-trainval"
    """Which version folder of the tables."""
    split: str = "train"
    """A split of the nuscenes-devkit (train, val, test, mini_train, mini_val, train_detect, train_track), one of the
    version's own splits.json, or scene names with commas between them."""
    frames: int = FRAMES
    """Frames per clip (T), the current one included."""
    gap: float = 0.5
    """Seconds from one frame of a clip to the next."""
    tolerance: float = 0.2
    """How far a frame may be from its wanted time, seconds; less than half the gap."""
    cameras: tuple[str, ...] = CAMERAS
    """Which cameras, in this order."""
    sweeps: bool = False
    """Whether camera images between the key frames count as frames too (12 a second instead of 2)."""
    image_size: tuple[int, int] = (448, 800)
    """Height and width of the images the model sees, pixels: scaled to the width, cut at the top."""
    lidar: bool = True
    """Whether to read LiDAR where there is some."""
    points: bool = True
    """Whether to read what the LiDAR measured; without, its sweeps still say when frames are and where the car is."""
    lidar_floats: int = FLOATS_PER_POINT
    """How many float32 a point has in LiDAR files without a header; x, y and z come first."""
    lidar_name: str = LIDAR
    """Which LiDAR, by its channel's name."""
    on_error: Literal["raise", "skip"] = "raise"
    """A missing or broken file stops the run (raise), or another clip takes its clip's place and is counted (skip)."""

    def __post_init__(self) -> None:
        height, width = self.image_size
        if height < 1 or width < 1:
            raise UserError(f"image_size = {height} {width}: both must be at least 1")
        if self.frames < 1:
            raise UserError(f"frames = {self.frames}: a clip has one frame or more")
        if self.frames > 1 and not self.gap > 0:
            raise UserError(f"frame_gap = {self.gap} s: a frame is some time after the one before it")
        if self.frames > 1 and not 0 <= self.tolerance < self.gap / 2:
            raise UserError(
                f"tolerance = {self.tolerance} s must be less than half of the {self.gap} s between frames, "
                "so that no frame is taken twice"
            )
        if not 3 <= self.lidar_floats <= 64:
            raise UserError(f"lidar_floats = {self.lidar_floats}: a point has 3 (x, y, z) to 64")
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise UserError(f"cameras = {' '.join(self.cameras)}: name one or more, each once")


class NuScenesClips(Dataset[Clip]):
    """Every clip of a split, by scene and time. Item ``i``, or ``(i, seed)`` to set ``Clip.seeds``, has B = 1.

    Raises:
        UserError: If the root, version, split or cameras do not exist, or nothing in them is long enough for a clip.
        BadDataError: If a clip's record is not in the tables, and ``on_error`` is "raise".
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.root = Path(config.dataroot).expanduser()
        self.index = open_index(self.root, config.version)
        scenes = _scenes_of_split(self.index, config)
        _check_cameras(self.index, config)
        lidar = _find_lidar(self.index, config)
        self.frames = find_frames(self.index, scenes, config.cameras, sweeps=config.sweeps, lidar=lidar)
        self.clips = find_clips(
            self.frames,
            length=config.frames,
            gap=round(config.gap * 1e6),
            tolerance=round(config.tolerance * 1e6),
        )
        """[N, T] numbers of frames."""
        self.has_lidar = lidar is not None
        if config.lidar and not self.has_lidar:
            logger.warning("%s has no LiDAR: clips come without", self.root / config.version)
        self._logged: set[str] = set()
        self._unlogged: list[str] = []
        if not len(self.clips):
            raise UserError(self._why_no_clip())
        self._check_image_sizes()
        self._check_lenses()
        self._bits = {camera: self._find_bits(camera) for camera in config.cameras}
        if config.on_error == "raise":  # known now, and not in the middle of a run
            self._check_records()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: int | tuple[int, int]) -> Clip:
        """Read a clip.

        Args:
            item: Which one; with a seed for ``Clip.seeds`` (the number of the clip if there is none).

        Raises:
            IndexError: Past the end.
            BadDataError: If a file or record is missing or broken and ``on_error`` is "raise".
            UserError: If it is "skip" and hardly anything can be read.
        """
        number, seed = item if isinstance(item, tuple) else (item, item)
        if not 0 <= number < len(self):
            raise IndexError(f"clip {number} of {len(self)}")
        try:
            return self._read(number, seed)
        except BadDataError as error:
            if self.config.on_error == "raise":
                raise
            return self._substitute(number, seed, error)

    def name(self, number: int) -> str:
        """Name of a clip: its scene and the time of its current frame in seconds."""
        frame = self.clips[number, -1]
        return f"{self.index.scenes[self.frames.scenes[frame]]}@{self.frames.times[frame] / 1e6:.2f}"

    def digest(self) -> str:
        """Of the scenes and moments of all clips, 12 hexadecimal digits: the same wherever the root lies."""
        scenes = json.dumps([self.index.scenes[number] for number in np.unique(self.frames.scenes)]).encode()
        times = self.frames.times[self.clips].astype("<i8").tobytes()
        return hashlib.sha256(scenes + times).hexdigest()[:12]

    def _substitute(self, number: int, seed: int, error: BadDataError) -> Clip:
        """Another clip, drawn from all by what was asked for, that can be read; its name says whose place it took.

        It is drawn from all, and not the next one, so that a root of which large parts are lacking still gives
        varied clips.
        """
        self.log_once(str(error))
        draw = np.random.default_rng((seed, number))
        for other in draw.integers(len(self), size=SUBSTITUTES).tolist():
            try:
                return self._read(other, seed, name=f"{self.name(other)}{INSTEAD}{self.name(number)}")
            except BadDataError as next_error:
                self.log_once(str(next_error))
        what, problem = error.args
        raise UserError(
            f"none of the clips tried in place of a bad one can be read ({SUBSTITUTES} draws from {len(self)} clips); "
            f"the first problem: {what}: {problem}"
        )

    def log_once(self, problem: str) -> None:
        """Warn of a clip that is left out, unless the same was said before; in a worker, leave it to the main process.

        Args:
            problem: What is wrong with which file or record.
        """
        if problem in self._logged:
            return
        self._logged.add(problem)
        if get_worker_info() is None:
            logger.warning("clip left out: %s", problem)
        else:
            self._unlogged.append(problem)

    def take_unlogged(self) -> list[str]:
        """What a worker has met since the last call and did not log."""
        problems, self._unlogged = self._unlogged, []
        return problems

    def _read(self, number: int, seed: int, name: str | None = None) -> Clip:
        """Read a clip's files."""
        frames = self.clips[number]
        cameras, lidar = self.frames.cameras[frames], self.frames.lidar[frames]
        self._check_records(number)
        reference = lidar if self.has_lidar else cameras[:, 0]
        global_from_ego = self._global_from_ego(reference)  # [T, 4, 4] float64, as all of these
        ego_from_global = invert(global_from_ego)
        ego_from_camera = (
            ego_from_global[:, None] @ self._global_from_ego(cameras) @ self._ego_from_sensor(cameras)
        )  # [T, V, 4, 4]
        images, intrinsics = self._images(cameras)
        points, num_points = self._points(lidar)
        clip = Clip(
            images=images[None],
            intrinsics=intrinsics[None].float(),
            ego_from_camera=ego_from_camera[None].float(),
            current_from_ego=(ego_from_global[-1] @ global_from_ego)[None].float(),
            timestamps=torch.from_numpy(self.frames.times[frames] / 1e6)[None],
            points=points[None],
            num_points=num_points[None],
            seeds=torch.tensor([seed]),
            names=(name or self.name(number),),
            cameras=self.config.cameras,
        )
        try:
            clip.validate()  # a calibration or pose that cannot be would end in losses of NaN
        except ValueError as error:
            raise BadDataError(self.name(number), str(error)) from error
        return clip

    def read(self, number: int) -> Clip:
        """Read a clip, whatever ``on_error`` says.

        Raises:
            BadDataError: If a file or record is missing or broken.
        """
        return self._read(number, number)

    def read_record(self, row: int) -> None:
        """Read one file as for a clip.

        Args:
            row: Of the index: an image of one of the cameras, or a sweep.

        Raises:
            BadDataError: If it is missing or broken.
        """
        if self.index.records["size"][row].any():
            self._images(np.array([[row]], dtype=np.int32))
        else:
            self._points(np.array([row], dtype=np.int32))

    @property
    def reference(self) -> str:
        """Channel at whose times a frame's ego pose is taken: the LiDAR, or the first camera where there is none."""
        return self.config.lidar_name if self.has_lidar else self.config.cameras[0]

    def check_files(self, numbers: Sequence[int]) -> None:
        """See that the files of some clips are there; not what is in them.

        Raises:
            BadDataError: If one is not.
        """
        frames = self.clips[list(numbers)]
        rows = np.unique(self._rows(frames) if self.config.points else self.frames.cameras[frames])
        for row in rows[rows != NONE]:
            path = self._path(self.index.records[row])
            if not path.is_file():
                raise BadDataError(str(path), "no such file")

    def _rows(self, frames: NDArray[np.int32]) -> NDArray[np.int32]:
        """Rows [..., sensors] of all that is read of frames [...], the LiDAR's first if there is one."""
        cameras, lidar = self.frames.cameras[frames], self.frames.lidar[frames]
        return np.concatenate([lidar[..., None], cameras], -1) if self.has_lidar else cameras

    def _check_records(self, number: int | None = None) -> None:
        """Every frame of a clip, or of all, must have every sensor."""
        frames = np.unique(self.clips if number is None else self.clips[number])
        names = (self.config.lidar_name, *self.config.cameras) if self.has_lidar else self.config.cameras
        for place, column in np.argwhere(self._rows(frames) == NONE):
            frame = frames[place]
            scene = self.index.scenes[self.frames.scenes[frame]]
            raise BadDataError(
                f"{names[column]} in {scene} at {self.frames.times[frame] / 1e6:.2f} s", "no record in sample_data.json"
            )

    def _images(self, cameras: NDArray[np.int32]) -> tuple[Tensor, Tensor]:
        """Images [T, V, 3, H, W] uint8 and their intrinsics [T, V, 3, 3] float64."""
        height, width = self.config.image_size
        images = np.empty((*cameras.shape, 3, height, width), dtype=np.uint8)
        intrinsics = torch.empty(*cameras.shape, 3, 3, dtype=torch.float64)
        for place in np.ndindex(cameras.shape):
            record = self.index.records[cameras[place]]
            size = (int(record["size"][0]), int(record["size"][1]))
            in_tables = self._intrinsics(record["calibration"])
            lens = Lens.of(self.index.calibrations[record["calibration"]], in_tables)
            bits = self._bits[self.index.channel(int(cameras[place]))]
            images[place] = read_image(self._path(record), size, self.config.image_size, lens, bits)
            intrinsics[place] = Fit.of(size, self.config.image_size).intrinsics(in_tables)
        return torch.from_numpy(images), intrinsics

    def _find_bits(self, camera: str) -> int | None:
        """Bits of a camera's 16-bit grey, from images of the whole root, so that all splits have the same scale."""
        rows = self.index.all_rows(camera)
        chosen = np.unique(np.linspace(rows.start, rows.stop - 1, PROBES).astype(int))
        records = self.index.records[chosen]
        return find_bits((self._path(record), tuple(record["size"].tolist())) for record in records)

    def _intrinsics(self, calibration: int) -> Tensor:
        """Intrinsics [3, 3] float64 of the image in the tables: they count pixel centres at integers, we at halves."""
        in_tables = torch.from_numpy(self.index.calibrations["intrinsics"][calibration].copy())
        in_tables[:2, 2] += 0.5
        return in_tables

    def _points(self, lidar: NDArray[np.int32]) -> tuple[Tensor, Tensor]:
        """Points [T, P, 3] in each frame's ego frame, padded with zeros, and how many are real [T]."""
        if not (self.has_lidar and self.config.points):
            return torch.zeros(len(lidar), 0, 3), torch.zeros(len(lidar), dtype=torch.int64)
        # A frame's ego frame is the car's at its sweep, so all there is between them is the calibration.
        ego_from_lidar = self._ego_from_sensor(lidar).float()
        sweeps = []
        for pose, row in zip(ego_from_lidar, lidar, strict=True):
            points = read_points(self._path(self.index.records[row]), self.config.lidar_floats)
            sweeps.append(without_car(transform(pose, torch.from_numpy(points)), pose))
        padded = torch.nn.utils.rnn.pad_sequence(sweeps, batch_first=True)
        return padded, torch.tensor([len(sweep) for sweep in sweeps])

    def _global_from_ego(self, rows: NDArray[np.int32]) -> Tensor:
        return _poses(self.index.records[rows])

    def _ego_from_sensor(self, rows: NDArray[np.int32]) -> Tensor:
        return _poses(self.index.calibrations[self.index.records["calibration"][rows]])

    def _path(self, record: Any) -> Path:
        return self.root / record["file"].decode()

    def _why_no_clip(self) -> str:
        config = self.config
        if not len(self.frames.times):
            return f"split {config.split} of {self.root / config.version} has no {config.cameras[0]} image"
        length = max(np.ptp(self.frames.times[self.frames.scenes == s]) for s in np.unique(self.frames.scenes)) / 1e6
        return (
            f"no clip of {config.frames} frames {config.gap} s apart (a tolerance of {config.tolerance} s) in split "
            f"{config.split} of {self.root / config.version}: its longest scene lasts {length:.1f} s. "
            "Ask for fewer `frames`, another `frame_gap` or more `tolerance`"
        )

    def _check_image_sizes(self) -> None:
        rows = self.frames.cameras[self.frames.cameras != NONE]
        for size in np.unique(self.index.records["size"][rows], axis=0).tolist():
            Fit.of(tuple(size), self.config.image_size)

    def _check_lenses(self) -> None:
        """Say whose images are undistorted, and refuse what is not understood."""
        void: dict[str, float] = {}
        for column, camera in enumerate(self.config.cameras):
            rows = self.frames.cameras[:, column]
            records = self.index.records[rows[rows != NONE]]
            numbers, first = np.unique(records["calibration"], return_index=True)
            for number, size in zip(numbers.tolist(), records["size"][first].tolist(), strict=True):
                if str(number) in self.index.lens_faults:
                    raise UserError(
                        f"lens distortion of {camera} in {self.root / self.config.version}/calibrated_sensor.json: "
                        f"{self.index.lens_faults[str(number)]}; or undistort its images and remove the column"
                    )
                lens = Lens.of(self.index.calibrations[number], self._intrinsics(number))
                if lens is None:
                    continue
                fit = Fit.of(tuple(size), self.config.image_size)
                void[camera] = max(void.get(camera, 0.0), lens.void(tuple(size), fit.top / fit.scale))
                if void[camera] > MOST_VOID:
                    raise UserError(
                        f"lens distortion of {camera} in {self.root / self.config.version}/calibrated_sensor.json: "
                        f"{100 * void[camera]:.0f} % of the undistorted image would lie outside of the image that was "
                        "taken; are these the coefficients of another model?"
                    )
        if void:
            black = "".join(f"; {100 * part:.1f} % of {name} is black" for name, part in void.items() if part > 0.001)
            logger.warning(
                "%s: images of %s are undistorted, as the distortion in calibrated_sensor.json says%s",
                self.root / self.config.version,
                ", ".join(void),
                black,
            )


def without_car(points: Tensor, ego_from_lidar: Tensor) -> Tensor:
    """Remove the returns from the car itself: what is within BLIND_RADIUS of the LiDAR's place in the ego frame.

    Args:
        points: [P, 3] metres, in the ego frame.
        ego_from_lidar: [4, 4].

    Returns:
        [P', 3].
    """
    return points[(points - ego_from_lidar[:3, 3])[:, :2].norm(dim=-1) > BLIND_RADIUS]


def count_substitutes(clip: Clip) -> int:
    """How many of the clips stand in the place of one that could not be read (``on_error="skip"``)."""
    return sum(INSTEAD in name for name in clip.names)


def _poses(rows: NDArray[np.void]) -> Tensor:
    """``a_from_b`` [..., 4, 4] float64 from the ``rotation`` and ``translation`` of rows [...]."""
    rotation, translation = (torch.from_numpy(rows[name].copy()) for name in ("rotation", "translation"))
    return make_pose(rotation_from_quaternion(rotation), translation)


def _scenes_of_split(index: Index, config: DataConfig) -> list[int]:
    """Numbers of the scenes of a split that this root has."""
    where = Path(config.dataroot).expanduser() / config.version
    wanted = [name.strip() for name in config.split.split(",") if name.strip()]
    if len(wanted) == 1 and wanted[0] in index.splits:
        scenes = [number for number, name in enumerate(index.scenes) if name in set(index.splits[wanted[0]])]
        if not scenes:
            raise UserError(f"split {config.split}: none of its scenes is in {where}, which has {_some(index.scenes)}")
        return scenes
    lacking = [name for name in wanted if name not in index.scenes]
    if lacking or not wanted:
        raise UserError(
            f"split {', '.join(lacking) or '(empty)'}: neither a split ({', '.join(sorted(index.splits))}) "
            f"nor a scene of {where}, which has {_some(index.scenes)}"
        )
    return sorted(index.scenes.index(name) for name in set(wanted))


def _check_cameras(index: Index, config: DataConfig) -> None:
    lacking = [camera for camera in config.cameras if camera not in index.cameras]
    if lacking:
        there = f"its cameras are `cameras` {shlex.join(index.cameras)}" if index.cameras else "it has none"
        where = Path(config.dataroot).expanduser() / config.version
        raise UserError(f"no camera {', '.join(lacking)} in {where}: {there}")


def _find_lidar(index: Index, config: DataConfig) -> str | None:
    """The LiDAR to read; None if none is wanted or the root has none."""
    if not config.lidar or not index.lidars:
        return None
    if config.lidar_name not in index.lidars:
        where = Path(config.dataroot).expanduser() / config.version
        flags = " or ".join(f"`lidar` {shlex.quote(name)}" for name in index.lidars)
        raise UserError(f"no LiDAR {config.lidar_name} in {where}: its LiDAR has another name, give {flags}")
    return config.lidar_name


def _some(names: tuple[str, ...], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) if names else "no scene"

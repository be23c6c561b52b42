"""Read clips from a root in nuScenes format: nuScenes itself, your own recordings or a synthetic world."""

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
"""Separates the two names in the name of a clip that replaces another one."""
BLIND_RADIUS = 3.0
"""LiDAR points within this horizontal distance of the LiDAR lie on the car itself, metres (published: 3 m)."""
MOST_BLACK = 0.5
"""Fraction of an undistorted image that may be black before its distortion is refused as implausible."""
PROBES = 16
"""Images per camera that are read to find the scale of 16-bit grey."""
SUBSTITUTES = 200
"""Number of other clips that are tried in place of an unreadable one: enough if one file in twenty can be read."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of a data set.

    Raises:
        UserError: If a value is out of range.
    """

    dataroot: str = ""
    """The root: the folder that holds samples/ and one folder of tables per version."""
    version: str = "v1.0-trainval"
    """Name of the folder of tables."""
    split: str = "train"
    """A split of the nuscenes-devkit (train, val, test, mini_train, mini_val, train_detect, train_track), a split in
    the splits.json of the version, or scene names separated by commas."""
    frames: int = FRAMES
    """Frames per clip, T, including the current one."""
    gap: float = 0.5
    """Time between consecutive frames of a clip, seconds."""
    tolerance: float = 0.2
    """Largest distance of a frame from its nominal time, seconds; less than half of ``gap``."""
    cameras: tuple[str, ...] = CAMERAS
    """Names of the V cameras, in the order of the clip."""
    sweeps: bool = False
    """Whether camera images between the key frames are frames too (in nuScenes 12 per second instead of 2)."""
    image_size: tuple[int, int] = (448, 800)
    """Height and width (H, W) of the images of a clip, pixels: they are scaled to the width and cropped at the top."""
    lidar: bool = True
    """Whether to use the LiDAR if there is one."""
    points: bool = True
    """Whether to read LiDAR points. Without them, the sweeps still give the times and the ego poses of the frames."""
    lidar_floats: int = FLOATS_PER_POINT
    """Number of float32 values per point in LiDAR files without a header; x, y and z come first."""
    lidar_name: str = LIDAR
    """Channel of the LiDAR."""
    on_error: Literal["raise", "skip"] = "raise"
    """At a missing or broken file, raise an error, or skip the clip: another clip replaces it and is counted."""

    def __post_init__(self) -> None:
        height, width = self.image_size
        if height < 1 or width < 1:
            raise UserError(f"image_size = {height} {width}: both must be at least 1")
        if self.frames < 1:
            raise UserError(f"frames = {self.frames} must be at least 1")
        if self.frames > 1 and not self.gap > 0:
            raise UserError(f"frame_gap = {self.gap} s must be more than 0")
        if self.frames > 1 and not 0 <= self.tolerance < self.gap / 2:
            raise UserError(
                f"tolerance = {self.tolerance} s must be less than half of `frame_gap` ({self.gap} s) and not "
                "negative, so that no frame is used twice"
            )
        if not 3 <= self.lidar_floats <= 64:
            raise UserError(f"lidar_floats = {self.lidar_floats} must lie in 3 (x, y, z) .. 64")
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise UserError(f"cameras = {' '.join(self.cameras)}: name at least one camera, and each only once")


class NuScenesClips(Dataset[Clip]):
    """All clips of a split, sorted by scene and time. An item is a clip with B = 1.

    Raises:
        UserError: If the root, the version, the split or a camera does not exist, or every scene is too short.
        BadDataError: If a record of a clip is missing in the tables and ``on_error`` is "raise".
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
        """[clips, T]: numbers of the frames of each clip."""
        self.has_lidar = lidar is not None
        if config.lidar and not self.has_lidar:
            logger.warning("%s has no LiDAR: the clips have no points", self.root / config.version)
        self._logged: set[str] = set()
        self._unlogged: list[str] = []
        if not len(self.clips):
            raise UserError(self._why_no_clip())
        self._check_image_sizes()
        self._check_lenses()
        self._bits = {camera: self._find_bits(camera) for camera in config.cameras}
        if config.on_error == "raise":  # at the start, not in the middle of a run
            self._check_records()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: int | tuple[int, int]) -> Clip:
        """Read a clip.

        Args:
            item: Number of the clip, or the number and a seed for ``Clip.seeds``. The default seed is the number.

        Raises:
            IndexError: If there is no such clip.
            BadDataError: If a file or record is missing or broken and ``on_error`` is "raise".
            UserError: If ``on_error`` is "skip" and none of many other clips can be read either.
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
        """Name of a clip: its scene and the time of its current frame, such as ``scene-0061@1532402927.65``."""
        frame = self.clips[number, -1]
        return f"{self.index.scenes[self.frames.scenes[frame]]}@{self.frames.times[frame] / 1e6:.2f}"

    def digest(self) -> str:
        """Hash the scenes and times of all clips to 12 hexadecimal digits; the path of the root does not matter."""
        scenes = json.dumps([self.index.scenes[number] for number in np.unique(self.frames.scenes)]).encode()
        times = self.frames.times[self.clips].astype("<i8").tobytes()
        return hashlib.sha256(scenes + times).hexdigest()[:12]

    def _substitute(self, number: int, seed: int, error: BadDataError) -> Clip:
        """Read another clip in place of an unreadable one; its name has both names.

        The other clip is drawn at random from all clips by ``number`` and ``seed``. If it were the next one, a root
        with large gaps would give the same few clips again and again.
        """
        self.log_once(str(error))
        rng = np.random.default_rng((seed, number))
        for other in rng.integers(len(self), size=SUBSTITUTES).tolist():
            try:
                return self._read(other, seed, name=f"{self.name(other)}{INSTEAD}{self.name(number)}")
            except BadDataError as next_error:
                self.log_once(str(next_error))
        what, problem = error.args
        raise UserError(
            f"cannot read any of {SUBSTITUTES} clips that were drawn from {len(self)} in place of an unreadable one; "
            f"the first problem: {what}: {problem}"
        )

    def log_once(self, problem: str) -> None:
        """Log the problem of a skipped clip once; a worker leaves this to the main process.

        Args:
            problem: Name of the file or record, and what is wrong with it.
        """
        if problem in self._logged:
            return
        self._logged.add(problem)
        if get_worker_info() is None:
            logger.warning("skipped a clip: %s", problem)
        else:
            self._unlogged.append(problem)

    def take_unlogged(self) -> list[str]:
        """Return the problems that a worker has found since the last call and did not log."""
        problems, self._unlogged = self._unlogged, []
        return problems

    def _read(self, number: int, seed: int, name: str | None = None) -> Clip:
        """Read a clip, with another name if one is given."""
        frames = self.clips[number]  # [T]
        cameras, lidar = self.frames.cameras[frames], self.frames.lidar[frames]  # [T, V], [T]
        self._check_records(number)
        reference = lidar if self.has_lidar else cameras[:, 0]  # [T]
        global_from_ego = self._global_from_ego(reference)  # [T, 4, 4], float64 as all poses here
        ego_from_global = invert(global_from_ego)  # [T, 4, 4]
        ego_from_camera = (
            ego_from_global[:, None] @ self._global_from_ego(cameras) @ self._ego_from_sensor(cameras)
        )  # [T, V, 4, 4]
        images, intrinsics = self._images(cameras)  # [T, V, 3, H, W], [T, V, 3, 3]
        points, num_points = self._points(lidar)  # [T, P, 3], [T]
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
            clip.validate()  # an impossible calibration or pose would make the losses NaN
        except ValueError as error:
            raise BadDataError(self.name(number), str(error)) from error
        return clip

    def read(self, number: int) -> Clip:
        """Read a clip and raise an error if that fails, also if ``on_error`` is "skip".

        Raises:
            BadDataError: If a file or record is missing or broken.
        """
        return self._read(number, number)

    def read_record(self, row: int) -> None:
        """Read the file of one record as for a clip.

        Args:
            row: Row in the index, of an image of one of the cameras or of a sweep.

        Raises:
            BadDataError: If the file is missing or broken.
        """
        if self.index.records["size"][row].any():
            self._images(np.array([[row]], dtype=np.int32))
        else:
            self._points(np.array([row], dtype=np.int32))

    @property
    def reference(self) -> str:
        """Channel that gives the times and the ego poses of frames: the LiDAR, or the first camera without LiDAR."""
        return self.config.lidar_name if self.has_lidar else self.config.cameras[0]

    def check_files(self, numbers: Sequence[int]) -> None:
        """Check that the files of some clips exist, without reading them.

        Raises:
            BadDataError: If one does not.
        """
        frames = self.clips[list(numbers)]
        rows = np.unique(self._rows(frames) if self.config.points else self.frames.cameras[frames])
        for row in rows[rows != NONE]:
            path = self._path(self.index.records[row])
            if not path.is_file():
                raise BadDataError(str(path), "no such file")

    def _rows(self, frames: NDArray[np.int32]) -> NDArray[np.int32]:
        """Rows [..., sensors] of all records of frames [...]: the sweep, if there is a LiDAR, and the V images."""
        cameras, lidar = self.frames.cameras[frames], self.frames.lidar[frames]
        return np.concatenate([lidar[..., None], cameras], -1) if self.has_lidar else cameras

    def _check_records(self, number: int | None = None) -> None:
        """Check that every frame of a clip, or of all clips, has a record of every sensor.

        Raises:
            BadDataError: If one is missing.
        """
        frames = np.unique(self.clips if number is None else self.clips[number])
        names = (self.config.lidar_name, *self.config.cameras) if self.has_lidar else self.config.cameras
        for place, column in np.argwhere(self._rows(frames) == NONE):
            frame = frames[place]
            scene = self.index.scenes[self.frames.scenes[frame]]
            raise BadDataError(
                f"{names[column]} in {scene} at {self.frames.times[frame] / 1e6:.2f} s", "no record in sample_data.json"
            )

    def _images(self, cameras: NDArray[np.int32]) -> tuple[Tensor, Tensor]:
        """Read the images of rows [T, V]: [T, V, 3, H, W] uint8, and their intrinsics [T, V, 3, 3] float64."""
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
        """Find the bits of a camera's 16-bit grey, from images of the whole root so that all splits have one scale."""
        rows = self.index.all_rows(camera)
        chosen = np.unique(np.linspace(rows.start, rows.stop - 1, PROBES).astype(int))
        records = self.index.records[chosen]
        return find_bits((self._path(record), tuple(record["size"].tolist())) for record in records)

    def _intrinsics(self, calibration: int) -> Tensor:
        """Intrinsics [3, 3] float64 of the image in the tables, moved from pixel centres at 0 to centres at 0.5."""
        in_tables = torch.from_numpy(self.index.calibrations["intrinsics"][calibration].copy())
        in_tables[:2, 2] += 0.5
        return in_tables

    def _points(self, lidar: NDArray[np.int32]) -> tuple[Tensor, Tensor]:
        """Read the points of sweeps [T]: [T, P, 3] in each frame's ego frame, padded with 0, and their number [T]."""
        if not (self.has_lidar and self.config.points):
            return torch.zeros(len(lidar), 0, 3), torch.zeros(len(lidar), dtype=torch.int64)
        # The ego frame of a frame is the pose of the car at its sweep, so the calibration is the whole transform.
        ego_from_lidar = self._ego_from_sensor(lidar).float()  # [T, 4, 4]
        sweeps = []
        for pose, row in zip(ego_from_lidar, lidar, strict=True):
            points = read_points(self._path(self.index.records[row]), self.config.lidar_floats)
            sweeps.append(remove_car(transform(pose, torch.from_numpy(points)), pose))
        padded = torch.nn.utils.rnn.pad_sequence(sweeps, batch_first=True)  # [T, P, 3]
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
            f"split {config.split} of {self.root / config.version} has no clip of {config.frames} frames "
            f"{config.gap} s apart (tolerance {config.tolerance} s): its longest scene lasts {length:.1f} s. "
            "Set fewer `frames`, another `frame_gap` or a larger `tolerance`"
        )

    def _check_image_sizes(self) -> None:
        rows = self.frames.cameras[self.frames.cameras != NONE]
        for size in np.unique(self.index.records["size"][rows], axis=0).tolist():
            Fit.of(tuple(size), self.config.image_size)

    def _check_lenses(self) -> None:
        """Warn which images are undistorted.

        Raises:
            UserError: If the distortion of a camera is unknown or implausible.
        """
        table = self.root / self.config.version / "calibrated_sensor.json"
        black: dict[str, float] = {}
        for column, camera in enumerate(self.config.cameras):
            rows = self.frames.cameras[:, column]
            records = self.index.records[rows[rows != NONE]]
            numbers, first = np.unique(records["calibration"], return_index=True)
            for number, size in zip(numbers.tolist(), records["size"][first].tolist(), strict=True):
                if str(number) in self.index.lens_faults:
                    raise UserError(
                        f"cannot read the lens distortion of {camera} in {table}: "
                        f"{self.index.lens_faults[str(number)]}; or undistort its images and remove the column"
                    )
                lens = Lens.of(self.index.calibrations[number], self._intrinsics(number))
                if lens is None:
                    continue
                fit = Fit.of(tuple(size), self.config.image_size)
                fraction = lens.black_fraction(tuple(size), fit.top / fit.scale)
                black[camera] = max(black.get(camera, 0.0), fraction)
                if fraction > MOST_BLACK:
                    raise UserError(
                        f"implausible lens distortion of {camera} in {table}: {100 * fraction:.0f} % of the "
                        "undistorted image would be black; are these the coefficients of another model?"
                    )
        if black:
            parts = "".join(f"; {100 * part:.1f} % of {name} is black" for name, part in black.items() if part > 0.001)
            logger.warning("%s has lens distortion: undistorting the images of %s%s", table, ", ".join(black), parts)


def remove_car(points: Tensor, ego_from_lidar: Tensor) -> Tensor:
    """Remove the returns from the car itself: those within a horizontal distance of :data:`BLIND_RADIUS` of the LiDAR.

    Args:
        points: [P, 3] in the ego frame, metres.
        ego_from_lidar: [4, 4] pose of the LiDAR.

    Returns:
        [P', 3], the remaining points.

    >>> remove_car(torch.tensor([[2.9, 0.0, 0.0], [3.1, 0.0, 0.0]]), torch.eye(4))
    tensor([[3.1000, 0.0000, 0.0000]])
    """
    offsets = points - ego_from_lidar[:3, 3]  # [P, 3]
    return points[offsets[:, :2].norm(dim=-1) > BLIND_RADIUS]


def count_substitutes(clip: Clip) -> int:
    """Count the clips of a batch that replace an unreadable one (``on_error="skip"``)."""
    return sum(INSTEAD in name for name in clip.names)


def _poses(rows: NDArray[np.void]) -> Tensor:
    """Make poses [..., 4, 4] float64 from the ``rotation`` and ``translation`` of rows [...]."""
    rotation, translation = (torch.from_numpy(rows[name].copy()) for name in ("rotation", "translation"))
    return make_pose(rotation_from_quaternion(rotation), translation)


def _scenes_of_split(index: Index, config: DataConfig) -> list[int]:
    """Numbers of the scenes of a split that are in the root."""
    where = Path(config.dataroot).expanduser() / config.version
    wanted = [name.strip() for name in config.split.split(",") if name.strip()]
    if len(wanted) == 1 and wanted[0] in index.splits:
        scenes = [number for number, name in enumerate(index.scenes) if name in set(index.splits[wanted[0]])]
        if not scenes:
            raise UserError(f"split {config.split}: none of its scenes is in {where}, which has {_some(index.scenes)}")
        return scenes
    missing = [name for name in wanted if name not in index.scenes]
    if missing or not wanted:
        raise UserError(
            f"split {', '.join(missing) or '(empty)'}: neither a split ({', '.join(sorted(index.splits))}) "
            f"nor a scene of {where}, which has {_some(index.scenes)}"
        )
    return sorted(index.scenes.index(name) for name in set(wanted))


def _check_cameras(index: Index, config: DataConfig) -> None:
    missing = [camera for camera in config.cameras if camera not in index.cameras]
    if missing:
        choice = f"choose from {shlex.join(index.cameras)}" if index.cameras else "it has no camera at all"
        where = Path(config.dataroot).expanduser() / config.version
        raise UserError(f"cameras = {shlex.join(missing)}: not in {where}; {choice}")


def _find_lidar(index: Index, config: DataConfig) -> str | None:
    """Name of the LiDAR to read; None if ``lidar`` is off or the root has none."""
    if not config.lidar or not index.lidars:
        return None
    if config.lidar_name not in index.lidars:
        where = Path(config.dataroot).expanduser() / config.version
        choice = " or ".join(map(shlex.quote, index.lidars))
        raise UserError(f"lidar = {config.lidar_name}: not in {where}; choose {choice}")
    return config.lidar_name


def _some(names: tuple[str, ...], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) if names else "no scene"

"""Which images and sweeps make a frame, and which frames make a clip. Times are integers, microseconds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .index import Index

NONE = -1
"""In the place of a row: no such record."""
SYNC = 100_000
"""How far an image or sweep that is no key frame may be from its frame, microseconds. nuScenes cameras fire every
83 ms, so the nearest image is 42 ms away at most, or 83 ms where one is lacking."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Moments at which every sensor was read, by scene and time. Rows are those of the index."""

    times: NDArray[np.int64]
    """[F]: when the reference was taken: the LiDAR sweep, or the first camera's image where there is no LiDAR."""
    scenes: NDArray[np.int32]
    """[F]: which scene of the index."""
    cameras: NDArray[np.int32]
    """[F, V]: rows of the images, :data:`NONE` where a camera has none for this frame."""
    lidar: NDArray[np.int32]
    """[F]: rows of the sweeps; all :data:`NONE` without LiDAR, otherwise :data:`NONE` where one is lacking."""


def find_frames(
    index: Index, scenes: Sequence[int], cameras: Sequence[str], *, sweeps: bool, lidar: str | None
) -> Frames:
    """All frames of some scenes.

    Key frames are the samples of the tables, each with the records that belong to it. With ``sweeps`` there is a
    frame for every image of the first camera: the sweep nearest to that image is its reference, and from every camera
    it has the image nearest in time to the reference.

    Args:
        index: Of the root.
        scenes: Numbers of scenes in the index.
        cameras: V camera names, in order.
        sweeps: Whether images that are not key frames count.
        lidar: Name of the LiDAR; None for frames without.
    """
    channels = [lidar, *cameras] if lidar else list(cameras)
    parts = [(_sweep_rows if sweeps else _key_frame_rows)(index, scene, channels) for scene in scenes]
    times = np.concatenate([times for times, _ in parts])
    rows = np.concatenate([rows for _, rows in parts])
    return Frames(
        times=times,
        scenes=np.repeat(np.array(scenes, dtype=np.int32), [len(times) for times, _ in parts]),
        cameras=rows[:, len(channels) - len(cameras) :],
        lidar=rows[:, 0] if len(channels) > len(cameras) else np.full(len(rows), NONE, dtype=np.int32),
    )


def find_clips(frames: Frames, *, length: int, gap: int, tolerance: int) -> NDArray[np.int32]:
    """Every clip that its scene has room for.

    Args:
        frames: To choose from.
        length: T.
        gap: Between the wanted times of neighbours, microseconds; the last frame is where the counting starts.
        tolerance: How far a frame may be from its wanted time, microseconds; less than half the gap, so that no frame
            is chosen twice.

    Returns:
        [N, T] frame numbers, oldest first, one clip for each possible last frame.
    """
    back = gap * np.arange(length - 1, -1, -1)
    clips = []
    for scene in np.unique(frames.scenes):
        first, last = np.searchsorted(frames.scenes, [scene, scene + 1])
        times = frames.times[first:last]
        wanted = times[:, None] - back  # [n, T]
        chosen = nearest(times, wanted)
        close = np.abs(times[chosen] - wanted) <= tolerance
        clips.append(first + chosen[close.all(axis=1)])
    return np.concatenate(clips).astype(np.int32) if clips else np.zeros((0, length), dtype=np.int32)


def nearest(times: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each wanted time the index of the nearest of ``times`` (sorted, at least one); of two the earlier."""
    after = np.searchsorted(times, wanted).clip(1, max(len(times) - 1, 1))
    after = np.minimum(after, len(times) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(wanted - times[before] <= times[after] - wanted, before, after)


def _key_frame_rows(index: Index, scene: int, channels: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Times [F] and rows [F, channels] of a scene's samples; the first channel is the reference."""
    first, last = int(index.sample_bounds[scene]), int(index.sample_bounds[scene + 1])
    rows = np.full((last - first, len(channels)), NONE, dtype=np.int32)
    for column, channel in enumerate(channels):
        span = index.rows(channel, scene)
        samples = index.records["sample"][span]
        key_frames = np.flatnonzero(samples >= 0)
        rows[samples[key_frames] - first, column] = span.start + key_frames
    times = np.where(rows[:, 0] == NONE, index.samples[first:last], index.records["time"][rows[:, 0]])
    order = np.argsort(times, kind="stable")
    return times[order], rows[order]


def _sweep_rows(index: Index, scene: int, channels: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Times [F] and rows [F, channels] of a scene's frames; the first channel is the reference."""
    first_camera = channels[1] if channels[0] in index.lidars else channels[0]
    images = index.records["time"][index.rows(first_camera, scene)]
    reference_rows = _nearest_rows(index, channels[0], scene, images)
    lacking = reference_rows == NONE
    times = np.where(lacking, images, index.records["time"][reference_rows])
    times, kept = np.unique(times, return_index=True)
    columns = [reference_rows[kept], *(_nearest_rows(index, c, scene, times) for c in channels[1:])]
    return times, np.stack(columns, axis=1)


def _nearest_rows(index: Index, channel: str, scene: int, wanted: NDArray[np.int64]) -> NDArray[np.int32]:
    """The row of a sensor nearest to each wanted time in a scene, :data:`NONE` beyond :data:`SYNC`."""
    span = index.rows(channel, scene)
    times = index.records["time"][span]
    if not len(times):
        return np.full(len(wanted), NONE, dtype=np.int32)
    chosen = nearest(times, wanted)
    close = np.abs(times[chosen] - wanted) <= SYNC
    return np.where(close, span.start + chosen, NONE).astype(np.int32)

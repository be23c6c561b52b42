"""Find the images and sweep of each frame and the frames of each clip. Times are integer microseconds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .index import Index

NONE = -1
"""Stands in place of a row number if there is no record."""
SYNC = 100_000
"""Largest distance of an image or sweep from its frame if frames are not key frames, microseconds. nuScenes cameras
take an image every 83 ms, so the nearest image is at most 42 ms away, or 83 ms if one is missing."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The frames of some scenes, sorted by scene and time, with one record per sensor."""

    times: NDArray[np.int64]
    """[frames]: time of the reference record: the LiDAR sweep, or the image of the first camera without LiDAR."""
    scenes: NDArray[np.int32]
    """[frames]: number of the scene in the index."""
    cameras: NDArray[np.int32]
    """[frames, V]: rows of the images in the index; :data:`NONE` where a camera has no image for the frame."""
    lidar: NDArray[np.int32]
    """[frames]: rows of the sweeps in the index; :data:`NONE` where a sweep is missing, or everywhere without LiDAR."""


def find_frames(
    index: Index, scenes: Sequence[int], cameras: Sequence[str], *, sweeps: bool, lidar: str | None
) -> Frames:
    """Find all frames of some scenes.

    Without ``sweeps``, each key frame (a sample of the tables) is a frame, with the records that belong to it. With
    ``sweeps``, there is one frame per image of the first camera: its reference is the LiDAR sweep nearest to that
    image, and every camera contributes its image nearest to the reference.

    Args:
        index: Index of the root.
        scenes: Numbers of the scenes in the index.
        cameras: Names of the V cameras, in the order of ``Frames.cameras``.
        sweeps: Whether frames are found from all images, not only from key frames.
        lidar: Name of the LiDAR; None for frames without LiDAR.
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
    """Find one clip for each frame before which its scene has enough other frames.

    Frame t of a clip is the frame nearest to the time ``last - (T - 1 - t) * gap``.

    Args:
        frames: The frames to choose from.
        length: T, number of frames per clip.
        gap: Time between consecutive frames, microseconds.
        tolerance: Largest distance of a frame from its nominal time, microseconds; less than half of ``gap``, so that
            no frame is chosen twice.

    Returns:
        [clips, T] numbers of frames, oldest first.

    >>> none = np.full(5, NONE, dtype=np.int32)
    >>> times = np.array([0, 480, 1000, 1500, 2200])
    >>> frames = Frames(times=times, scenes=np.zeros(5, dtype=np.int32), cameras=none[:, None], lidar=none)
    >>> find_clips(frames, length=3, gap=500, tolerance=100).tolist()
    [[0, 1, 2], [1, 2, 3]]
    """
    back = gap * np.arange(length - 1, -1, -1)  # [T]
    clips = []
    for scene in np.unique(frames.scenes):
        first, last = np.searchsorted(frames.scenes, [scene, scene + 1])
        times = frames.times[first:last]  # [frames]
        nominal = times[:, None] - back  # [frames, T]
        chosen = nearest(times, nominal)  # [frames, T]
        close = np.abs(times[chosen] - nominal) <= tolerance  # [frames, T]
        clips.append(first + chosen[close.all(axis=1)])
    return np.concatenate(clips).astype(np.int32) if clips else np.zeros((0, length), dtype=np.int32)


def nearest(times: NDArray[np.int64], queries: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find the nearest time for each query; the earlier one of two equally near.

    Args:
        times: [times] sorted, at least one.
        queries: Of any shape.

    Returns:
        Indices into ``times``, of the shape of ``queries``.

    >>> nearest(np.array([0, 10, 20]), np.array([-3, 4, 5, 6, 99])).tolist()
    [0, 0, 0, 1, 2]
    """
    after = np.searchsorted(times, queries).clip(1, max(len(times) - 1, 1))
    after = np.minimum(after, len(times) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(queries - times[before] <= times[after] - queries, before, after)


def _key_frame_rows(index: Index, scene: int, channels: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Times [frames] and rows [frames, channels] of the key frames of a scene; the first channel is the reference."""
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
    """Times [frames] and rows [frames, channels] of all frames of a scene; the first channel is the reference."""
    first_camera = channels[1] if channels[0] in index.lidars else channels[0]
    images = index.records["time"][index.rows(first_camera, scene)]  # [images]
    reference_rows = _nearest_rows(index, channels[0], scene, images)  # [images]
    times = np.where(reference_rows == NONE, images, index.records["time"][reference_rows])  # [images]
    times, kept = np.unique(times, return_index=True)
    columns = [reference_rows[kept], *(_nearest_rows(index, c, scene, times) for c in channels[1:])]
    return times, np.stack(columns, axis=1)


def _nearest_rows(index: Index, channel: str, scene: int, queries: NDArray[np.int64]) -> NDArray[np.int32]:
    """Find the row of a sensor nearest to each time [times] in a scene; :data:`NONE` beyond :data:`SYNC`."""
    span = index.rows(channel, scene)
    times = index.records["time"][span]
    if not len(times):
        return np.full(len(queries), NONE, dtype=np.int32)
    chosen = nearest(times, queries)
    close = np.abs(times[chosen] - queries) <= SYNC
    return np.where(close, span.start + chosen, NONE).astype(np.int32)

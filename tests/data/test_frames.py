import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mim4d.data.frames import NONE, Frames, find_clips, find_frames, nearest
from mim4d.data.index import open_index
from mim4d.pretrain.presets import PRESETS
from mim4d.world import WorldConfig, make_world
from tests.data.roots import LIDAR, VERSION, edit_table, write_root
from tests.reference import nuscenes as reference

SECOND = 1_000_000
CAMERAS = ("CAM_FRONT", "CAM_BACK")


def frames_at(*scenes):
    """Frames of scenes given as lists of times."""
    times = np.concatenate([np.array(scene, dtype=np.int64) for scene in scenes])
    none = np.full(len(times), NONE, dtype=np.int32)
    numbers = np.repeat(np.arange(len(scenes), dtype=np.int32), [len(scene) for scene in scenes])
    return Frames(times=times, scenes=numbers, cameras=none[:, None], lidar=none)


times = st.lists(st.integers(0, 5 * SECOND), min_size=1, max_size=30, unique=True).map(sorted)


@given(times, st.lists(st.integers(-SECOND, 6 * SECOND), min_size=1, max_size=5))
def test_nearest_agrees_with_looking_at_all(scene, wanted):
    found = nearest(np.array(scene), np.array(wanted))
    for at, index in zip(wanted, found, strict=True):
        assert abs(scene[index] - at) == min(abs(t - at) for t in scene)


@given(times, times, st.integers(1, 5), st.integers(10, SECOND), st.floats(0, 0.499))
def test_clips_agree_with_looking_at_all(first, second, length, gap, share):
    tolerance = int(share * gap)
    found = find_clips(frames_at(first, second), length=length, gap=gap, tolerance=tolerance)
    expected = np.concatenate(
        [
            reference.clips(first, length, gap, tolerance),
            reference.clips(second, length, gap, tolerance) + len(first),
        ]
    )
    np.testing.assert_array_equal(found, expected)
    assert (np.diff(found) > 0).all(), "a frame twice in a clip"


def test_a_clip_stays_in_its_scene():
    half = SECOND // 2
    # The second scene goes on exactly where the first ends.
    frames = frames_at([0, half, 2 * half], [3 * half, 4 * half, 5 * half])
    assert find_clips(frames, length=3, gap=half, tolerance=1000).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_hole_in_a_scene_breaks_clips_that_would_span_it():
    half = SECOND // 2
    frames = frames_at([0, half, 4 * half, 5 * half])
    assert find_clips(frames, length=2, gap=half, tolerance=half // 4).tolist() == [[0, 1], [2, 3]]


def test_tolerance_decides_how_far_a_frame_may_be():
    frames = frames_at([0, 400_000])
    assert find_clips(frames, length=2, gap=500_000, tolerance=100_000).tolist() == [[0, 1]]
    assert find_clips(frames, length=2, gap=500_000, tolerance=99_999).tolist() == []


def test_the_paper_preset_finds_a_clip_for_nearly_every_image():
    """At nuScenes' rates: an image every 83 ms, a frame at its sweep, of which there is one every 50 ms."""
    rng = np.random.default_rng(0)
    images, sweeps = (
        np.arange(0, 20_000_000, period) + rng.integers(0, 1500, -(-20_000_000 // period))
        for period in (83_333, 50_000)
    )
    times = np.unique(sweeps[nearest(sweeps, images)])
    config = PRESETS["paper"].data_config("train")
    clips = find_clips(
        frames_at(times), length=config.frames, gap=round(config.gap * 1e6), tolerance=round(config.tolerance * 1e6)
    )
    assert len(clips) > 0.95 * (len(times) - config.frames)


def test_key_frames_are_the_samples(root):
    index = open_index(root, VERSION)
    frames = find_frames(index, [0, 1], CAMERAS, sweeps=False, lidar=LIDAR)
    raw = reference.Tables(root, VERSION)
    for scene, name in enumerate(index.scenes):
        mine = frames.scenes == scene
        for channel, rows in ((LIDAR, frames.lidar), ("CAM_FRONT", frames.cameras[:, 0])):
            expected = [r["filename"].encode() for r in raw.records(name, channel, key_frames=True)]
            assert index.records["file"][rows[mine]].tolist() == expected
    np.testing.assert_array_equal(frames.times, index.records["time"][frames.lidar])


def test_sweeps_are_the_images_nearest_to_the_lidar(tmp_path):
    root = write_root(tmp_path / "root", samples=4, between=5)
    index = open_index(root, VERSION)
    frames = find_frames(index, [0], CAMERAS, sweeps=True, lidar=LIDAR)
    raw = reference.Tables(root, VERSION)
    sweeps = raw.records("scene-0061", LIDAR, key_frames=False)
    assert len(frames.times) == len(sweeps) == 24
    for frame, sweep in enumerate(sweeps):
        assert index.records["file"][frames.lidar[frame]].decode() == sweep["filename"]
        for v, camera in enumerate(CAMERAS):
            image = reference.nearest(raw.records("scene-0061", camera, key_frames=False), sweep["timestamp"])
            assert index.records["file"][frames.cameras[frame, v]].decode() == image["filename"]


def test_a_world_at_ten_hertz_has_clips_a_tenth_of_a_second_apart(tmp_path):
    config = WorldConfig(scenes=1, scale=0.05, keyframes=3, camera_rate=10.0, lidar_rate=10.0)
    root = make_world(tmp_path / "root", "v1.0-mini", config, workers=1)
    index = open_index(root, "v1.0-mini")
    frames = find_frames(index, [0], CAMERAS, sweeps=True, lidar=LIDAR)
    assert len(frames.times) == 11
    clips = find_clips(frames, length=3, gap=100_000, tolerance=10_000)
    assert clips.tolist() == [[first, first + 1, first + 2] for first in range(9)]
    files = index.records["file"][frames.cameras].ravel()
    assert len(set(files.tolist())) == 11 * len(CAMERAS)  # every image belongs to one frame


def test_without_lidar_the_first_camera_gives_the_time(tmp_path):
    root = write_root(tmp_path / "root", lidar=False, between=2)
    index = open_index(root, VERSION)
    for sweeps in (False, True):
        frames = find_frames(index, [0], ("CAM_BACK", "CAM_FRONT"), sweeps=sweeps, lidar=None)
        assert len(frames.times) == (18 if sweeps else 6)
        np.testing.assert_array_equal(frames.times, index.records["time"][frames.cameras[:, 0]])
        assert (frames.lidar == NONE).all()


def test_a_record_that_is_not_there_leaves_its_place_empty(root):
    edit_table(root, "sample_data", lambda records: [r for r in records if r["token"] != "scene-0061-CAM_BACK-2"])
    index = open_index(root, VERSION)
    frames = find_frames(index, [0], CAMERAS, sweeps=False, lidar=LIDAR)
    assert np.argwhere(frames.cameras == NONE).tolist() == [[2, 1]]
    # The image half a second away is no stand-in with sweeps either.
    frames = find_frames(index, [0], CAMERAS, sweeps=True, lidar=LIDAR)
    assert np.argwhere(frames.cameras == NONE).tolist() == [[2, 1]]

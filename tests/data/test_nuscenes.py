import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from mim4d.data import DataConfig, NuScenesClips
from mim4d.errors import UserError
from mim4d.geometry import project, transform
from tests.data.roots import LIDAR, VERSION, edit_table, file_of, write_root
from tests.reference import nuscenes as reference
from tests.reference import pinhole, rigid

CAMERAS = ("CAM_FRONT", "CAM_BACK")


def config_of(root, **changes):
    settings = {
        "dataroot": str(root),
        "version": VERSION,
        "split": "mini_train",
        "cameras": CAMERAS,
        "frames": 3,
        "image_size": (32, 64),
    }
    return DataConfig(**(settings | changes))


def test_every_clip_of_a_split(root):
    dataset = NuScenesClips(config_of(root, split="mini_train,"))
    assert dataset.config.frames == 3
    assert len(dataset) == 4  # six samples have room for four clips of three; scene-0103 is in mini_val
    assert [dataset.name(i)[:10] for i in range(4)] == ["scene-0061"] * 4
    clip = dataset[0]
    clip.validate()
    assert clip.images.shape == (1, 3, 2, 3, 32, 64)
    assert clip.cameras == CAMERAS
    assert clip.names == ("scene-0061@1532402928.00",)
    torch.testing.assert_close(clip.times, torch.tensor([[-1.0, -0.5, 0.0]]))


def test_splits_and_scene_names(root):
    assert len(NuScenesClips(config_of(root, split="mini_val"))) == 4
    assert len(NuScenesClips(config_of(root, split="scene-0103, scene-0061"))) == 8
    (root / VERSION / "splits.json").write_text(json.dumps({"night": ["scene-0103"]}))
    assert NuScenesClips(config_of(root, split="night")).name(0).startswith("scene-0103")


@pytest.mark.parametrize("sweeps", [False, True])
@pytest.mark.parametrize("lidar", [True, False])
def test_geometry_agrees_with_the_raw_tables(tmp_path, sweeps, lidar):
    """Poses at each sensor's own time, intrinsics, times and points, from the JSON tables by way of float64 loops."""
    root = write_root(tmp_path / "root", between=5)
    config = config_of(root, sweeps=sweeps, lidar=lidar, gap=0.5 / 6 if sweeps else 0.5, tolerance=0.02)
    dataset = NuScenesClips(config)
    raw = reference.Tables(root, VERSION)
    records = {channel: raw.records("scene-0061", channel, key_frames=not sweeps) for channel in (LIDAR, *CAMERAS)}
    number = len(dataset) - 1
    clip = dataset[number]
    clip.validate()
    assert clip.num_points.bool().all() == lidar

    references = records[LIDAR if lidar else CAMERAS[0]][-3:]
    assert clip.timestamps[0].tolist() == pytest.approx([r["timestamp"] / 1e6 for r in references], abs=1e-6)
    for t, frame in enumerate(references):
        ego_from_global = np.linalg.inv(raw.global_from_ego(frame))
        current_from_global = np.linalg.inv(raw.global_from_ego(references[-1]))
        expected = current_from_global @ raw.global_from_ego(frame)
        np.testing.assert_allclose(clip.current_from_ego[0, t], expected, atol=1e-5)
        for v, camera in enumerate(CAMERAS):
            image = reference.nearest(records[camera], frame["timestamp"])
            expected = ego_from_global @ raw.global_from_ego(image) @ raw.ego_from_sensor(image)
            np.testing.assert_allclose(clip.ego_from_camera[0, t, v], expected, atol=1e-5)
        if lidar:
            points = np.fromfile(root / frame["filename"], dtype="<f4").reshape(-1, 5)[:, :3]
            ego_from_lidar = raw.ego_from_sensor(frame)
            expected = rigid.transform(ego_from_lidar, points.astype(float))
            expected = expected[[np.hypot(*(point - ego_from_lidar[:3, 3])[:2]) > 3 for point in expected]]
            assert clip.num_points[0, t] == len(expected)
            np.testing.assert_allclose(clip.points[0, t, : len(expected)], expected, atol=1e-4)


def test_returns_from_the_car_itself_are_left_out(tmp_path):
    """They lie around the LiDAR, which need not stand over the rear axle."""
    root = write_root(tmp_path / "root")
    mounted = {"translation": [0.9, 0.2, 1.8], "rotation": [1.0, 0.0, 0.0, 0.0]}
    edit_table(
        root, "calibrated_sensor", lambda rows: [row | mounted if LIDAR in row["token"] else row for row in rows]
    )
    points = np.array([[2.9, 0, 0], [3.1, 0, 0], [0, -2.9, -1.7], [0, -3.1, -1.7], [-3.3, 0, 9], [-2.1, 2.1, 0]])
    for number in range(3):
        np.pad(points, ((0, 0), (0, 2))).astype("<f4").tofile(file_of(root, LIDAR, number))
    clip = NuScenesClips(config_of(root))[0]
    expected = points[[1, 3, 4]] + mounted["translation"]
    for t in range(3):
        np.testing.assert_allclose(clip.points[0, t, : clip.num_points[0, t]], expected, atol=1e-5)


def test_intrinsics_point_at_the_same_content(root):
    """A point at pixel p of the table's image is at the fitted pixel of ours: scaled by 1/2, four rows cut off."""
    clip = NuScenesClips(config_of(root))[0]
    raw = reference.Tables(root, VERSION)
    in_tables = np.array(raw.calibrated_sensor["scene-0061-CAM_FRONT-calibration"]["camera_intrinsic"])
    points = np.array([[0.1, -0.05, 2.0], [-0.3, 0.2, 5.0]])
    centres_at_integers, _ = pinhole.project(in_tables, points)
    expected = (centres_at_integers + 0.5) / 2 - [0, 36 - 32]
    pixels, _ = project(clip.intrinsics[0, 0, 0].double(), torch.from_numpy(points))
    np.testing.assert_allclose(pixels, expected, atol=1e-4)


def test_images_belong_to_their_cameras(root):
    """Any subset, in any order."""
    both, one = NuScenesClips(config_of(root)), NuScenesClips(config_of(root, cameras=("CAM_BACK",)))
    swapped = NuScenesClips(config_of(root, cameras=CAMERAS[::-1]))
    for field in ("images", "intrinsics", "ego_from_camera"):
        expected = getattr(both[1], field)
        assert torch.equal(getattr(one[1], field), expected[:, :, 1:])
        assert torch.equal(getattr(swapped[1], field), expected.flip(2))


def test_a_static_point_stays_put_between_frames(root):
    """LiDAR of two frames in global coordinates, by way of the clip and by way of the tables."""
    clip = NuScenesClips(config_of(root))[0]
    raw = reference.Tables(root, VERSION)
    frames = raw.records("scene-0061", LIDAR, key_frames=True)[:3]
    point = np.array([[1.0, 2.0, 0.5]])
    in_last = rigid.transform(np.linalg.inv(raw.global_from_ego(frames[2])) @ raw.global_from_ego(frames[0]), point)
    np.testing.assert_allclose(transform(clip.current_from_ego[0, 0], torch.tensor(point).float()), in_last, atol=1e-4)


def test_seeds(root):
    dataset = NuScenesClips(config_of(root))
    assert dataset[2].seeds.tolist() == [2]
    assert dataset[(2, 2**62 + 1)].seeds.tolist() == [2**62 + 1]
    assert torch.equal(dataset[(2, 5)].images, dataset[2].images)


def test_can_be_gone_through(root):
    assert len(list(NuScenesClips(config_of(root)))) == 4


def test_a_single_frame_needs_no_gap(root):
    dataset = NuScenesClips(config_of(root, frames=1, gap=0.0))
    assert len(dataset) == 6
    dataset[0].validate()


def test_a_root_without_lidar(tmp_path, caplog):
    root = write_root(tmp_path / "root", lidar=False)
    clip = NuScenesClips(config_of(root))[0]
    clip.validate()
    assert clip.num_points.tolist() == [[0, 0, 0]]
    assert "has no LiDAR: the clips have no points" in caplog.text


def test_pickles_small_and_reads_the_same(root):
    dataset = NuScenesClips(config_of(root))
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < 4000
    assert torch.equal(copy[3].points, dataset[3].points)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "mini_test"}, r"split mini_test: neither a split \(.*mini_train.*\) nor a scene .*scene-0061"),
        ({"split": ""}, r"split \(empty\)"),
        ({"split": "test"}, r"split test: none of its scenes is in .*, which has scene-0061, scene-0103"),
        ({"split": "scene-0061,scene-0001"}, r"split scene-0001: neither"),
        (
            {"cameras": ("CAM_FRONT", "CAM_LEFT")},
            r"cameras = CAM_LEFT: not in .*; choose from CAM_BACK CAM_FRONT",
        ),
        ({"frames": 7}, r"has no clip of 7 frames 0.5 s apart .* longest scene lasts 2.5 s"),
        ({"gap": 0.7, "tolerance": 0.1}, r"no clip of 3 frames 0.7 s apart"),
        ({"image_size": (64, 64)}, r"128x72 scaled to a width of 64 have 36 rows"),
    ],
)
def test_what_cannot_be_read_is_said_at_the_start(root, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        NuScenesClips(config_of(root, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (0, 800)}, "image_size = 0 800: both must be at least 1"),
        ({"frames": 0}, "frames = 0 must be at least 1"),
        ({"gap": 0.0}, r"frame_gap = 0.0 s must be more than 0"),
        ({"gap": -0.5}, r"frame_gap = -0.5 s"),
        ({"tolerance": 0.25}, r"tolerance = 0.25 s must be less than half of `frame_gap` \(0.5 s\)"),
        ({"cameras": ("CAM_FRONT", "CAM_FRONT")}, "each only once"),
        ({"cameras": ()}, "name at least one camera"),
    ],
)
def test_values_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        replace(DataConfig(), **changes)

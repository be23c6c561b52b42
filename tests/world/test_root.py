"""The root against nuScenes' schema, read by the devkit."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from nuscenes.utils.splits import create_splits_scenes
from PIL import Image

CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
REFERS = {
    "scene": ("log", "first_sample:sample", "last_sample:sample"),
    "sample": ("scene",),
    "sample_data": ("sample", "ego_pose", "calibrated_sensor"),
    "calibrated_sensor": ("sensor",),
    "sample_annotation": ("sample", "instance", "visibility"),
    "instance": ("category", "first_annotation:sample_annotation", "last_annotation:sample_annotation"),
}
CHAINS = ("sample", "sample_data", "sample_annotation")


def test_every_reference_leads_somewhere(nusc):
    for table, targets in REFERS.items():
        for row in getattr(nusc, table):
            for target in targets:
                name, _, other = target.partition(":")
                nusc.get(other or name, row[f"{name}_token"])
    for row in nusc.sample_annotation:
        for token in row["attribute_tokens"]:
            nusc.get("attribute", token)
    for row in nusc.map:
        for token in row["log_tokens"]:
            nusc.get("log", token)
    assert {token for row in nusc.map for token in row["log_tokens"]} == {log["token"] for log in nusc.log}


def test_tokens_are_unique(nusc):
    for table in nusc.table_names:
        tokens = [row["token"] for row in getattr(nusc, table)]
        assert len(set(tokens)) == len(tokens), table


@pytest.mark.parametrize("table", CHAINS)
def test_prev_and_next_are_chains_in_time(nusc, table):
    for row in getattr(nusc, table):
        if row["next"]:
            following = nusc.get(table, row["next"])
            assert following["prev"] == row["token"]
            when = [
                nusc.get("sample", r["sample_token"])["timestamp"] if table == "sample_annotation" else r["timestamp"]
                for r in (row, following)
            ]
            assert when[0] < when[1]


def test_counts_and_ends_match_the_chains(nusc):
    for scene in nusc.scene:
        tokens = [scene["first_sample_token"]]
        while following := nusc.get("sample", tokens[-1])["next"]:
            tokens.append(following)
        assert tokens[-1] == scene["last_sample_token"]
        assert len(tokens) == scene["nbr_samples"] == 4
    for instance in nusc.instance:
        tokens = [instance["first_annotation_token"]]
        while following := nusc.get("sample_annotation", tokens[-1])["next"]:
            tokens.append(following)
        assert tokens[-1] == instance["last_annotation_token"]
        assert len(tokens) == instance["nbr_annotations"]


def test_every_sample_has_all_sensors_at_its_time(nusc):
    for sample in nusc.sample:
        assert set(sample["data"]) == {*CAMERAS, "LIDAR_TOP"}
        shots = {name: nusc.get("sample_data", token) for name, token in sample["data"].items()}
        assert shots["LIDAR_TOP"]["timestamp"] == sample["timestamp"]
        for shot in shots.values():
            assert abs(shot["timestamp"] - sample["timestamp"]) <= 50_000
            pose = nusc.get("ego_pose", shot["ego_pose_token"])
            assert pose["timestamp"] == shot["timestamp"]
            assert np.linalg.norm(pose["rotation"]) == pytest.approx(1.0)
        assert len({shot["timestamp"] for shot in shots.values()}) == 7


def test_files_are_as_the_tables_say(nusc, tiny_world):
    for shot in nusc.sample_data:
        path = tiny_world / shot["filename"]
        log = nusc.get("log", nusc.get("scene", nusc.get("sample", shot["sample_token"])["scene_token"])["log_token"])
        assert path.name.split("__")[:2] == [log["logfile"], shot["channel"]]
        assert path.name.split("__")[2].split(".")[0] == str(shot["timestamp"])
        if shot["sensor_modality"] == "camera":
            with Image.open(path) as image:
                image.load()
                assert (image.format, image.mode) == ("JPEG", "RGB")
                assert image.size == (shot["width"], shot["height"]) == (200, 112)
            assert shot["fileformat"] == "jpg"
        else:
            points = np.fromfile(path, np.float32).reshape(-1, 5)
            assert shot["fileformat"] == "pcd"
            assert len(points) > 10_000
            assert set(np.unique(points[:, 4])) <= set(range(32))
            assert points[:, 3].min() >= 0
            assert points[:, 3].max() <= 255
    on_disk = {str(p.relative_to(tiny_world)) for p in tiny_world.rglob("*") if p.suffix in (".jpg", ".bin")}
    assert on_disk == {shot["filename"] for shot in nusc.sample_data}


def test_vocabulary_is_nuscenes_own(nusc):
    assert len(nusc.category) == 23
    assert len(nusc.attribute) == 8
    assert {row["token"]: row["level"] for row in nusc.visibility} == {
        "1": "v0-40",
        "2": "v40-60",
        "3": "v60-80",
        "4": "v80-100",
    }
    for row in nusc.sample_annotation:
        names = [nusc.get("attribute", token)["name"] for token in row["attribute_tokens"]]
        kind = row["category_name"].split(".")[0 if row["category_name"].startswith("vehicle") else 1]
        expected = {"vehicle": ("vehicle", "cycle"), "pedestrian": ("pedestrian",)}.get(kind, ())
        assert len(names) == bool(expected)
        assert all(name.split(".")[0] in expected for name in names)


def test_split_lists_work_unchanged(nusc):
    splits = create_splits_scenes()
    names = {scene["name"] for scene in nusc.scene}
    assert len(names & set(splits["mini_train"])) == 2
    assert len(names & set(splits["mini_val"])) == 1


def test_no_radar_is_claimed(nusc):
    assert {row["channel"] for row in nusc.sensor} == {*CAMERAS, "LIDAR_TOP"}
    assert {row["num_radar_pts"] for row in nusc.sample_annotation} == {0}


def test_the_devkit_lists_and_draws(nusc, tmp_path, capsys):
    nusc.list_scenes()
    assert "scene-0061" in capsys.readouterr().out
    sample = nusc.sample[0]
    nusc.render_sample_data(sample["data"]["CAM_FRONT"], out_path=str(tmp_path / "boxes.png"), verbose=False)
    nusc.render_pointcloud_in_image(sample["token"], out_path=str(tmp_path / "points.png"), verbose=False)
    assert (tmp_path / "boxes.png").exists()
    assert (tmp_path / "points.png").exists()


def test_the_ego_car_keeps_to_the_map(nusc):
    for scene in nusc.scene:
        mask = next(row["mask"] for row in nusc.map if scene["log_token"] in row["log_tokens"])
        sample = nusc.get("sample", scene["first_sample_token"])
        shot = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        x, y, z = nusc.get("ego_pose", shot["ego_pose_token"])["translation"]
        assert z == 0.0
        assert mask.is_on_mask(x, y).all()
        assert not mask.is_on_mask(x + 30.0, y + 300.0).any()
        assert 0.02 < (mask.mask() > 0).mean() < 0.5


def test_nothing_but_the_world_is_left(tiny_world):
    entries = {entry.name for entry in Path(tiny_world).iterdir()}
    assert entries == {"maps", "samples", "v1.0-mini", "world.json"}


@pytest.mark.parametrize(("camera_rate", "lidar_rate"), [(4.0, 6.0), (10.0, 20.0), (12.0, 10.0)])
def test_sweeps_stand_between_key_frames(camera_rate, lidar_rate, tmp_path):
    from nuscenes import NuScenes

    from mim4d.world import WorldConfig, make_world

    config = WorldConfig(scenes=1, seed=3, scale=0.06, keyframes=2, camera_rate=camera_rate, lidar_rate=lidar_rate)
    root = make_world(tmp_path / "w", "v1.0-mini", config, workers=1)
    nusc = NuScenes("v1.0-mini", str(root), verbose=False)
    for channel, rate in (("CAM_BACK", camera_rate), ("LIDAR_TOP", lidar_rate)):
        between = round(rate / 2) - 1
        shots = [shot for shot in nusc.sample_data if shot["channel"] == channel]
        assert [shot["is_key_frame"] for shot in shots] == [True, *[False] * between, True]
        gaps = [after["timestamp"] - before["timestamp"] for before, after in pairwise(shots)]
        np.testing.assert_allclose(gaps, 500_000 / (between + 1), atol=2)
        # A sweep belongs to the key frame that follows it.
        assert [shot["sample_token"] for shot in shots[1:]] == [nusc.sample[1]["token"]] * (between + 1)
        for shot in shots:
            assert re.match("samples/" if shot["is_key_frame"] else "sweeps/", shot["filename"])
            assert (root / shot["filename"]).exists()

"""A file or record that is missing or broken: named, or left out and counted; never silent."""

import pytest
import torch

from mim4d.data import NuScenesClips, count_substitutes, make_loader
from mim4d.errors import BadDataError, UserError
from tests.data.roots import LIDAR, edit_table, file_of
from tests.data.test_nuscenes import config_of


def remove_record(root, token):
    edit_table(root, "sample_data", lambda records: [r for r in records if r["token"] != token])


def damage(root, kind):
    """Break something that clips 2 and 3 of scene-0061 need, and none before."""
    if kind == "missing image":
        file_of(root, "CAM_BACK", 4).unlink()
        return str(file_of(root, "CAM_BACK", 4))
    if kind == "truncated image":
        path = file_of(root, "CAM_FRONT", 4)
        path.write_bytes(path.read_bytes()[:500])
        return str(path)
    if kind == "empty sweep":
        file_of(root, LIDAR, 4).write_bytes(b"")
        return str(file_of(root, LIDAR, 4))
    if kind == "no record of a camera":
        remove_record(root, "scene-0061-CAM_BACK-4")
        return "CAM_BACK in scene-0061 at 1532402929.00 s"
    assert kind == "no record of the LiDAR"
    remove_record(root, f"scene-0061-{LIDAR}-4")
    return "LIDAR_TOP in scene-0061 at 1532402929.00 s"


KINDS = ["missing image", "truncated image", "empty sweep", "no record of a camera", "no record of the LiDAR"]


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_file_is_named(root, kind):
    named = damage(root, kind)
    dataset = NuScenesClips(config_of(root))
    dataset[1].validate()
    with pytest.raises(BadDataError) as caught:
        dataset[2]
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS[3:])
def test_a_record_is_named_at_once(root, kind):
    named = damage(root, kind)
    with pytest.raises(BadDataError) as caught:
        NuScenesClips(config_of(root))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_can_be_found_beforehand(root):
    named = damage(root, "missing image")
    dataset = NuScenesClips(config_of(root))
    dataset.check_files([0, 1])
    with pytest.raises(BadDataError) as caught:
        dataset.check_files(range(len(dataset)))
    assert str(caught.value) == f"{named}: no such file"


@pytest.mark.parametrize("kind", KINDS)
def test_is_left_out_and_counted(root, kind, caplog):
    named = damage(root, kind)
    dataset = NuScenesClips(config_of(root, on_error="skip"))
    clip = dataset[(2, 77)]
    clip.validate()
    assert count_substitutes(clip) == 1
    taken, wanted = clip.names[0].split(" instead of ")
    assert wanted == dataset.name(2)
    assert taken in (dataset.name(0), dataset.name(1))
    assert clip.seeds.tolist() == [77]
    assert named in caplog.text
    assert count_substitutes(dataset[0]) == 0


def test_the_substitute_follows_from_what_was_asked_for(root):
    damage(root, "missing image")
    dataset = NuScenesClips(config_of(root, split="scene-0061,scene-0103", on_error="skip"))
    again = NuScenesClips(dataset.config)
    names = [dataset[(3, seed)].names for seed in range(12)]
    assert names == [again[(3, seed)].names for seed in range(12)]
    assert len(set(names)) > 3, "one clip stands in for all"


def test_each_problem_is_logged_once(root, caplog):
    damage(root, "missing image")
    dataset = NuScenesClips(config_of(root, on_error="skip"))
    for seed in range(5):
        dataset[(2, seed)]
    assert caplog.text.count("no such file") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_each_problem_is_logged_once_by_all_workers_together(root, caplog, workers):
    path = file_of(root, "CAM_BACK", 4)
    path.write_bytes(b"no image")  # Pillow's own message holds an address
    dataset = NuScenesClips(config_of(root, on_error="skip"))
    clips = list(make_loader(dataset, batch_size=2, steps=8, seed=0, workers=workers))
    assert sum(count_substitutes(clip) for clip in clips) == 8
    assert [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()] == [
        f"skipped a clip: {path}: not an image that mim4d can read (JPEG, PNG, TIFF, WEBP, BMP, PPM, JPEG2000)"
    ]


def test_nothing_left_to_read_is_an_error(root):
    for i in range(6):
        file_of(root, "CAM_FRONT", i).unlink()
    dataset = NuScenesClips(config_of(root, on_error="skip"))
    with pytest.raises(UserError, match=r"cannot read any .* from 4 .*CAM_FRONT.*no such file") as caught:
        dataset[0]
    assert "--on-error" not in str(caught.value), "advises what is in use"


@pytest.mark.parametrize("workers", [0, 2])
def test_count_and_error_arrive_from_workers(root, workers):
    named = damage(root, "truncated image")

    def batches(on_error):
        dataset = NuScenesClips(config_of(root, on_error=on_error))
        return list(make_loader(dataset, batch_size=2, steps=4, seed=0, workers=workers))

    clips = batches("skip")
    assert sum(count_substitutes(clip) for clip in clips) == 4  # two of four clips are bad, each drawn twice
    assert torch.cat([clip.seeds for clip in clips]).unique().numel() == 8
    with pytest.raises(UserError) as caught:
        batches("raise")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value), "a worker's traceback in the message"

import json
import logging
import pickle
import stat

import numpy as np
import pytest

from mim4d.data import index as index_module
from mim4d.data.index import ARRAYS, open_index
from mim4d.errors import UserError
from tests.data.roots import LIDAR, VERSION, edit_table, write_root


@pytest.fixture
def built(monkeypatch):
    """Counts how often the tables are read."""
    calls = []

    def counting(*arguments):
        calls.append(arguments)
        return original(*arguments)

    original = index_module.build_tables
    monkeypatch.setattr(index_module, "build_tables", counting)
    return calls


def same(first, second):
    for name in (*ARRAYS, "record_bounds", "sample_bounds"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.scenes, first.channels, first.splits) == (second.scenes, second.channels, second.splits)


def test_rows_are_by_sensor_scene_and_time(root):
    index = open_index(root, VERSION)
    assert index.scenes == ("scene-0061", "scene-0103")
    assert index.channels == ("CAM_BACK", "CAM_FRONT", LIDAR)
    assert index.lidars == (LIDAR,)
    assert index.cameras == ("CAM_BACK", "CAM_FRONT")
    for channel in index.channels:
        for scene, name in enumerate(index.scenes):
            rows = index.records[index.rows(channel, scene)]
            assert len(rows) == 6
            assert (np.diff(rows["time"]) > 0).all()
            assert all(f"{channel}/{name}" in file.decode() for file in rows["file"])
    assert index.rows("CAM_FRONT_LEFT", 0) == slice(0, 0)


def test_the_tables_are_read_once(root, built):
    same(open_index(root, VERSION), open_index(root, VERSION))
    assert len(built) == 1


def test_roots_do_not_share_an_index(root, tmp_path, built):
    other = write_root(tmp_path / "other", seed=1)
    assert len(open_index(root, VERSION).records) != len(open_index(other, VERSION).records)
    assert len(built) == 2


def test_a_changed_table_makes_a_new_index(root, built, cache, caplog):
    open_index(root, VERSION)
    edit_table(root, "sample_data", lambda records: records[:-1])
    assert len(open_index(root, VERSION).records) == 35
    assert len(built) == 2
    assert len([path for path in (cache / "index").iterdir() if path.is_dir()]) == 1, "the old one is left"
    assert "unusable" not in caplog.text


@pytest.mark.parametrize("name", ["index.json", *(f"{array}.npy" for array in ARRAYS)])
@pytest.mark.parametrize("damage", ["cut", "zeros", "zeros at the end", "empty", "gone"])
def test_a_damaged_cache_is_made_anew(root, built, cache, caplog, name, damage):
    good = open_index(root, VERSION)
    (file,) = (cache / "index").rglob(name)
    data = file.read_bytes()
    file.unlink()
    if damage != "gone":
        end = data[:-300] + bytes(300)
        file.write_bytes({"cut": data[:-7], "zeros": bytes(len(data)), "zeros at the end": end, "empty": b""}[damage])
    with caplog.at_level(logging.INFO):
        same(open_index(root, VERSION), good)
    assert len(built) == 2
    assert "reading the tables of" in caplog.text
    open_index(root, VERSION)
    assert len(built) == 2


def test_what_a_killed_build_left_is_no_hindrance(root, cache):
    folder = open_index(root, VERSION).folder
    folder.rename(folder.with_name(f".{folder.name}.partial"))
    open_index(root, VERSION)
    assert sorted(path.name for path in (cache / "index").iterdir()) == [folder.name, folder.name + ".lock"]


def test_pickles_small_and_arrives_whole(root):
    index = open_index(root, VERSION)
    pickled = pickle.dumps(index)
    assert len(pickled) < 1000
    same(pickle.loads(pickled), index)


def test_own_splits_of_the_root_are_known(root):
    (root / VERSION / "splits.json").write_text(json.dumps({"night": ["scene-0103"]}))
    assert open_index(root, VERSION).splits["night"] == ["scene-0103"]
    assert "mini_train" in open_index(root, VERSION).splits


def test_no_such_root(tmp_path):
    with pytest.raises(UserError, match=r"dataroot = .*/nowhere: no such folder"):
        open_index(tmp_path / "nowhere", VERSION)


def test_wrong_version_says_which_there_are(root, tmp_path):
    with pytest.raises(UserError, match=r"version = v1.0-trainval is not in .*: it has v1.0-mini"):
        open_index(root, "v1.0-trainval")
    with pytest.raises(UserError, match=r"version = ../elsewhere/v1.0-mini must be the name of a folder in"):
        open_index(root, "../elsewhere/v1.0-mini")
    with pytest.raises(UserError, match=r"no folder in it has a scene.json"):
        open_index(tmp_path / "root/maps", VERSION)


def test_a_cache_that_cannot_be_written(root, cache, monkeypatch):
    monkeypatch.setenv("MIM4D_CACHE", str(root / VERSION / "scene.json"))
    with pytest.raises(UserError, match="Set MIM4D_CACHE"):
        open_index(root, VERSION)


def test_a_read_only_cache_serves_what_it_has(root, cache, built):
    open_index(root, VERSION)
    (cache / "index").chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        open_index(root, VERSION)
    finally:
        (cache / "index").chmod(stat.S_IRWXU)
    assert len(built) == 1

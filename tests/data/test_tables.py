"""Values in tables that cannot be are named by table, row and column; what can be read rightly is."""

import json
import shutil

import numpy as np
import pytest

from mim4d.data import NuScenesClips
from mim4d.data.tables import TablesError, build_tables, unit_of
from mim4d.errors import UserError
from tests.data.roots import START, VERSION, edit_table, write_root
from tests.data.test_nuscenes import config_of

NAN, INFINITY = float("nan"), float("inf")
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("tables") / "root", samples=3)


@pytest.fixture
def tables(whole, tmp_path):
    """A root of tables alone, which a test may edit."""
    shutil.copytree(whole / VERSION, tmp_path / VERSION)
    return tmp_path


def change(root, table, row, **values):
    """Set columns of one row; a value of ``...`` removes the column."""

    def edit(rows):
        rows[row] |= values
        rows[row] = {name: value for name, value in rows[row].items() if value is not ...}
        return rows

    edit_table(root, table, edit)


ONE_VALUE = [
    ("sample_data", "timestamp", None, "a number of microseconds"),
    ("sample_data", "timestamp", str(START), "a number of microseconds"),
    ("sample_data", "timestamp", NAN, "a number of microseconds"),
    ("sample_data", "timestamp", 10**400, "a number of microseconds"),
    ("sample", "timestamp", 1e300, "a number of microseconds"),
    ("sample_data", "filename", None, "a file's path inside the root"),
    ("sample_data", "filename", 7, "a file's path inside the root"),
    ("sample_data", "filename", "samples/a\0b.jpg", "a file's path inside the root"),
    ("sample_data", "filename", "samples/a\nb.jpg", "a file's path inside the root"),
    ("sample_data", "filename", "/etc/passwd", "a file's path inside the root"),
    ("sample_data", "filename", "samples/../../elsewhere.jpg", "a file's path inside the root"),
    ("sample_data", "filename", "..", "a file's path inside the root"),
    ("sample_data", "filename", "C:\\Windows\\a.jpg", "a file's path inside the root"),
    ("sample_data", "filename", "\ud800.jpg", "a file's path inside the root"),
    ("sample_data", "filename", "a" * 5000, "a file's path inside the root"),
    ("sample_data", "is_key_frame", "true", "true or false"),
    ("sample_data", "is_key_frame", ..., "true or false"),
    ("sample_data", "width", -1, "pixels"),
    ("sample_data", "height", 10**12, "pixels"),
    ("sample_data", "height", "72", "pixels"),
    ("sample_data", "sample_token", "none", "a token of sample.json"),
    ("sample_data", "ego_pose_token", ["x"], "a token of ego_pose.json"),
    ("sample_data", "calibrated_sensor_token", ..., "a token of calibrated_sensor.json"),
    ("sample", "scene_token", None, "a token of scene.json"),
    ("calibrated_sensor", "sensor_token", 3, "a token of sensor.json"),
    ("ego_pose", "translation", [1e300, 0, 0], "3 numbers"),
    ("ego_pose", "translation", [NAN, 0, 0], "3 numbers"),
    ("ego_pose", "translation", [0, 0], "3 numbers"),
    ("ego_pose", "translation", None, "3 numbers"),
    ("ego_pose", "rotation", [0, 0, 0, 0], "a quaternion"),
    ("ego_pose", "rotation", [1, 0, 0, INFINITY], "a quaternion"),
    ("ego_pose", "rotation", [1, 0, 0, "0"], "a quaternion"),
    ("ego_pose", "rotation", {"w": 1}, "a quaternion"),
    ("calibrated_sensor", "rotation", [0.0] * 4, "a quaternion"),
    ("calibrated_sensor", "camera_intrinsic", [], "a camera matrix"),
    ("calibrated_sensor", "camera_intrinsic", [[NAN, 0, 5], [0, 9, 5], [0, 0, 1]], "a camera matrix"),
    ("calibrated_sensor", "camera_intrinsic", [[0, 0, 5], [0, 9, 5], [0, 0, 1]], "a camera matrix"),
    ("calibrated_sensor", "camera_intrinsic", [9.0, 9.0, 5.0, 5.0], "a camera matrix"),
    ("sensor", "channel", "CAM\x1b[31m", "a name without control characters"),
    ("sensor", "modality", None, "a name without control characters"),
    ("scene", "name", "", "a name without control characters"),
    ("scene", "token", 5, "a text that is not empty"),
]


@pytest.mark.parametrize(("table", "column", "value", "expected"), ONE_VALUE)
def test_a_value_that_cannot_be_is_named(tables, table, column, value, expected):
    rows = len(json.loads((tables / VERSION / f"{table}.json").read_text()))
    change(tables, table, rows - 1, **{column: value})  # the last row of a camera
    with pytest.raises(TablesError) as caught:
        build_tables(tables, VERSION)
    message = str(caught.value)
    assert f"{table}.json: row {rows - 1}" in message
    assert f"{column}: expected {expected}" in message
    assert message.isprintable()
    assert len(message) < 400 + len(str(tables))


WHOLE_TABLE = {
    "an object": ("{}", "expected a list of rows, found {}"),
    "a number": ("5", "expected a list of rows, found 5"),
    "rows that are lists": ("[[1]]", r"row 0: expected an object, found \[1\]"),
    "cut": ('[{"token": "a"', "not JSON"),
    "empty": ("", "not JSON"),
    "nested deeply": (DEEP, "nested too deeply"),
    "a number of many digits": ('[{"token": ' + "9" * 5000 + "}]", "not JSON"),
    "Latin-1": ('[{"token": "ä"}]'.encode("latin-1"), "not JSON"),
}


@pytest.mark.parametrize("table", ["scene", "ego_pose", "splits"])
@pytest.mark.parametrize("kind", WHOLE_TABLE)
def test_a_table_that_is_none_is_named(tables, table, kind):
    content, problem = WHOLE_TABLE[kind]
    if table == "splits" and kind == "an object":
        return  # is what splits are
    (tables / VERSION / f"{table}.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TablesError, match=rf"/{table}.json: .*" + ("" if table == "splits" else problem)):
        build_tables(tables, VERSION)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_of_json_are_read(tables, encoding):
    meta, arrays = build_tables(tables, VERSION)
    for path in (tables / VERSION).glob("*.json"):
        path.write_text(path.read_text(), encoding=encoding)
    again, same = build_tables(tables, VERSION)
    assert again == meta
    assert all((same[name] == arrays[name]).all() for name in arrays)


@pytest.mark.parametrize("table", ["scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor"])
def test_a_missing_table_and_a_token_twice_are_named(tables, table):
    edit_table(tables, table, lambda rows: [*rows, rows[0]])
    with pytest.raises(TablesError, match=rf"{table}.json: row \d+ .*one row per token, found it in row 0 too"):
        build_tables(tables, VERSION)
    (tables / VERSION / f"{table}.json").unlink()
    with pytest.raises(TablesError, match=rf"{table}.json: no such file"):
        build_tables(tables, VERSION)


@pytest.mark.parametrize(
    "splits", [[], {"a": "scene-0061"}, {"a": [1]}, {"a": {"b": []}}, {"a\n": []}, {"a": None}, "x"]
)
def test_splits_of_another_shape_are_named(tables, splits):
    (tables / VERSION / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(TablesError, match=r"splits.json: .*expected \{"):
        build_tables(tables, VERSION)


def test_kinds_of_fault_are_counted(tables):
    def spoil(rows):
        return [row | {"width": 0, "filename": None} if "CAM" in row["filename"] else row for row in rows]

    edit_table(tables, "sample_data", spoil)
    with pytest.raises(TablesError) as caught:
        build_tables(tables, VERSION)
    assert [fault.count for fault in caught.value.faults] == [6, 6]
    assert "(6 rows); 1 more kinds of fault (mim4d-data check lists them)" in str(caught.value)


def test_what_is_no_fault_is_read(tables):
    """Radar, numbers as floats, quaternions of another length, modality in capitals."""
    _, before = build_tables(tables, VERSION)

    def soften(rows):
        return [
            r | {"timestamp": float(r["timestamp"]), "is_key_frame": int(r["is_key_frame"]), "width": 128.0}
            for r in rows
        ]

    edit_table(tables, "sample_data", soften)
    edit_table(tables, "ego_pose", lambda rows: [row | {"rotation": [2 * q for q in row["rotation"]]} for row in rows])
    edit_table(tables, "sensor", lambda rows: [row | {"modality": row["modality"].upper()} for row in rows])
    radar = {"token": "radar", "channel": "RADAR_FRONT", "modality": "radar"}
    edit_table(tables, "sensor", lambda rows: [*rows, radar])
    edit_table(tables, "calibrated_sensor", lambda rows: [*rows, {"token": "r", "sensor_token": "radar"}])
    edit_table(tables, "sample_data", lambda rows: [*rows, {"token": "r", "calibrated_sensor_token": "r"}])
    meta, after = build_tables(tables, VERSION)
    assert meta["channels"] == ["CAM_BACK", "CAM_FRONT", "LIDAR_TOP"]
    assert (after["records"]["file"] == before["records"]["file"]).all()
    assert (after["records"]["time"] == before["records"]["time"]).all()


@pytest.mark.parametrize("unit", ["seconds", "milliseconds", "nanoseconds"])
@pytest.mark.parametrize("epoch", [START, 0])
def test_units_of_time_are_told_apart(unit, epoch):
    steps = np.arange(6) * 5e5
    per_microsecond = {"seconds": 1e-6, "milliseconds": 1e-3, "nanoseconds": 1e3}[unit]
    assert unit_of(epoch + steps) is None
    assert unit_of((epoch + steps) * per_microsecond) == unit
    assert unit_of(epoch + steps[:1]) is None


@pytest.mark.parametrize("table", ["sample", "sample_data"])
def test_another_unit_is_refused_with_what_to_do(tables, table):
    edit_table(tables, table, lambda rows: [row | {"timestamp": 1000 * row["timestamp"]} for row in rows])
    with pytest.raises(
        TablesError, match=rf"{table}.json: timestamp: .*microseconds.*nanoseconds \(multiply by 0.001\)"
    ):
        build_tables(tables, VERSION)


def test_links_inside_the_root_are_followed(root, tmp_path):
    (root / "samples").rename(tmp_path / "elsewhere")
    (root / "samples").symlink_to(tmp_path / "elsewhere")
    NuScenesClips(config_of(root))[0].validate()


@pytest.mark.parametrize("name", ["LIDAR_CONCAT", "lidar_top"])
def test_a_lidar_of_another_name_is_used_if_named(root, name):
    edit_table(root, "sensor", lambda rows: [r | {"channel": name} if r["modality"] == "lidar" else r for r in rows])
    with pytest.raises(UserError, match=f"lidar = LIDAR_TOP: not in .*/v1.0-mini; choose {name}$"):
        NuScenesClips(config_of(root))
    dataset = NuScenesClips(config_of(root, lidar_name=name))
    assert dataset.reference == name
    assert dataset[0].num_points.min() > 0
    for sweeps in (False, True):
        assert (NuScenesClips(config_of(root, lidar_name=name, sweeps=sweeps)).frames.lidar >= 0).all()
    assert not NuScenesClips(config_of(root, lidar=False)).has_lidar


def test_cameras_of_other_names_are_listed(root):
    with pytest.raises(UserError, match=r"cameras = front left: not in .*; choose from CAM_BACK CAM_FRONT$"):
        NuScenesClips(config_of(root, cameras=("front", "CAM_BACK", "left")))

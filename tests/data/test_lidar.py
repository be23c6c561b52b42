import gzip
import io
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim4d.data import DataConfig, NuScenesClips
from mim4d.data.lidar import read_points
from mim4d.data.pcd import lzf_decompress
from mim4d.errors import BadDataError, UserError
from tests.data.roots import LIDAR, file_of
from tests.data.test_nuscenes import config_of
from tests.reference import pcd

XYZI = [("x", "F", 4, 1), ("y", "F", 4, 1), ("z", "F", 4, 1), ("intensity", "F", 4, 1)]


def street(count, floats=5, seed=0, shuffled=False):
    """A sweep [count, floats] over ground and walls: x, y, z, intensity, ring, time, and more of that kind."""
    rng = np.random.default_rng(seed)
    ring = np.arange(count) % 32
    angle = np.arange(count) / count * 2 * np.pi
    distance = np.minimum(1.8 / np.tan(np.maximum(0.53 - 0.0175 * ring, 0.02)), 8 + 40 * rng.random(count) ** 3)
    z = -1.8 + 0.02 * rng.standard_normal(count) + 3 * (distance > 8) * rng.random(count)
    columns = [distance * np.cos(angle), distance * np.sin(angle), z, rng.integers(0, 256, count), ring, angle / 60]
    columns += [distance, rng.integers(0, 9, count), 100 * rng.random(count), ring // 4]
    table = np.stack(columns[:floats], 1).astype("<f4")
    return rng.permutation(table) if shuffled else table


def written(tmp_path, content):
    path = tmp_path / "sweep.pcd.bin"
    path.write_bytes(content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes())
    return path


def refusal(path, floats=5):
    with pytest.raises(BadDataError) as caught:
        read_points(path, floats)
    what, problem = caught.value.args
    assert str(path) in what
    assert "\n" not in problem
    return problem


def test_points_that_are_not_finite_are_dropped(tmp_path):
    points = np.arange(20, dtype="<f4").reshape(4, 5)
    points[1, 2], points[2, 0], points[3, 4] = np.nan, np.inf, np.nan  # an odd ring number is no reason
    np.testing.assert_array_equal(read_points(written(tmp_path, points)), [[0, 1, 2], [15, 16, 17]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (bytes(30), "30 bytes are not a whole number of points of 5 float32"),
        (bytes(24), "24 bytes are not a whole number of points of 5 float32"),
        (np.full(10, np.nan, dtype="<f4").tobytes(), "no finite point"),
        (b"ply\nformat binary_little_endian 1.0\n", "expected float32 rows, .pcd or .npy, found PLY"),
        (b"LASF" + bytes(36), "found LAS"),
        (gzip.compress(bytes(100), mtime=0), "found gzip"),
        (b"1.0 2.0 3.0 0.5 1\n" * 20, "found text"),
    ],
)
def test_a_broken_sweep_is_named(tmp_path, content, message):
    path = tmp_path / "sweep.pcd.bin"
    if content is not None:
        path.write_bytes(content)
    assert message in refusal(path)


def test_a_sweep_may_begin_with_any_first_bytes_of_a_number(tmp_path):
    points = street(1000)
    points.view("u1").reshape(-1)[:2] = list(gzip.compress(b"")[:2])  # low bits of the first x
    assert len(read_points(written(tmp_path, points))) == 1000


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "sweep.bin")
    assert "named pipe" in refusal(tmp_path / "sweep.bin")


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("count", [100, 28800])
@pytest.mark.parametrize("floats", [3, 4, 5, 6, 7, 8])
def test_rows_of_another_length_are_named_and_those_of_the_right_one_read(tmp_path, floats, count, shuffled):
    """The numbers of bytes tell nothing: 28800 points divide by every length."""
    sweep = street(count, floats, shuffled=shuffled)
    path = written(tmp_path, sweep)
    np.testing.assert_array_equal(read_points(path, floats), sweep[:, :3])
    for other in {3, 4, 5, 6, 7, 8} - {floats}:
        if other % floats:  # whole points at a time are points all the same
            assert refusal(path, other).endswith(f"looks like {floats} per point: set `lidar_floats` to {floats}")


@given(st.integers(0, 2**32), st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_five_floats_of_whatever_numbers_are_read(tmp_path_factory, seed, count):
    """Where the content tells nothing, it has nothing against the default."""
    sweep = np.random.default_rng(seed).normal(scale=20, size=(count, 5)).astype("<f4")
    np.testing.assert_array_equal(read_points(written(tmp_path_factory.mktemp("sweep"), sweep)), sweep[:, :3])


@pytest.mark.parametrize("ring", [-1, 0, 7])
def test_a_column_may_be_constant(tmp_path, ring):
    sweep = street(2000)
    sweep[:, 4] = ring
    np.testing.assert_array_equal(read_points(written(tmp_path, sweep)), sweep[:, :3])
    sweep[:, 3] = 0
    np.testing.assert_array_equal(read_points(written(tmp_path, sweep)), sweep[:, :3])


def test_nanoseconds_and_dual_returns_are_no_reason(tmp_path):
    sweep = street(2000)
    sweep[:, 3], sweep[:, 4] = 1.7e18, np.arange(2000) % 2
    sweep[1::2, :3] = sweep[::2, :3] * 1.3
    np.testing.assert_array_equal(read_points(written(tmp_path, sweep)), sweep[:, :3])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s.astype("<f8"), "float64"),
        (lambda s: s.round(3).astype("<f8"), "float64"),
        (lambda s: s.astype(">f4"), "expected float32 coordinates"),
        (lambda s: (100 * s).astype("<i2"), "float32"),
        (lambda s: (1000 * s).astype("<i4"), "float32"),
        (lambda s: s.astype("<f2"), "float32"),
        (lambda s: s * np.float32(1000), "farther than 10 km"),
        (lambda s: s + np.float32([[6e5, 5e6, 0, 0, 0]]), "farther than 10 km"),
    ],
)
def test_numbers_of_another_type_unit_or_frame_are_named(tmp_path, change, problem):
    assert problem in refusal(written(tmp_path, change(street(4000))))


def test_a_few_marks_for_no_return_are_dropped(tmp_path):
    sweep = street(4000)
    sweep[::200, :3] = np.finfo(np.float32).max
    assert len(read_points(written(tmp_path, sweep))) == 3980


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2"])
def test_npy(tmp_path, dtype):
    sweep = street(300, 4).astype(dtype)
    buffer = io.BytesIO()
    np.save(buffer, sweep)
    np.testing.assert_allclose(read_points(written(tmp_path, buffer.getvalue())), sweep[:, :3])


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((10, 2)), "expected floats of shape [points, 3 or more], found float64 [10, 2]"),
        (np.zeros((10, 4), np.int16), "int16 [10, 4]"),
        (np.zeros(10), "[10]"),
        (np.array([[{"x": 1}] * 3], dtype=object), "object [1, 3]"),
    ],
)
def test_npy_of_another_kind_is_named(tmp_path, array, problem):
    buffer = io.BytesIO()
    np.save(buffer, array)
    assert problem in refusal(written(tmp_path, buffer.getvalue()))


def test_npy_with_a_false_header_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((10, 4)))
    refusal(written(tmp_path, buffer.getvalue()[:200]))
    for shape in (b"(9**9**9,)", b"(10**12, 4)", b"(1" + b"0" * 30 + b", 4)", b"(-1, 4)", b"([, 4)"):
        content = buffer.getvalue().replace(b"(10, 4), }" + b" " * (len(shape) - 7), shape + b", }")
        assert shape in content
        refusal(written(tmp_path, content))
    columns = np.asfortranarray(street(300, 4))
    np.save(tmp_path / "columns.npy", columns)
    np.testing.assert_array_equal(read_points(tmp_path / "columns.npy"), columns[:, :3])


FIELDS = st.permutations(["x", "y", "z", "intensity", "ring", "_"]).flatmap(
    lambda names: st.tuples(
        *(
            st.tuples(st.just(n), st.just("F"), st.sampled_from([4, 8]), st.just(1))
            if n in "xyz"
            else st.one_of(
                st.tuples(st.just(n), st.just("F"), st.sampled_from([4, 8]), st.integers(1, 3)),
                st.tuples(st.just(n), st.sampled_from("IU"), st.sampled_from([1, 2, 4, 8]), st.integers(1, 3)),
            )
            for n in names
        )
    )
)


@given(FIELDS, st.sampled_from(["ascii", "binary", "binary_compressed"]), st.integers(0, 40), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_pcd_agrees_with_a_slow_reference(tmp_path_factory, fields, encoding, count, seed):
    rng = np.random.default_rng(seed)
    points, expected = [], []
    for _ in range(count):
        xyz = {axis: float(np.float32(value)) for axis, value in zip("xyz", rng.normal(size=3) * 30, strict=True)}
        if rng.random() < 0.1:
            xyz["y"] = float("nan")  # organised clouds have it where nothing came back
        else:
            expected.append([*xyz.values()])
        points.append(
            [
                xyz[name] if name in xyz else (int(rng.integers(0, 100)) if kind != "F" else float(rng.random()))
                for name, kind, _, repeat in fields
                for _ in range(repeat)
            ]
        )
    pack = [pcd.pack, pcd.pack_as_is][int(rng.integers(2))]
    path = written(tmp_path_factory.mktemp("pcd"), pcd.encode(fields, points, encoding, pack=pack))
    if points and not expected:
        assert refusal(path) == "the sweep has no finite point"
    else:
        np.testing.assert_array_equal(read_points(path), np.array(expected, dtype=np.float32).reshape(-1, 3))


def test_an_organised_cloud_and_other_headers(tmp_path):
    points = street(64, 4).tolist()
    content = pcd.encode(XYZI, points, "binary", width=16)
    expected = street(64, 4)[:, :3]
    old = content.replace(b"# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7", b"VERSION .5")
    for variant in (
        content,
        content + bytes(100),
        old.replace(b"COUNT 1 1 1 1\n", b"").replace(b"VIEWPOINT 0 0 0 1 0 0 0\n", b""),
        content.replace(b"POINTS 64\n", b""),
        content.replace(b"DATA binary\n", b"DATA binary\r\n").replace(b"HEIGHT 4\n", b"HEIGHT 4\r\n"),
    ):
        np.testing.assert_array_equal(read_points(written(tmp_path, variant)), expected)


def test_a_cloud_without_points_is_a_sweep_that_met_nothing(tmp_path):
    for encoding in ("ascii", "binary", "binary_compressed"):
        assert read_points(written(tmp_path, pcd.encode(XYZI, [], encoding, pack=pcd.pack))).shape == (0, 3)


@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "FIELDS x y z intensity",
            "FIELDS x y range intensity",
            "the fields x, y and z once each, found x y range",
        ),
        ("FIELDS x y z intensity", "FIELDS x y z", "the same number of entries"),
        ("TYPE F F F F", "TYPE F F I F", "field z: expected TYPE F, SIZE 4 or 8, COUNT 1, found TYPE I, SIZE 4"),
        ("SIZE 4 4 4 4", "SIZE 4 4 2 4", "field z: expected TYPE F"),
        ("SIZE 4 4 4 4", "SIZE 4 4 -4 4", "SIZE in the header must be whole numbers"),
        ("SIZE 4 4 4 4\n", "", "no SIZE line"),
        ("COUNT 1 1 1 1", "COUNT 1 1 3 1", "COUNT 3"),
        ("POINTS 64", "POINTS 65", "WIDTH times HEIGHT"),
        ("WIDTH 64", "WIDTH 999999999", "WIDTH times HEIGHT"),
        ("WIDTH 64\nHEIGHT 1\n", "", "after the header, found|after decompression, found"),
        ("POINTS 64", "POINTS " + "9" * 5000, "must be whole numbers"),
        ("DATA", "DATA zstd", "expected DATA ascii or binary or binary_compressed, found zstd"),
        ("DATA", "DETA", "no DATA line|FIELDS"),
    ],
)
def test_a_header_that_makes_no_sense_is_named(tmp_path, encoding, old, new, problem):
    content = pcd.encode(XYZI, street(64, 4).tolist(), encoding, pack=pcd.pack)
    if "after decompression" in problem:
        content = content.replace(b"POINTS 64", b"POINTS 6400000000")
    broken = content.replace(old.encode(), new.encode(), 1)
    assert broken != content or new == ""
    got = refusal(written(tmp_path, broken))
    assert any(part in got for part in problem.split("|")), got


@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
def test_a_cloud_that_was_cut_off_or_goes_on_is_refused(tmp_path, encoding):
    content = pcd.encode(XYZI, street(64, 4).tolist(), encoding, pack=pcd.pack)
    body = content.index(b"\n", content.index(b"DATA")) + 1
    for cut in np.linspace(1, len(content) - 40, 30).astype(int):  # part of the last word of a text tells nothing
        refusal(written(tmp_path, content[:cut]))
    refusal(written(tmp_path, content + content[body:]))


@given(st.binary(max_size=200), st.integers(1, 400))
@settings(max_examples=100, deadline=None)
def test_lzf_survives_any_bytes(packed, wanted):
    try:
        unpacked = lzf_decompress(packed, wanted, 500)
    except ValueError:
        return
    assert wanted <= len(unpacked) <= 500


def test_a_root_of_four_floats(root):
    for number in range(6):
        street(200, 4, seed=number).tofile(file_of(root, LIDAR, number))
    with pytest.raises(BadDataError, match="looks like 4 per point: set `lidar_floats` to 4"):
        NuScenesClips(config_of(root))[0]
    assert (NuScenesClips(config_of(root, lidar_floats=4))[0].num_points > 100).all()
    for floats in (2, 65):
        with pytest.raises(UserError, match=f"lidar_floats = {floats} must lie in 3"):
            DataConfig(lidar_floats=floats)


def test_without_points_no_sweep_is_read_and_frames_stay_the_same(root):
    """Evaluation needs the moments of the sweeps alone."""
    whole = NuScenesClips(config_of(root))[0]
    for number in range(6):
        file_of(root, LIDAR, number).unlink()
    dataset = NuScenesClips(config_of(root, points=False))
    dataset.check_files([0])
    clip = dataset[0]
    clip.validate()
    assert clip.num_points.tolist() == [[0, 0, 0]]
    for name in ("timestamps", "ego_from_camera", "current_from_ego", "images"):
        assert (getattr(clip, name) == getattr(whole, name)).all()

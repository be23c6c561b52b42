"""Labelled roots that are not nuScenes': sensors of other names, boxes that cannot be."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mim4d.errors import UserError
from mim4d.eval.augmentation import BEVAugmentation
from mim4d.eval.cli import main
from mim4d.eval.config import complete
from mim4d.eval.data import EvalData
from mim4d.eval.detection import Detection
from mim4d.eval.labels import Annotations
from tests.data.roots import VERSION, edit_table
from tests.eval.runs import arguments, tiny

NAN = float("nan")


@pytest.fixture
def root(tiny_world: Path, tmp_path: Path) -> Path:
    """The tiny world with tables that a test may edit."""
    folder = tmp_path / "root"
    folder.mkdir()
    for name in ("samples", "maps"):
        (folder / name).symlink_to(tiny_world / name)
    shutil.copytree(tiny_world / VERSION, folder / VERSION)
    return folder


def edit_boxes(root: Path, every: int, **values) -> int:
    """Set columns of every so manieth box; how many."""
    path = root / VERSION / "sample_annotation.json"
    rows = json.loads(path.read_text())
    for row in rows[::every]:
        row |= values
    path.write_text(json.dumps(rows))
    return len(rows[::every])


@pytest.mark.parametrize(
    "values",
    [
        {"size": [0.0, 4.0, 1.5]},
        {"size": [1.8, -4.0, 1.5]},
        {"size": [NAN, 4.0, 1.5]},
        {"size": [1.8, 1e300, 1.5]},
        {"translation": [NAN, 0.0, 0.0]},
        {"rotation": [0.0, 0.0, 0.0, 0.0]},
    ],
)
def test_boxes_that_cannot_be_are_left_out_and_counted(root, values, caplog):
    left_out = edit_boxes(root, 3, **values)
    annotations = Annotations(root, VERSION)
    whole = json.loads((root / VERSION / "sample_annotation.json").read_text())
    boxes = np.concatenate([annotations.boxes(token) for token in annotations.tokens])
    assert len(boxes) == len(whole) - left_out
    assert all(np.isfinite(boxes[name]).all() for name in ("center", "size", "yaw"))
    assert f"sample_annotation.json: {left_out} of {len(whole)} boxes are impossible and skipped" in caplog.text
    target = Detection().target(Detection().read(annotations, annotations.tokens[0]), BEVAugmentation.none())
    assert target.values[:, :8].isfinite().all()


def test_boxes_whose_points_nobody_counted_are_kept(root):
    """Lyft's tables have -1 for all of them."""
    edit_boxes(root, 1, num_lidar_pts=-1)
    annotations = Annotations(root, VERSION)
    boxes = np.concatenate([annotations.boxes(token) for token in annotations.tokens])
    assert (boxes["points"] > 0).all()


def test_boxes_of_which_none_can_be_are_refused(root):
    edit_boxes(root, 1, size=[0, 0, 0])
    with pytest.raises(UserError, match=r"sample_annotation.json: \d+ of \d+ boxes are impossible: .*size \[0, 0, 0\]"):
        Annotations(root, VERSION)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("size", ["1.8", "4.0", "1.5"], "3 numbers"),
        ("size", None, "3 numbers"),
        ("rotation", [1, 0, 0], "4 numbers"),
        ("num_lidar_pts", None, "a number of points"),
        ("visibility_token", "v80-100", "one of"),
        ("attribute_tokens", ["none"], "a list of tokens of attribute.json"),
        ("instance_token", 4, "a token of instance.json"),
        ("sample_token", "none", "a token of sample.json"),
        ("prev", "none", "a token of sample_annotation.json"),
    ],
)
def test_columns_of_another_type_are_named(root, column, value, expected):
    count = edit_boxes(root, 3, **{column: value})
    with pytest.raises(
        UserError, match=rf"sample_annotation.json: row 0 .*{column}: expected {expected}.*\({count} rows\)"
    ):
        Annotations(root, VERSION)


def rename(root: Path, names: dict[str, str]) -> None:
    edit_table(
        root, "sensor", lambda rows: [row | {"channel": names.get(row["channel"], row["channel"])} for row in rows]
    )


def test_another_rig_is_learned_from_and_scored(root, tmp_path, capsys):
    rename(root, {"CAM_FRONT": "front", "CAM_BACK": "rear", "LIDAR_TOP": "lidar"})
    flags = ("--task", "det3d", "--cameras", "front", "rear", "--lidar", "lidar")
    main(arguments(root, tmp_path / "run", *flags))
    figures = json.loads((tmp_path / "run/metrics.json").read_text())
    assert figures["settings"]["cameras"] == ["front", "rear"]
    assert figures["NDS"] >= 0
    with pytest.raises(SystemExit, match="2"):
        main(arguments(root, tmp_path / "other", *flags[:-2]))
    assert capsys.readouterr().err.splitlines()[-1].endswith("; choose lidar")


def test_without_lidar_the_first_camera_gives_the_ego_frame(root):
    edit_table(root, "sensor", lambda r: [x | {"modality": "radar"} if x["modality"] == "lidar" else x for x in r])
    data = EvalData(complete(tiny(root, Path("unused"), "--cameras", "CAM_BACK", "CAM_FRONT")))
    nusc = data.annotations.nusc
    for token in data.val.tokens:
        assert data.val.clip(data.val.tokens.index(token)).cameras == ("CAM_BACK", "CAM_FRONT")
        shot = nusc.get("sample_data", nusc.get("sample", token)["data"]["CAM_BACK"])
        pose = nusc.get("ego_pose", shot["ego_pose_token"])
        np.testing.assert_allclose(data.annotations.global_from_ego(token)[:3, 3], pose["translation"])

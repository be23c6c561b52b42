"""3D detection: targets, decoding, and the devkit's own judgement."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nuscenes.eval.detection.algo import calc_ap
from nuscenes.eval.detection.data_classes import DetectionMetricData

from mim4d.errors import UserError
from mim4d.eval.augmentation import BEVAugmentation
from mim4d.eval.detection import (
    PREDICTED,
    REGRESSED,
    SUBMISSION,
    Detection,
    DetectionScores,
    score_submission,
    write_submission,
)
from mim4d.eval.labels import ATTRIBUTES, BOX, CLASSES, Annotations
from mim4d.world import WorldConfig, make_world
from mim4d.world.capture import Moment


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    """A world with all ten classes in one split: its tables and sweeps, for nobody looks at its pictures."""

    def black(moment: Moment, name: str, key: bool) -> tuple[str, bytes, np.ndarray]:
        return f"{name}.jpg", b"", np.ones((len(moment.stage.scene.actors), 2), np.int64)

    root = tmp_path_factory.mktemp("busy") / "root"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Moment, "photograph", black)
        make_world(root, "v1.0-mini", WorldConfig(scenes=5, seed=30, scale=0.05, keyframes=2), workers=1)
    return Annotations(root, "v1.0-mini")


def tokens_of(annotations: Annotations, split: str) -> list[str]:
    from nuscenes.utils.splits import create_splits_scenes

    names = set(create_splits_scenes()[split])
    scene = {row["token"]: row["name"] for row in annotations.nusc.scene}
    return [t for t in annotations.tokens if scene[annotations.nusc.get("sample", t)["scene_token"]] in names]


def certain(boxes: np.ndarray) -> np.ndarray:
    """Boxes as a model that knows them would say."""
    sure = np.ones(len(boxes), PREDICTED)
    for name in BOX.names:
        sure[name] = boxes[name]
    return sure


def test_the_truth_scores_near_one_and_nothing_scores_zero(busy, tmp_path: Path):
    task, tokens = Detection(), tokens_of(busy, "mini_train")
    truth = {token: task.read(busy, token) for token in tokens}
    there = {CLASSES[label] for boxes in truth.values() for label in boxes["label"]}
    assert there == set(CLASSES)
    write_submission(tmp_path / SUBMISSION, busy, {token: certain(boxes) for token, boxes in truth.items()})
    figures = score_submission(tmp_path / SUBMISSION, busy, "mini_train", tmp_path)
    assert figures["NDS"] > 0.99
    assert figures["mAP"] > 0.99
    assert max(figures[name] for name in ("mATE", "mASE", "mAOE", "mAVE", "mAAE")) < 1e-3
    summary = json.loads((tmp_path / "metrics_summary.json").read_text())
    assert summary["nd_score"] == figures["NDS"]
    assert summary["meta"] == {"use_camera": True, **{f"use_{w}": False for w in ("lidar", "radar", "map", "external")}}

    write_submission(tmp_path / SUBMISSION, busy, {token: certain(truth[token][:0]) for token in tokens})
    nothing = score_submission(tmp_path / SUBMISSION, busy, "mini_train", tmp_path)
    assert (nothing["NDS"], nothing["mAP"], nothing["mAP_uncut"]) == (0.0, 0.0, 0.0)


def test_a_weak_detector_scores_where_nothing_is_cut(busy, tmp_path: Path):
    task, tokens = Detection(), tokens_of(busy, "mini_train")
    rng = np.random.default_rng(0)
    weak = {}
    for token in tokens:
        truth = certain(rng.permutation(task.read(busy, token))[:30])
        wrong = np.repeat(truth, 12)
        wrong["center"][:, :2] += rng.uniform(-30, 30, (len(wrong), 2))
        weak[token] = np.concatenate([truth, wrong])
        weak[token]["score"] = rng.uniform(0, 1, len(weak[token]))
    write_submission(tmp_path / SUBMISSION, busy, weak)
    figures = score_submission(tmp_path / SUBMISSION, busy, "mini_train", tmp_path)
    curves = json.loads((tmp_path / "metrics_details.json").read_text())
    aps = [
        calc_ap(DetectionMetricData.deserialize(curves[f"{name}:{distance}"]), min_recall=0.0, min_precision=0.0)
        for name in CLASSES
        for distance in (0.5, 1.0, 2.0, 4.0)
    ]
    assert figures["mAP_uncut"] == pytest.approx(np.mean(aps), abs=1e-9)
    assert figures["mAP"] < 0.1 < figures["mAP_uncut"]


def test_errors_are_in_their_units(annotations, tmp_path: Path):
    task, tokens = Detection(), tokens_of(annotations, "mini_train")
    moved = {}
    for token in tokens:
        boxes = certain(task.read(annotations, token))
        boxes["center"][:, 0] += 0.3
        boxes["yaw"] += 0.2
        moved[token] = boxes
    write_submission(tmp_path / SUBMISSION, annotations, moved)
    score_submission(tmp_path / SUBMISSION, annotations, "mini_train", tmp_path)
    errors = json.loads((tmp_path / "metrics_summary.json").read_text())["label_tp_errors"]["car"]
    assert errors["trans_err"] == pytest.approx(0.3, abs=0.02)
    assert errors["orient_err"] == pytest.approx(0.2, abs=0.01)
    assert errors["scale_err"] == pytest.approx(0.0, abs=1e-6)


def test_what_the_devkit_cannot_score_is_named(annotations, tmp_path: Path):
    write_submission(tmp_path / SUBMISSION, annotations, {})
    with pytest.raises(UserError, match=r"cannot score .* on the split mini_val"):
        score_submission(tmp_path / SUBMISSION, annotations, "mini_val", tmp_path)


@pytest.mark.parametrize("split", ["val", "nowhere"])
def test_a_split_of_another_version_is_refused_before_the_training(split, annotations):
    """The scene of mini_val is one of val, too."""
    with pytest.raises(UserError, match=f"cannot score the split {split}: .*split"):
        DetectionScores(Detection(), annotations, split)


def test_what_stood_in_the_folder_is_left_there(annotations, tmp_path: Path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "mine.png").write_text("")
    write_submission(tmp_path / SUBMISSION, annotations, {token: [] for token in tokens_of(annotations, "mini_train")})
    assert score_submission(tmp_path / SUBMISSION, annotations, "mini_train", tmp_path)["NDS"] == 0
    assert (tmp_path / "plots" / "mine.png").exists()


def said(task: Detection, kept: np.ndarray, augmentation: BEVAugmentation) -> tuple[torch.Tensor, object]:
    """What a head says that knows a sample."""
    target = task.target(kept, augmentation)
    heat = torch.where(target.heat == 1, 12.0, target.heat.clamp(1e-6).log().clamp(min=-12))
    rest = torch.zeros(REGRESSED + len(ATTRIBUTES), *heat.shape[1:])
    rows, columns = target.cells.unbind(1)
    rest[:REGRESSED, rows, columns] = target.values.nan_to_num().T
    rest[REGRESSED + target.attributes.clamp(min=0), rows, columns] = 5.0
    return torch.cat([heat, rest])[None], target


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_boxes_come_back_from_their_targets(annotations, seed):
    task = Detection()
    turn = BEVAugmentation.none() if seed is None else BEVAugmentation.draw(seed)
    kept = task.read(annotations, annotations.tokens[1])
    output, _ = said(task, kept, turn)
    found = task.boxes(output)[0]
    found = found[found["score"] > 0.9]
    turned = turn.boxes(kept)
    middles = turned["center"][:, :2]
    cells, labels = ((middles + 51.2) / 0.8).astype(int), turned["label"]
    close = [
        any(j != i and labels[j] == labels[i] and abs(cells[j] - cells[i]).max() <= 1 for j in range(len(cells)))
        or any(j != i and (cells[j] == cells[i]).all() for j in range(len(cells)))
        for i in range(len(cells))
    ]
    clear = turned[(np.abs(middles).max(1) < 51) & ~np.array(close)]
    assert len(clear) > 5
    for box in clear:
        nearest = found[np.linalg.norm(found["center"] - box["center"], axis=1).argmin()]
        np.testing.assert_allclose(nearest["center"], box["center"], atol=1e-4)
        np.testing.assert_allclose(nearest["size"], box["size"], rtol=1e-4)
        np.testing.assert_allclose(nearest["velocity"], np.nan_to_num(box["velocity"]), atol=1e-4)
        assert np.cos(nearest["yaw"] - box["yaw"]) == pytest.approx(1.0)
        assert (nearest["label"], nearest["attribute"]) == (box["label"], box["attribute"])


def test_the_loss_is_small_for_the_truth_alone(annotations):
    task = Detection()
    output, target = said(task, task.read(annotations, annotations.tokens[1]), BEVAugmentation.none())
    assert task.loss(output, [target]) < 0.1
    assert task.loss(torch.zeros_like(output), [target]) > 1.0
    blank = task.target(np.zeros(0, BOX), BEVAugmentation.none())
    assert torch.isfinite(task.loss(torch.zeros_like(output), [blank]))


def test_attributes_go_with_their_class():
    task = Detection()
    torch.manual_seed(0)
    for boxes in task.boxes(torch.randn(2, len(CLASSES) + REGRESSED + len(ATTRIBUTES), 128, 128)):
        for box in boxes:
            name = ATTRIBUTES[box["attribute"]] if box["attribute"] >= 0 else ""
            kind = {"pedestrian": "pedestrian", "bicycle": "cycle", "motorcycle": "cycle", "barrier": ""}
            expected = {**kind, "traffic_cone": ""}.get(CLASSES[box["label"]], "vehicle")
            assert name.split(".")[0] == expected

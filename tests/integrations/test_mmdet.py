"""``MIM4DEncoder`` in the real mmdet 3.x: necks, a detector from its config, layer-wise learning rates."""

import shutil
from pathlib import Path

import pytest
import timm
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed: see tests/integrations/requirements.txt")
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData

from mim4d.hub.folder import save_encoder
from tests.hub import calls as hub_calls
from tests.integrations import calls

pytestmark = pytest.mark.usefixtures("mmdet")

CONFIG = """
default_scope = "mmdet"
custom_imports = dict(imports=["mim4d.integrations.openmmlab"])
model = dict(
    type="RetinaNet",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="MIM4DEncoder",
        arch="convnext_atto",
        out_indices=(1, 2, 3),
        frozen_stages=1,
        init_cfg=dict(type="Pretrained", checkpoint="encoder"),
    ),
    neck=dict(type="FPN", in_channels=[80, 160, 320], out_channels=16, num_outs=5, add_extra_convs="on_input"),
    bbox_head=dict(
        type="RetinaHead",
        num_classes=3,
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        anchor_generator=dict(
            type="AnchorGenerator", octave_base_scale=4, scales_per_octave=1, ratios=[1.0], strides=[8, 16, 32, 64, 128]
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True),
        loss_bbox=dict(type="L1Loss"),
    ),
    train_cfg=dict(
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type="PseudoSampler"),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
)
"""


@pytest.fixture
def models():
    """The registry that mmdet's configs are built with; the encoder comes to it from mmengine's, its parent."""
    from mmdet.registry import MODELS

    import mim4d.integrations.openmmlab  # noqa: F401

    return MODELS


def test_its_fpn_stands_on_it(models):
    backbone = models.build(dict(type="MIM4DEncoder", arch="convnext_atto", out_indices=(1, 2, 3)))
    neck = models.build(dict(type="FPN", in_channels=list(backbone.out_channels), out_channels=8, num_outs=4))
    maps = neck(backbone(torch.randn(1, 3, 64, 96)))
    assert [tuple(m.shape) for m in maps] == [(1, 8, 8, 12), (1, 8, 4, 6), (1, 8, 2, 3), (1, 8, 1, 2)]
    sum(m.square().sum() for m in maps).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_a_detector_from_a_config_loads_its_weights_and_learns(models, tmp_path, monkeypatch):
    from mmdet.structures import DetDataSample

    monkeypatch.chdir(tmp_path)
    encoder = hub_calls.shaken(timm.create_model("mim4d_convnext_atto"))
    save_encoder(encoder, tmp_path / "encoder")
    (tmp_path / "config.py").write_text(CONFIG)
    detector = models.build(Config.fromfile(tmp_path / "config.py").model)
    detector.init_weights()
    assert calls.features(detector.backbone) == hub_calls.features(encoder)[1:]

    boxes = InstanceData(bboxes=torch.tensor([[8.0, 8, 40, 40], [30, 4, 90, 60]]), labels=torch.tensor([0, 2]))
    sample = DetDataSample(metainfo=dict(img_shape=(64, 96), batch_input_shape=(64, 96), pad_shape=(64, 96)))
    sample.gt_instances = boxes
    images = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    optimizer = build_optim_wrapper(
        detector,
        dict(optimizer=dict(type="AdamW", lr=1e-3), paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.1)})),
    )
    detector.train()
    frozen = [p.clone() for p in detector.backbone.stages[0].parameters()]
    losses = [
        detector.train_step(dict(inputs=[images], data_samples=[sample]), optimizer)["loss"].item() for _ in range(4)
    ]
    assert losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(frozen, detector.backbone.stages[0].parameters(), strict=True))
    assert all(p.grad is None for p in detector.backbone.downsample_layers[0].parameters())


BEVFORMER = """
model = dict(
    type="BEVFormer",
    pretrained=dict(img="torchvision://resnet50"),
    img_backbone=dict(type="ResNet", depth=50, num_stages=4, out_indices=(3,), style="pytorch"),
    img_neck=dict(type="FPN", in_channels=[2048], out_channels=256, num_outs=1, add_extra_convs="on_output"),
)
"""


def test_the_example_config_changes_another_codebases(models, tmp_path):
    """examples/bevformer_tiny_mim4d.py beside a config with the lines that matter of BEVFormer's."""
    (tmp_path / "bevformer_tiny.py").write_text(BEVFORMER)
    shutil.copy(Path(__file__).parents[2] / "examples/bevformer_tiny_mim4d.py", tmp_path)
    config = Config.fromfile(tmp_path / "bevformer_tiny_mim4d.py").model
    assert config.type == "BEVFormer"
    assert config.pretrained is None
    backbone, neck = models.build(config.img_backbone), models.build(config.img_neck)
    assert [tuple(m.shape) for m in neck(backbone(torch.randn(1, 3, 64, 96)))] == [(1, 256, 2, 3)]


@pytest.mark.parametrize("decay_type", ["layer_wise", "stage_wise"])
def test_layer_wise_learning_rates_rise_from_the_stem_to_the_head(models, tmp_path, decay_type):
    detector = models.build(Config.fromstring(CONFIG.replace("frozen_stages=1", "frozen_stages=-1"), ".py").model)
    optimizer = build_optim_wrapper(
        detector,
        dict(
            constructor="LearningRateDecayOptimizerConstructor",
            optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.05),
            paramwise_cfg=dict(decay_rate=0.5, decay_type=decay_type, num_layers=6),
        ),
    )
    groups = [group for group in optimizer.param_groups if "param_names" in group]
    rates = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert set(rates) == {name for name, _ in detector.named_parameters()}
    blocks = [f"backbone.stages.{i}.0.conv_dw" for i in range(4)]
    steps = ["backbone.downsample_layers.0.0", *blocks, "bbox_head.retina_cls"]
    path = [rates[f"{step}.weight"] for step in steps]
    assert path == sorted(set(path))
    assert [g["weight_decay"] for g in groups if "backbone.stages.0.0.gamma" in g["param_names"]] == [0]

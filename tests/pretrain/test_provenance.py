"""What an exported encoder says of its first weights."""

import pytest

from mim4d.backbones.weights import license_of
from mim4d.pretrain.config import PretrainConfig
from mim4d.pretrain.provenance import provenance


@pytest.mark.parametrize(
    ("init", "name"),
    [
        ("/home/me/secret/encoder", "encoder"),  # gone by now
        ("./encoder", "encoder"),
        ("secret/best.pth", "best.pth"),
        ("my/secret/encoder", "encoder"),
        ("org/name", "org/name"),
        ("hf-hub:org/name@v1", "hf-hub:org/name@v1"),
        ("convnext_small.fb_in1k", "convnext_small.fb_in1k"),
    ],
)
def test_first_weights_are_named_without_their_folder(init, name):
    made = provenance(PretrainConfig(init=init), [], 1)
    assert made["init"] == made["settings"]["init"] == name


ROW = {
    "step": 1,
    "loss": 3.14159,
    "direct_rgb": 0.1,
    "direct_rgb_hidden": 0.2,
    "direct_depth": 0.0,
    "direct_abs_rel": 0.0,
    "val_zero_delta": 0.0,
    "grad_encoder_direct_rgb": 5.0,
    "rays": 1.0,
}
"""As version 0.1 wrote it without LiDAR, and what came later."""


def test_depth_that_was_never_seen_is_not_measured():
    assert provenance(PretrainConfig(supervision="rgb"), [ROW], 1)["measured"]["first"] == {
        "step": 1,
        "loss": 3.142,
        "direct_rgb": 0.1,
        "direct_rgb_hidden": 0.2,
    }
    with_lidar = provenance(PretrainConfig(), [ROW], 1)["measured"]["last"]
    assert set(ROW) - set(with_lidar) == {"grad_encoder_direct_rgb", "rays"}


def test_without_a_ray_nothing_was_measured():
    made = provenance(PretrainConfig(), [{"step": 1, "loss": 0.0, "direct_rgb": 0.0, "rays": 0.0}], 1)
    assert made["measured"] == {"first": {"step": 1}, "last": {"step": 1}}


@pytest.mark.parametrize("content", ["{", "[]", '{"pretrained_cfg": 3}'])
def test_a_broken_config_declares_no_licence(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    assert license_of(str(tmp_path)) is None

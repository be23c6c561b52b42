"""What an exported encoder says of its first weights."""

import pytest

from mim4d.pretrain.config import PretrainConfig
from mim4d.pretrain.provenance import provenance
from mim4d.pretrain.weights import license_of


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


@pytest.mark.parametrize("content", ["{", "[]", '{"pretrained_cfg": 3}'])
def test_a_broken_config_declares_no_licence(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    assert license_of(str(tmp_path)) is None

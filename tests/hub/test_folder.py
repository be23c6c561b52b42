"""The encoder folder: what it must be, and what is refused."""

import json

import pytest
import timm
import torch

from mim4d import MIM4DEncoder
from mim4d.convnext import MIM4DConvNeXt
from mim4d.errors import UserError, WeightsError
from mim4d.hub.folder import save_encoder
from tests.hub import calls


@pytest.fixture
def folder(tmp_path):
    save_encoder(
        calls.small(), tmp_path / "run" / "encoder", image_size=(64, 96), license="mit", provenance={"steps": 3}
    )
    return tmp_path / "run" / "encoder"


def test_a_run_its_encoder_and_a_path_or_a_string(folder):
    expected = calls.features(calls.small())
    for path in (folder, folder.parent, str(folder), str(folder.parent)):
        encoder = MIM4DEncoder.from_pretrained(path)
        assert isinstance(encoder, MIM4DEncoder)
        assert not encoder.training
        assert calls.features(encoder) == expected
    assert encoder.pretrained_cfg["input_size"] == [3, 64, 96]


def test_the_masked_forward_is_there(folder):
    encoder = MIM4DEncoder.from_pretrained(folder)
    maps = encoder.forward_masked(torch.randn(1, 3, 64, 64), torch.ones(1, 2, 2, dtype=torch.bool))
    assert [m.shape[1] for m in maps] == list(calls.SMALL["dims"])


@pytest.mark.parametrize("classes", [0, 3])
def test_features_alone_can_be_asked_for(classes, tmp_path):
    encoder = calls.small(num_classes=classes)
    save_encoder(encoder, tmp_path)
    backbone = MIM4DEncoder.from_pretrained(tmp_path, features_only=True, out_indices=(-2, -1))
    assert backbone.feature_info.channels() == encoder.widths()[-2:]
    assert not backbone.training
    assert calls.features(backbone) == calls.features(encoder)[-2:]


@pytest.mark.parametrize(
    "made",
    [{"num_classes": 3}, {"in_chans": 1}, {"use_grn": True}, {"conv_mlp": False}, {"ls_init_value": None}],
)
def test_timm_alone_makes_the_same_from_it(made, tmp_path):
    encoder = calls.small(**made, drop_path_rate=0.3, device="cpu", dtype=torch.float32)
    save_encoder(encoder, tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert not {"drop_path_rate", "device", "dtype"} & set(config.get("model_args", {}))
    plain = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    image = torch.randn(1, made.get("in_chans", 3), 64, 64)
    assert type(plain).__module__.startswith("timm.")
    assert torch.equal(plain(image), encoder(image))
    assert torch.equal(MIM4DEncoder.from_pretrained(tmp_path / "encoder")(image), encoder(image))


def test_a_new_head_is_published_as_it_is(tmp_path):
    encoder = calls.small()
    encoder.reset_classifier(4)
    save_encoder(encoder, tmp_path / "encoder")
    assert timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).num_classes == 4


def test_channels_last_and_bf16_weights_are_written_as_they_are(tmp_path):
    encoder = calls.small().to(memory_format=torch.channels_last).bfloat16()
    save_encoder(encoder, tmp_path / "encoder")
    again = MIM4DEncoder.from_pretrained(tmp_path / "encoder")
    assert all(torch.equal(again.state_dict()[n], t.float()) for n, t in encoder.state_dict().items())


def test_what_timm_could_not_rebuild_is_refused(tmp_path):
    encoder = calls.small()
    encoder.stages[0].blocks[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"so timm alone could not load it: stages\.0\.blocks\.0\.extra.* is unknown"):
        save_encoder(encoder, tmp_path / "encoder")
    with pytest.raises(UserError, match=r"made with arguments that config\.json cannot hold"):
        save_encoder(calls.small(act_layer=torch.nn.ReLU), tmp_path / "encoder")
    with pytest.raises(UserError, match="this encoder has no name"):
        save_encoder(MIM4DConvNeXt(), tmp_path / "encoder")
    assert not list(tmp_path.iterdir())


def _flip(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def _cut(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


def _forget_checksum(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["mim4d"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_flip, "model.safetensors is not the file that its config.json was written with: sha256"),
        (_cut, "model.safetensors is not the file that its config.json was written with: sha256"),
        (lambda f: (_forget_checksum(f), _cut(f)), "cannot read .*model.safetensors: Error while deserializing"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no encoder: neither it nor its encoder/ has config.json"),
        (lambda f: (f / "config.json").unlink(), "holds no encoder: neither it nor its encoder/ has config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot read .*config.json"),
        (lambda f: (f / "config.json").write_text("[]"), "does not describe a timm model"),
    ],
)
def test_a_damaged_folder_is_refused(spoil, message, folder):
    spoil(folder)
    with pytest.raises(WeightsError, match=message) as refusal:
        MIM4DEncoder.from_pretrained(folder)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_checksum_is_loaded_all_the_same(folder):
    _forget_checksum(folder)
    assert calls.features(MIM4DEncoder.from_pretrained(folder)) == calls.features(calls.small())


def test_a_folder_has_no_revisions(folder):
    with pytest.raises(WeightsError, match="folders have no revision v1"):
        MIM4DEncoder.from_pretrained(folder, revision="v1")

"""The encoder folder: what it must be, and what is refused."""

import json

import pytest
import timm
import torch

from mim4d import MIM4DEncoder
from mim4d.backbones.convnext import MIM4DConvNeXt
from mim4d.errors import UserError, WeightsError
from mim4d.eval.model import make_encoder
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
    with pytest.raises(
        UserError, match=r"because timm could not load it as a convnext_atto: stages\.0\.blocks\.0\.extra.* is unknown"
    ):
        save_encoder(encoder, tmp_path / "encoder")
    with pytest.raises(UserError, match=r"cannot store an argument of this encoder in config\.json: "):
        save_encoder(calls.small(act_layer=torch.nn.ReLU), tmp_path / "encoder")
    with pytest.raises(UserError, match=r"cannot save this MIM4DConvNeXt: create it with timm\.create_model"):
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
        (_flip, "model.safetensors was damaged or changed: its sha256 is"),
        (_cut, "model.safetensors was damaged or changed: its sha256 is"),
        (lambda f: (_forget_checksum(f), _cut(f)), "cannot read .*model.safetensors: Error while deserializing"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "no encoder in .*: expected config.json and model.safetensors there or in",
        ),
        (
            lambda f: (f / "config.json").unlink(),
            "no encoder in .*: expected config.json and model.safetensors there or in",
        ),
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
    with pytest.raises(WeightsError, match="is a folder, which has no revision v1"):
        MIM4DEncoder.from_pretrained(folder, revision="v1")


def _change(folder, **entries):
    """Write other entries into a config, which then knows no checksum."""
    config = json.loads((folder / "config.json").read_text())
    config["mim4d"].pop("sha256")
    for path, value in entries.items():
        *groups, name = path.split("__")
        place = config
        for group in groups:
            place = place[group]
        place[name] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg", "given_weights", "features_only", "block_args"])
def test_arguments_that_are_not_listed_never_reach_timm(name, folder, tmp_path, monkeypatch):
    """``checkpoint_path`` has timm load another file after the weights were checked, by pickle in older versions."""
    other = calls.small(seed=9).state_dict()
    torch.save(other, tmp_path / "other.pth")
    _change(folder, **{f"model_args__{name}": str(tmp_path / "other.pth")})
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("a model was made"))
    with pytest.raises(
        WeightsError, match=rf"config\.json: model_args has an argument '{name}'; allowed are in_chans, "
    ):
        MIM4DEncoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"architecture": "hf-hub:org/name"},
            "architecture is 'hf-hub:org/name'; expected the name of a timm architecture",
        ),
        ({"architecture": "../x"}, r"architecture is '\.\./x'; expected"),
        ({"num_classes": 10**9}, "num_classes is 1000000000; expected 0 to 1000000 classes"),
        ({"num_classes": 10**6}, "head.fc.weight is missing"),  # 96 MB that were never asked for
        ({"model_args__num_classes": 10**6}, "model_args.num_classes is 1000000; expected 0, which is num_classes"),
        ({"num_classes": True}, "num_classes is True; expected"),
        ({"model_args": [1]}, r"model_args is \[1\]; expected arguments by name"),
        ({"model_args__depths": [1, 1, 2, 10**6]}, r"model_args.depths is \[1, 1, 2, 1000000\]; expected 4 depths"),
        ({"model_args__dims": [65536] * 4}, "does not fit this encoder"),  # it would be 400 GB
        (
            {"model_args__act_layer": "os.system"},
            "model_args.act_layer is 'os.system'; expected the name of a timm activation",
        ),
        ({"model_args__layers": [1, 1, 1, 1]}, "cannot build a mim4d_convnext_atto: .*layers"),
        ({"pretrained_cfg__file": "/x.pth"}, "pretrained_cfg.file is '/x.pth'; expected nothing"),
        ({"pretrained_cfg__input_size": [3, -1, 64]}, r"pretrained_cfg.input_size is \[3, -1, 64\]; expected \[chan"),
        ({"pretrained_cfg__mean": [0.5]}, "pretrained_cfg.mean and .std differ in length"),
        (
            {"pretrained_cfg__std": [0, 0, 0]},
            r"pretrained_cfg.std is \[0, 0, 0\]; expected one positive number per channel",
        ),
        ({"pretrained_cfg__license": {"a": 1}}, "pretrained_cfg.license is {'a': 1}; expected the name of a licence"),
        ({"mim4d": 3}, "mim4d is 3; expected entries by name"),
        ({"mim4d__steps": "many"}, "mim4d.steps is 'many'; expected a count"),
        ({"mim4d__split": "\x1b[2J"}, r"mim4d.split is '\\x1b\[2J'; expected a line of text"),
        (
            {"mim4d__measured": {"first": {}, "last": {"loss": 1}}},
            "mim4d.measured is .*; expected the first and last rows",
        ),
        ({"mim4d__settings": [1]}, r"mim4d.settings is \[1\]; expected plain values by name"),
    ],
)
def test_a_config_with_a_wrong_entry_is_refused_by_its_name(entries, message, folder):
    _change(folder, **entries)
    code, out, err = calls.run("card", str(folder))
    assert (code, out, err.count("\n")) == (2, "", 1)
    with pytest.raises(WeightsError, match=message) as refusal:
        MIM4DEncoder.from_pretrained(folder)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "it is nested too deeply|Expecting value"),
        ('{"architecture": NaN}', "NaN is not a number in JSON"),
        (" " * 2_000_000, "it is larger than 1048576 bytes"),
    ],
)
def test_a_config_that_no_reader_should_meet_is_refused(text, message, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=rf"cannot read .*config\.json: ({message})"):
        MIM4DEncoder.from_pretrained(folder)


def test_what_a_config_says_of_other_weights_is_left_alone(folder):
    _change(folder, pretrained_cfg__url="https://example.org/x.pth", pretrained_cfg__first_conv="head.fc")
    encoder = MIM4DEncoder.from_pretrained(folder)
    assert "url" not in encoder.pretrained_cfg
    assert encoder.pretrained_cfg["first_conv"] == "stem.0"


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    encoder = calls.small()
    for wrong in (dict(provenance={"split": "a\nb"}), dict(license="\x1b[31m")):
        with pytest.raises(UserError, match=r"the encoder's config\.json: "):
            save_encoder(encoder, tmp_path / "encoder", **wrong)
    encoder.stem[0].bias.data[0] = torch.nan
    with pytest.raises(UserError, match=r"cannot write the encoder: stem\.0\.bias holds NaN or infinity"):
        save_encoder(encoder, tmp_path / "encoder")
    assert not list(tmp_path.iterdir())


def test_a_backbone_of_a_folder_ignores_the_pickles_beside_it(folder, tmp_path):
    """Older versions of timm prefer them for ``local-dir:``."""
    (folder / "pytorch_model.bin").write_bytes(b"no checkpoint")
    (folder / "model.bin").write_bytes(b"no checkpoint")
    maps = make_encoder(str(folder), "pretrained")[0].eval()(torch.ones(1, 3, 64, 64))
    expected = MIM4DEncoder.from_pretrained(folder, features_only=True)(torch.ones(1, 3, 64, 64))
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def test_a_link_is_not_published_in_place_of_a_card(folder, tmp_path):
    (tmp_path / "secret").write_text("nobody's business")
    (folder / "README.md").symlink_to(tmp_path / "secret")
    code, out, err = calls.run("push", str(folder), "--repo", "org/name", "--dry-run")
    assert (code, out) == (2, "")
    assert "README.md is a link" in err

"""What a run is for: an encoder that timm loads without this package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import mim4d  # noqa: F401  # registers the encoders
from mim4d.errors import UserError
from mim4d.hub.folder import save_encoder
from mim4d.io.tensors import read_tensors
from mim4d.pretrain.checkpoint import list_checkpoints
from mim4d.pretrain.config import PretrainConfig
from mim4d.pretrain.trainer import first_model, train
from mim4d.settings import overlay
from tests.pretrain.runs import environment, tiny

PLAIN_TIMM = """
import sys
sys.modules["mim4d"] = None  # importing it is an error
import timm, torch
from safetensors.torch import save_file
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True, features_only=True)
torch.manual_seed(0)
features = model.eval()(torch.randn(1, 3, 64, 96))
save_file({str(i): x.detach().contiguous() for i, x in enumerate(features)}, sys.argv[2])
"""


def features(encoder) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return encoder.eval().forward_intermediates(torch.randn(1, 3, 64, 96), intermediates_only=True)


def test_a_long_average_does_not_keep_the_first_weights(root, tmp_path, fresh_accelerate):
    config = tiny(root, tmp_path / "run", "--optim.ema-decay", "0.9999")
    newest = list_checkpoints(train(config) / "checkpoints")[-1]
    last, average = (load_file(newest / f"{name}.safetensors") for name in ("model", "ema"))
    first = first_model(config, read_init=False)[0].state_dict()
    assert distance(average, last) < 0.5 * distance(average, first)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


@pytest.mark.parametrize("ema", ["0", "0.5"])
def test_plain_timm_gives_the_trained_features_bit_for_bit(ema, root, tmp_path, fresh_accelerate):
    out = train(tiny(root, tmp_path / "run", "--optim.ema-decay", ema))
    env = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    script = [sys.executable, "-c", PLAIN_TIMM, str(out / "encoder"), str(tmp_path / "features.safetensors")]
    subprocess.run(script, env=env, cwd=tmp_path, check=True, timeout=120)

    newest = list_checkpoints(out / "checkpoints")[-1]
    weights = read_tensors(newest / ("model.safetensors" if ema == "0" else "ema.safetensors"))
    trained = timm.create_model("mim4d_convnext_atto", num_classes=0)
    trained.load_state_dict({k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")})
    threads = torch.get_num_threads()
    expected = features(trained)
    assert threads == 1
    found = load_file(tmp_path / "features.safetensors")
    assert [list(x.shape) for x in expected] == [[1, 40, 16, 24], [1, 80, 8, 12], [1, 160, 4, 6], [1, 320, 2, 3]]
    for i, x in enumerate(expected):
        assert torch.equal(x, found[str(i)]), f"stage {i}"


def test_the_config_is_timms_own(root, tmp_path, fresh_accelerate):
    out = train(tiny(root, tmp_path / "run", "--steps", "1"))
    config = json.loads((out / "encoder" / "config.json").read_text())
    assert config["architecture"] == "convnext_atto"
    assert config["num_classes"] == 0
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 128]
    assert config["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]
    assert config["pretrained_cfg"]["license"] == "cc-by-nc-sa-4.0"
    model = timm.create_model(f"local-dir:{out / 'encoder'}", pretrained=True, num_classes=5)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_the_config_says_how_the_weights_were_made_and_nothing_of_this_machine(root, tmp_path, fresh_accelerate):
    out = train(tiny(root, tmp_path / "run", "--steps", "2"))
    text = (out / "encoder" / "config.json").read_text()
    made = json.loads(text)["mim4d"]
    assert (made["init"], made["data"], made["dataset"], made["split"]) == (
        "scratch",
        "nuscenes",
        "v1.0-mini",
        "mini_train",
    )
    assert (made["steps"], made["clips_per_step"]) == (2, 1)
    assert overlay(PretrainConfig(), made["settings"], Path("card")).optim.lr == 1e-3
    assert made["measured"]["first"]["step"] == 1
    assert made["measured"]["last"].keys() >= {"step", "loss", "direct_rgb", "direct_depth", "temporal_depth"}
    assert str(tmp_path) not in text
    assert str(root) not in text


@pytest.mark.parametrize("size", ["atto", "femto", "pico", "nano", "tiny", "small", "base", "large"])
def test_every_size_has_timms_architecture_and_keys(size):
    with torch.device("meta"):
        ours = timm.create_model(f"mim4d_convnext_{size}", num_classes=0)
        theirs = timm.create_model(f"convnext_{size}", num_classes=0)
    assert ours.num_features == theirs.num_features
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_who_may_read_the_folder_may_read_its_files(tmp_path):
    encoder = timm.create_model("mim4d_convnext_atto", num_classes=0)
    save_encoder(encoder, tmp_path / "encoder")
    readers = (tmp_path / "encoder").stat().st_mode & 0o444
    assert all(file.stat().st_mode & 0o444 == readers for file in (tmp_path / "encoder").iterdir())


def test_a_failed_export_leaves_the_one_before(tmp_path, monkeypatch):
    encoder = timm.create_model("mim4d_convnext_atto", num_classes=0)
    save_encoder(encoder, tmp_path / "encoder")
    before = (tmp_path / "encoder" / "model.safetensors").read_bytes()

    def full(tensors, file, metadata):
        save_file({"half": torch.zeros(3)}, file)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mim4d.hub.folder.save_file", full)
    with pytest.raises(UserError, match=r"cannot write the encoder to .*No space left"):
        save_encoder(encoder, tmp_path / "encoder")
    assert (tmp_path / "encoder" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]

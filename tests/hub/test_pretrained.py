"""``timm.create_model(NAME, pretrained=True)``: which weights have names, how they are loaded, what else is said."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

import mim4d
from mim4d import MIM4DEncoder
from mim4d.errors import UserError, WeightsError
from mim4d.hub.card import make_card
from mim4d.hub.folder import check_folder, save_encoder
from mim4d.hub.load import load_weights
from mim4d.hub.published import PACKAGED
from mim4d.hub.sources import from_file
from mim4d.pretrain.cli import parse
from mim4d.pretrain.config import complete, flatten, to_dict
from tests.hub import calls, checkpoints
from tests.reference.openmmlab_convnext import openmmlab_convnext

UVTR = "mim4d_convnext_small.uvtr_nuscenes"
RELEASE = "uvtrs_mim4d_vs0.075/uvtrs_mim4d_vs0.075_pretrain.pth"
WITHOUT = [name for name in timm.list_models("mim4d_*") if not timm.is_model_pretrained(name)]


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WITHOUT, "mim4d_resnet18.single_frame"])
def test_without_weights_it_says_what_there_is_and_how_to_make_some(name):
    model, _, tag = name.partition(".")
    which = name if tag else f"{name} without a tag"
    with pytest.raises(RuntimeError, match=f"^there are no weights for {which}, only for mim4d_") as refusal:
        timm.create_model(name, pretrained=True)
    assert isinstance(refusal.value, UserError)
    message = str(refusal.value)
    assert all(tagged in message for tagged in timm.list_models("mim4d_*", pretrained=True, include_tags=True))
    assert f"`mim4d-pretrain --model {model} " in message
    assert "\n" not in message


def test_the_release_has_a_tag_and_is_nobodys_default():
    assert UVTR in timm.list_models("mim4d_*", pretrained=True)
    assert "mim4d_convnext_small" in WITHOUT
    about = timm.get_pretrained_cfg(UVTR)
    assert (about.hf_hub_id, about.hf_hub_filename) == ("hustvl/MIM4D", RELEASE)
    assert (about.license, about.input_size) == ("cc-by-nc-sa-4.0", (3, 480, 800))


# --- the release, converted when it is loaded ------------------------------------------------------------------------


def put_release(hub, tmp_path, checkpoint) -> None:
    path = checkpoints.save(checkpoint, tmp_path / "pretrain.pth")
    hub.add("hustvl/MIM4D", {RELEASE: path.read_bytes()})


def test_the_release_computes_what_its_checkpoint_does(client, hub, tmp_path):
    checkpoint = checkpoints.detector("small")
    checkpoint["state_dict"] = {name: tensor.half() for name, tensor in checkpoint["state_dict"].items()}
    put_release(hub, tmp_path, checkpoint)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))  # as in calls.features
    expected, _ = openmmlab_convnext(checkpoint["state_dict"], image)
    for found in (client(calls.create, UVTR), client(calls.create, UVTR, features_only=True)):
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(torch.tensor(b).double(), a.flatten(), rtol=1e-4, atol=1e-4)
    assert client(calls.pretrained_cfg, UVTR)["tag"] == "uvtr_nuscenes"


def test_a_release_with_code_in_it_is_refused(client, hub, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "witness"),)

    put_release(hub, tmp_path, {"meta": Evil(), "state_dict": {}})
    with pytest.raises(WeightsError, match="it holds pickled objects"):
        client(calls.create, UVTR)
    assert not (tmp_path / "witness").exists()


def test_a_release_of_another_size_is_refused(client, hub, tmp_path):
    put_release(hub, tmp_path, checkpoints.detector("atto"))
    with pytest.raises(WeightsError, match=r"hustvl/MIM4D/.*pth does not fit this encoder: .*6400"):
        client(calls.create, UVTR)


# --- timm's ways of naming weights -----------------------------------------------------------------------------------


def test_an_overlay_names_a_repository(client, hub):
    client(calls.push, "org/name", tag="v1")
    overlay = {"hf_hub_id": "org/name@v1"}
    found = client(calls.create, "mim4d_convnext_atto", pretrained_cfg_overlay=overlay, **calls.SMALL)
    assert found == calls.features(calls.small())
    about = client(calls.pretrained_cfg, "mim4d_convnext_atto", pretrained_cfg_overlay=overlay, **calls.SMALL)
    assert about["hf_hub_id"] == "org/name@v1"
    assert about["input_size"] == timm.get_pretrained_cfg("mim4d_convnext_atto").input_size
    assert "file" not in about or not about["file"].startswith("/tmp")


@pytest.fixture
def folder(tmp_path) -> Path:
    """An encoder folder with narrow weights."""
    save_encoder(calls.small(), tmp_path / "encoder")
    return tmp_path / "encoder"


def overlaid(**overlay) -> MIM4DEncoder:
    return timm.create_model("mim4d_convnext_atto", pretrained=True, pretrained_cfg_overlay=overlay, **calls.SMALL)


def test_files_folders_tensors_and_urls(folder, tmp_path):
    checkpoint = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": calls.small().state_dict()}, checkpoint)
    sources = [
        {"file": str(folder / "model.safetensors")},
        {"file": str(checkpoint)},
        {"file": str(folder), "source": "local-dir"},
        {"state_dict": calls.small().state_dict()},
    ]
    for overlay in sources:
        assert calls.features(overlaid(**overlay).eval()) == calls.features(calls.small())
    torch.save(calls.small().state_dict(), checkpoint)
    by_url = timm.create_model(
        "mim4d_convnext_atto",
        pretrained=True,
        pretrained_cfg_overlay={"url": checkpoint.as_uri(), "file": None},
        cache_dir=tmp_path / "cache",
        **calls.SMALL,
    )
    assert calls.features(by_url.eval()) == calls.features(calls.small())


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ({"file": "nothing.pth"}, "cannot read nothing.pth"),
        ({"url": "file:///nothing.pth", "file": None}, "cannot download file:///nothing.pth"),
    ],
)
def test_sources_that_are_not_there(overlay, message):
    with pytest.raises(WeightsError, match=message):
        overlaid(**overlay)


def test_a_classifier_for_other_classes_is_left_out(folder, tmp_path):
    torch.manual_seed(0)
    save_encoder(calls.small(num_classes=7), tmp_path / "seven")
    assert timm.create_model(f"local-dir:{tmp_path / 'seven'}", pretrained=True).head.fc.out_features == 7
    same = MIM4DEncoder.from_pretrained(tmp_path / "seven")
    assert torch.equal(same.head.fc.weight, calls.small(num_classes=7).head.fc.weight)
    for classes in (0, 5):
        other = MIM4DEncoder.from_pretrained(tmp_path / "seven", num_classes=classes)
        assert other.num_classes == classes
        assert torch.equal(other.stem[0].weight, same.stem[0].weight)
    given = overlaid(file=str(tmp_path / "seven" / "model.safetensors"))
    assert torch.equal(given.head.norm.weight, same.head.norm.weight)
    assert MIM4DEncoder.from_pretrained(folder, num_classes=5).head.fc.out_features == 5


def test_a_stem_for_colour_is_adapted_to_other_images(folder):
    grey = MIM4DEncoder.from_pretrained(folder, in_chans=1)
    colour = MIM4DEncoder.from_pretrained(folder)
    torch.testing.assert_close(grey.stem[0].weight, colour.stem[0].weight.sum(1, keepdim=True))
    image = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


# --- weights that come with the package ------------------------------------------------------------------------------

OFFLINE = """
import timm, torch, mim4d
from tests.hub import calls
print(mim4d.__file__)
print(timm.list_models("mim4d_*", pretrained=True))
model = timm.create_model("mim4d_convnext_atto", pretrained=True)
print(model.pretrained_cfg["tag"], model.pretrained_cfg["license"], model.pretrained_cfg["input_size"])
assert torch.equal(model.stem[0].weight, calls.shaken(timm.create_model("mim4d_convnext_atto")).stem[0].weight.half())
assert torch.equal(model.stem[0].weight, timm.create_model("mim4d_convnext_atto.demo", pretrained=True).stem[0].weight)
"""


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the package with weights in it; of its own there may be some already."""
    skipped = shutil.ignore_patterns("__pycache__", "weights", "pretrain", "world", "data")
    copy = shutil.copytree(Path(mim4d.__file__).parent, tmp_path / "site" / "mim4d", ignore=skipped)
    (tmp_path / "site" / "tests").symlink_to(Path(__file__).parents[1])
    save_encoder(
        calls.shaken(timm.create_model("mim4d_convnext_atto")),
        copy / "weights" / "mim4d_convnext_atto.demo",
        image_size=(96, 256),
        license="apache-2.0",
        half=True,
    )
    return copy


def offline(package: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(package.parent), "HF_HUB_OFFLINE": "1", "HF_HOME": str(package / "no-cache")}
    return subprocess.run(
        [sys.executable, "-c", OFFLINE], env=env, cwd=package.parent, capture_output=True, text=True, timeout=300
    )


def test_packaged_weights_need_no_network(package):
    done = offline(package)
    assert done.returncode == 0, done.stderr
    where, names, config = done.stdout.splitlines()
    assert where == str(package / "__init__.py")
    assert "'mim4d_convnext_atto.demo'" in names
    assert config == "demo apache-2.0 (3, 96, 256)"


def test_packaged_weights_that_were_damaged_are_refused(package):
    weights = package / "weights" / "mim4d_convnext_atto.demo" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = offline(package)
    assert done.returncode == 1
    assert "WeightsError" in done.stderr
    assert "model.safetensors was damaged or changed" in done.stderr


def test_the_package_holds_one_model_and_its_generated_card():
    (folder,) = PACKAGED.iterdir()
    model = timm.create_model(folder.name, pretrained=True)
    assert torch.equal(model.stem[0].weight, timm.create_model("mim4d_convnext_atto", pretrained=True).stem[0].weight)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert (folder / "README.md").read_text() == make_card(check_folder(folder))


def test_the_packaged_card_shows_settings_that_a_run_accepts(tmp_path):
    (folder,) = PACKAGED.iterdir()
    (text,) = re.findall(r"^```yaml\n(.*?)^```", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "settings.yaml").write_text(text)
    config, _ = parse(["--config", str(tmp_path / "settings.yaml")])
    settings = json.loads(json.dumps(flatten(to_dict(complete(config)))))  # tuples become lists
    assert flatten(yaml.safe_load(text)).items() <= settings.items()


def test_weights_that_do_not_fit_leave_a_model_as_it_was(tmp_path):
    tensors = calls.small(seed=1).state_dict()
    del tensors["stages.3.blocks.0.gamma"]
    save_file(tensors, tmp_path / "w.safetensors")
    model = calls.small(seed=0)
    with pytest.raises(WeightsError, match=r"stages\.3\.blocks\.0\.gamma is missing"):
        load_weights(model, from_file(tmp_path / "w.safetensors"))
    assert all(
        torch.equal(tensor, calls.small(seed=0).state_dict()[name]) for name, tensor in model.state_dict().items()
    )

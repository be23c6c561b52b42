"""``MIM4DEncoder`` in the real mmengine: built from a config, trained as OpenMMLab trains, loaded from everywhere."""

import copy
import re

import pytest
import timm
import torch

pytest.importorskip("mmengine", reason="mmengine is not installed: see tests/integrations/requirements.txt")
from mmengine.config import Config
from mmengine.model import BaseModel, BaseModule
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from safetensors.torch import load_file, save_file

from mim4d.backbones.masked import dense_maps
from mim4d.errors import UserError, WeightsError
from mim4d.hub.folder import save_encoder
from mim4d.hub.openmmlab import convert_checkpoint
from tests.hub import calls as hub_calls
from tests.hub import checkpoints
from tests.imagenet import efficientnet_lite0
from tests.integrations import calls
from tests.reference.openmmlab_convnext import openmmlab_convnext

CONFIG = """
custom_imports = dict(imports=["mim4d.integrations.openmmlab"])
model = dict(
    img_backbone=dict(
        type="MIM4DEncoder",
        arch="{arch}",
        out_indices=(2, 3),
        frozen_stages=1,
        with_cp=True,
        drop_path_rate=0.1,
    ),
)
"""
FAMILIES = ["convnext_atto", "convnextv2_atto", "resnet18"]
CHANNELS = {"convnext_atto": (40, 80, 160, 320), "convnextv2_atto": (40, 80, 160, 320), "resnet18": (64, 128, 256, 512)}


@pytest.fixture(autouse=True)
def _registered():
    import mim4d.integrations.openmmlab  # noqa: F401


def build(arch="convnext_atto", **arguments):
    return MODELS.build(dict(type="MIM4DEncoder", arch=arch, **arguments))


def encoder(arch="convnext_atto", seed=0):
    """An encoder by our name, with weights of its own at every parameter."""
    return hub_calls.shaken(timm.create_model(f"mim4d_{arch}"), seed)


def loaded(arch="convnext_atto", **init_cfg):
    backbone = build(arch, init_cfg=dict(type="Pretrained", **init_cfg))
    backbone.init_weights()
    return backbone


class Detector(BaseModel):
    """A backbone within what OpenMMLab trains."""

    def __init__(self, **arguments):
        super().__init__()
        self.img_backbone = build(**arguments)
        self.head = torch.nn.Linear(320, 3)

    def forward(self, inputs, mode="tensor"):
        return self.img_backbone(inputs)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- built from a config ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_config_builds_it_and_gradients_reach_every_parameter_that_is_not_frozen(tmp_path, arch):
    (tmp_path / "config.py").write_text(CONFIG.format(arch=arch))
    config = Config.fromfile(tmp_path / "config.py")  # runs custom_imports
    backbone = MODELS.build(config.model.img_backbone)
    maps = backbone(images(2, 3, 64, 96))
    assert isinstance(maps, tuple)
    assert [tuple(m.shape) for m in maps] == [(2, CHANNELS[arch][2], 4, 6), (2, CHANNELS[arch][3], 2, 3)]
    assert backbone.out_channels == CHANNELS[arch][2:]
    assert backbone.out_strides == (16, 32)
    sum(m.square().sum() for m in maps).backward()
    assert all((p.grad is not None) == p.requires_grad for p in backbone.parameters())
    assert all(p.grad is None or p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize("arch", FAMILIES)
def test_maps_are_those_of_timms_features_only(tmp_path, arch):
    save_encoder(encoder(arch), tmp_path / "encoder")
    plain = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True, features_only=True).eval()
    backbone = loaded(arch, checkpoint=str(tmp_path / "encoder")).eval()
    expected = plain(images(2, 3, 64, 96))[-4:]  # a ResNet's begin with its stem
    for got, want in zip(backbone(images(2, 3, 64, 96)), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("out_indices", [(0,), (1,), (3,), (0, 2), (1, 2, 3)])
def test_stages_that_nobody_asked_for_are_left_out(out_indices):
    backbone = build(out_indices=out_indices)
    maps = backbone(images(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == [CHANNELS["convnext_atto"][i] for i in out_indices]
    assert len(backbone.stages) == max(out_indices) + 1
    maps[-1].sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_recomputing_blocks_gives_the_same_gradients():
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        backbone = build(with_cp=with_cp)
        sum(m.square().mean() for m in backbone(images(1, 3, 64, 64))).backward()
        gradients.append([p.grad for p in backbone.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_drop_path_drops_in_training_alone():
    backbone = build(drop_path_rate=0.9)
    hub_calls.shaken(backbone).train()
    torch.manual_seed(0)
    assert not torch.equal(backbone(images(2, 3, 64, 64))[-1], backbone(images(2, 3, 64, 64))[-1])
    backbone.eval()
    assert torch.equal(backbone(images(2, 3, 64, 64))[-1], backbone(images(2, 3, 64, 64))[-1])


def test_it_can_be_copied_as_moving_averages_do():
    backbone = hub_calls.shaken(build(frozen_stages=1, with_cp=True, drop_path_rate=0.1))
    copied = copy.deepcopy(backbone)
    assert not copied.train().stages[0].training
    assert calls.features(copied) == calls.features(backbone)
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in backbone.parameters()}


# --- frozen stages ---------------------------------------------------------------------------------------------------

STEMS = {"convnext_atto": ("downsample_layers.0.",), "resnet18": ("conv1.", "bn1.")}
FIRST = {"convnext_atto": ("stages.0.",), "resnet18": ("layer1.",)}
SECOND = {"convnext_atto": ("downsample_layers.1.", "stages.1."), "resnet18": ("layer2.",)}


@pytest.mark.parametrize("arch", STEMS)
@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 2, 4])
def test_frozen_stages_have_no_gradient_and_stay_in_eval(arch, frozen_stages):
    backbone = build(arch, frozen_stages=frozen_stages, norm_eval=False)
    parts = [STEMS[arch], FIRST[arch], SECOND[arch]]
    frozen = tuple(name for part in parts[: frozen_stages + 1] for name in part)
    if frozen_stages == 4:
        frozen = tuple({f"{name.split('.')[0]}." for name, _ in backbone.named_parameters()})
    for _ in range(2):
        assert backbone.train() is backbone  # as nn.Module's: some of OpenMMLab's backbones return None
        assert backbone.training
        for name, module in backbone.named_modules():
            if list(module.parameters(recurse=False)):
                assert module.training != f"{name}.".startswith(frozen), name
        for name, parameter in backbone.named_parameters():
            assert parameter.requires_grad != name.startswith(frozen), name
        backbone.eval()
        assert not any(module.training for module in backbone.modules())


def test_statistics_of_frozen_stages_stay_whatever_they_see():
    backbone = build("resnet18", frozen_stages=1, norm_eval=False).train()
    before = copy.deepcopy(backbone.state_dict())
    backbone(images(2, 3, 64, 64) + 3)
    after = backbone.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"layer2", "layer3", "layer4"}


def test_norm_eval_keeps_all_statistics():
    backbone = build("resnet18", norm_eval=True).train()
    before = copy.deepcopy(backbone.state_dict())
    backbone(images(2, 3, 64, 64) + 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    assert all(p.requires_grad for p in backbone.parameters())


# --- init_cfg --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["run", "folder", "timm's name of it", "weights file", "checkpoint of ours"])
def test_pretrained_from_what_was_exported(tmp_path, of):
    source = encoder()
    save_encoder(source, tmp_path / "runs/demo/encoder")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "checkpoint.pth")
    places = {
        "run": "runs/demo",
        "folder": "runs/demo/encoder",
        "timm's name of it": "runs/demo/encoder",
        "weights file": "runs/demo/encoder/model.safetensors",
        "checkpoint of ours": "checkpoint.pth",
    }
    before = "local-dir:" if of == "timm's name of it" else ""
    assert calls.features(loaded(checkpoint=f"{before}{tmp_path / places[of]}")) == hub_calls.features(source)


def test_pretrained_from_the_hub(client, hub):
    client(hub_calls.push, "org/name", tag="v1")  # a narrow one, of another architecture
    with pytest.raises(WeightsError, match="org/name does not fit this encoder"):
        client(calls.pretrained, "convnext_atto", "org/name")
    client(calls.push, "org/whole", "convnext_atto")
    expected = hub_calls.features(encoder())
    for name in ("org/whole", "hf-hub:org/whole", "org/whole@main"):
        assert client(calls.pretrained, "convnext_atto", name) == expected


@pytest.mark.parametrize("prefix", [None, "img_backbone", "img_backbone."])
def test_pretrained_from_a_detectors_checkpoint(tmp_path, prefix):
    checkpoint = checkpoints.detector("atto")
    checkpoints.save(checkpoint, tmp_path / "detector.pth")
    backbone = loaded(checkpoint=str(tmp_path / "detector.pth"), map_location="cpu", prefix=prefix).eval()
    expected, _ = openmmlab_convnext(checkpoint["state_dict"], images(1, 3, 64, 96))
    for got, want in zip(backbone(images(1, 3, 64, 96)), expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["encoder.", "a.b"])
def test_a_prefix_of_ones_own(tmp_path, prefix):
    beginning = prefix.rstrip(".") + "."
    others = {"head.weight": torch.zeros(2), "encoders.weight": torch.zeros(2)}
    save_file(
        {**{beginning + n: t for n, t in encoder().state_dict().items()}, **others}, tmp_path / "model.safetensors"
    )
    found = loaded(checkpoint=str(tmp_path / "model.safetensors"), prefix=prefix)
    assert calls.features(found) == hub_calls.features(encoder())
    with pytest.raises(WeightsError, match=r"has no names with the prefix backbone\.; there are "):
        loaded(checkpoint=str(tmp_path / "model.safetensors"), prefix="backbone")


@pytest.mark.parametrize("arch", ["convnext_atto", "resnet18"])
def test_what_a_detector_trained_can_be_read_back(tmp_path, arch):
    backbone = hub_calls.shaken(build(arch))
    torch.save(
        {"state_dict": {f"img_backbone.{n}": t for n, t in backbone.state_dict().items()}}, tmp_path / "epoch_24.pth"
    )
    plain = timm.create_model(arch, num_classes=0).eval()
    plain.load_state_dict(convert_checkpoint(tmp_path / "epoch_24.pth"), strict=False)
    expected = plain.forward_intermediates(images(1, 3, 64, 96), intermediates_only=True)[-4:]
    for got, want in zip(backbone(images(1, 3, 64, 96)), expected, strict=True):
        assert torch.equal(got, want)


def test_detectors_may_set_init_cfg_later_and_load_their_children(tmp_path):
    """As those of mmdet3d 0.x and 1.0 do with ``pretrained=dict(img=...)``."""

    save_encoder(encoder(), tmp_path / "encoder")
    detector = Detector(frozen_stages=1)
    detector.img_backbone.init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "encoder"))
    detector.init_weights()
    assert calls.features(detector.img_backbone) == hub_calls.features(encoder())
    assert not any(p.requires_grad for p in detector.img_backbone.stages[0].parameters())


def test_without_init_cfg_weights_stay_as_they_are():
    backbone = build()
    before = copy.deepcopy(backbone.state_dict())
    backbone.init_weights()
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def test_weights_that_do_not_fit_change_nothing(tmp_path):
    save_encoder(encoder("convnext_femto"), tmp_path / "encoder")
    backbone = build(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "encoder")))
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(WeightsError, match="does not fit this encoder"):
        backbone.init_weights()
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


# --- any other timm backbone -----------------------------------------------------------------------------------------

TIMM = {
    "regnety_002": (24, 56, 152, 368),
    "ese_vovnet19b_slim_dw": (112, 256, 384, 512),
    "densenet121": (256, 512, 1024, 1024),
    "test_vit": (64,),
}
"""Channels of the maps of the last four strides."""


@pytest.mark.parametrize("arch", ["convnext_atto", "resnet18", "regnety_002"])
def test_it_is_a_base_module(arch):
    assert isinstance(build(arch), BaseModule)


def test_a_detector_starts_from_imagenets_efficientnet(tmp_path):
    file = efficientnet_lite0(tmp_path)
    detector = Detector(arch="tf_efficientnet_lite0", init_cfg=dict(type="Pretrained", checkpoint=str(file)))
    detector.init_weights()  # BaseModel's, which calls that of every BaseModule
    backbone = detector.img_backbone.eval()
    assert backbone.is_init
    plain = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    plain.load_state_dict({name: t for name, t in load_file(file).items() if name in plain.state_dict()})
    for got, want in zip(backbone(images(1, 3, 64, 96)), plain(images(1, 3, 64, 96))[-4:], strict=True):
        assert torch.equal(got, want)
    assert (backbone.out_channels, backbone.out_strides) == ((24, 40, 112, 320), (4, 8, 16, 32))


def test_timms_groups_are_its_stages():
    backbone = build("tf_efficientnet_lite0", frozen_stages=2, norm_eval=False, drop_path_rate=0.5).train()
    frozen = ("model.conv_stem.", "model.bn1.", "model.blocks.0.", "model.blocks.1.")
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    for name, module in backbone.named_modules():  # stochastic depth, too
        assert module.training != f"{name}.".startswith(frozen), name


def test_norm_eval_keeps_all_statistics_of_timm_backbones():
    backbone = build("tf_efficientnet_lite0").train()
    before = copy.deepcopy(backbone.state_dict())
    backbone(images(2, 3, 64, 64) + 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    assert all(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("arch", TIMM)
def test_maps_of_timm_backbones_are_timms(arch, tmp_path):
    source = hub_calls.shaken(timm.create_model(arch)).eval()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    backbone = loaded(arch, checkpoint=str(tmp_path / "w.safetensors")).eval()
    image = images(1, 3, *source.pretrained_cfg["input_size"][1:])
    maps = backbone(image)
    assert tuple(m.shape[1] for m in maps) == backbone.out_channels == TIMM[arch]
    assert tuple(image.shape[-1] // m.shape[-1] for m in maps) == backbone.out_strides
    expected = dense_maps(source, image)[-len(maps) :]
    assert all(torch.equal(got, want) for got, want in zip(maps, expected, strict=True))


@pytest.mark.parametrize("out_indices", [(2,), (1, 3)])
def test_later_stages_of_timm_backbones_are_left_out(out_indices):
    backbone = build("regnety_002", out_indices=out_indices)
    maps = backbone(images(2, 3, 64, 64))
    assert [m.shape[1] for m in maps] == [TIMM["regnety_002"][index] for index in out_indices]
    sum(m.sum() for m in maps).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_recomputed_blocks_of_timm_backbones_have_the_same_gradients():
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        backbone = build("regnety_002", with_cp=with_cp)
        sum(m.square().mean() for m in backbone(images(1, 3, 64, 64))).backward()
        gradients.append([p.grad for p in backbone.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# --- optimizers ------------------------------------------------------------------------------------------------------


def test_paramwise_multipliers_reach_it():
    detector = Detector()
    optimizer = build_optim_wrapper(
        detector,
        dict(
            optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.01),
            paramwise_cfg=dict(
                custom_keys={"img_backbone": dict(lr_mult=0.1), "img_backbone.stages.3": dict(lr_mult=0.5)},
            ),
        ),
    )
    names = {id(p): name for name, p in detector.named_parameters()}
    groups = [(id(parameter), group) for group in optimizer.param_groups for parameter in group["params"]]
    # mmengine adds a group of its own, for the base rate.
    found = {names[key]: (group["lr"], group["weight_decay"]) for key, group in groups if key in names}
    assert found.keys() == set(names.values())
    assert found["head.weight"] == (1.0, 0.01)
    assert found["img_backbone.stages.3.0.conv_dw.weight"] == (0.5, 0.01)
    assert found["img_backbone.stages.2.0.mlp.fc1.weight"] == (0.1, 0.01)
    assert found["img_backbone.downsample_layers.0.1.weight"] == (0.1, 0.01)


def test_norms_can_be_spared_weight_decay():
    detector = Detector()
    optimizer = build_optim_wrapper(
        detector,
        dict(optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.01), paramwise_cfg=dict(norm_decay_mult=0.0)),
    )
    spared = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    for name, parameter in detector.named_parameters():
        norm = (
            ".norm." in name or ".downsample_layers.0.1." in name or re.search(r"downsample_layers\.[123]\.0\.", name)
        )
        assert (id(parameter) in spared) == bool(norm), name


# --- what a user can put right ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(arch="convnextsmall"),
            "arch: there is no architecture 'convnextsmall'; similar names are convnext_small,",
        ),
        (dict(arch=50), "arch: there is no architecture 50"),
        (
            dict(depth=50, style="pytorch"),
            "has no argument depth, style: its arguments are arch, out_indices, frozen_stages,",
        ),
        (dict(out_indices=(0, 4)), r"out_indices: expected stages from 0 to 3 in ascending order, got \(0, 4\)"),
        (dict(out_indices=(3, 2)), "out_indices: .* in ascending order"),
        (dict(out_indices=()), "out_indices"),
        (dict(out_indices=3), "out_indices: .* got 3"),
        (dict(frozen_stages=5), r"frozen_stages: expected -1 \(none\), 0 \(the stem\) or 1 to 4, got 5"),
        (dict(out_indices=[1.0, 2.0]), "out_indices"),
        (dict(frozen_stages=None), "frozen_stages"),
        (dict(drop_path_rate=2), "drop_path_rate: expected a fraction from 0 to below 1, got 2"),
        (dict(drop_path_rate="0.1"), "drop_path_rate"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        build(**arguments)


@pytest.mark.parametrize(
    ("init_cfg", "message"),
    [
        (dict(type="Kaiming", layer="Conv2d"), "init_cfg: expected dict"),
        (dict(type="Pretrained"), "init_cfg: expected dict"),
        (dict(type="Pretrained", checkpoint="x.pth", strict=True), "init_cfg: expected dict"),
        ([dict(type="Pretrained", checkpoint="x.pth")], "init_cfg: expected dict"),
        (dict(type="Pretrained", checkpoint="torchvision://resnet50"), "resnet50.tv_in1k"),
        (dict(type="Pretrained", checkpoint="nothing.pth"), "no such file or folder: nothing.pth"),
        (dict(type="Pretrained", checkpoint="local-dir:/nowhere"), "no such file or folder: /nowhere"),
        (
            dict(type="Pretrained", checkpoint="convnext_atom"),
            "timm has no weights convnext_atom; similar names are convnext",
        ),
    ],
)
def test_wrong_init_cfg_is_named(init_cfg, message):
    with pytest.raises(UserError, match=message):
        build(init_cfg=init_cfg).init_weights()


def test_full_names_do_too():
    assert build("mim4d_convnext_atto").arch == build("convnext_atto").arch == "mim4d_convnext_atto"

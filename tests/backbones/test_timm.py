"""Every way in which timm lets a model be used, on each of our names beside timm's own model with the same weights.

timm's own tests run on our models too, as they are: in a checkout of timm's repository at the version installed,
``pytest -p mim4d tests/test_models.py -k mim4d_``. None is skipped; two need the Hub, for the authors' weights, and
``-k "mim4d_ and not uvtr"`` leaves them out.
"""

import dataclasses

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

import mim4d  # noqa: F401  # registers the encoders
from mim4d.errors import WeightsError
from tests.encoders import noise, shake

NAMES = timm.list_models("mim4d_*")
every_name = pytest.mark.parametrize("name", NAMES)
every_kind = pytest.mark.parametrize(
    "name", ["mim4d_convnext_atto", "mim4d_convnext_tiny", "mim4d_convnextv2_atto", "mim4d_resnet18", "mim4d_resnet50"]
)
"""One model of each kind of block."""
every_family = pytest.mark.parametrize("name", ["mim4d_convnext_atto", "mim4d_convnextv2_atto", "mim4d_resnet18"])
"""The smallest model of each family, for slow tests."""


def narrow(name):
    """Arguments that make a model small and keep its kind of blocks."""
    depths, widths = (1, 1, 2, 1), (8, 12, 16, 24)
    return dict(layers=depths, channels=widths) if "resnet" in name else dict(depths=depths, dims=widths)


def pair(name, **how):
    """mim4d's model and timm's, with the same parameters and running statistics."""
    how = {**narrow(name), **how}
    ours = shake(timm.create_model(name, **how))
    timms = timm.create_model(name.removeprefix("mim4d_"), **{"num_classes": 0, **how})
    timms.load_state_dict(ours.state_dict(), strict=True)
    return ours.eval(), timms.eval()


def leaves(outputs):
    """All tensors of an output of any structure."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [leaf for value in values for leaf in leaves(value)]


def same(ours, timms):
    """Compare bit for bit."""
    for a, b in zip(leaves(ours), leaves(timms), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


# --- timm's ----------------------------------------------------------------------------------------------------------


def test_all_families_are_registered():
    sizes = ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large")
    expected = {f"mim4d_convnext_{size}" for size in sizes} | {f"mim4d_convnextv2_{size}" for size in sizes[:-1]}
    assert set(NAMES) == expected | {f"mim4d_resnet{depth}" for depth in (18, 34, 50, 101)}
    assert all(timm.is_model(name.removeprefix("mim4d_")) for name in NAMES)


@every_name
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        {},
        dict(num_classes=7),
        dict(num_classes=7, drop_rate=0.5, drop_path_rate=0.3),
        dict(in_chans=1),
        dict(global_pool=""),
        dict(output_stride=16),
        dict(output_stride=8, features_only=True),
        dict(features_only=True),
        dict(features_only=True, out_indices=(1, 3)),
    ],
    ids=lambda how: "-".join(how) or "plain",
)
def test_outputs_gradients_and_statistics_equal_timms(name, training, how):
    results = []
    for model in pair(name, **how):
        model.train(training)
        torch.manual_seed(0)
        outputs = leaves(model(noise(2, how.get("in_chans", 3), 64, 96)))
        sum(x.square().sum() for x in outputs).backward()
        learnt = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([*outputs, *learnt, *model.buffers()])
    same(*results)


@every_name
def test_parts_of_the_forward_equal_timms(name):
    results = []
    for model in pair(name, num_classes=5):
        with torch.no_grad():
            features = model.forward_features(noise(2, 3, 64, 96))
            results.append(
                [
                    features,
                    model.forward_head(features),
                    model.forward_head(features, pre_logits=True),
                    model.forward_intermediates(noise(2, 3, 64, 96)),
                    model.forward_intermediates(noise(2, 3, 64, 96), indices=[0, 2], stop_early=True, norm=True),
                    model.forward_intermediates(noise(2, 3, 64, 96), indices=2, intermediates_only=True),
                ]
            )
    same(*results)


@every_name
def test_a_pruned_model_equals_timms(name):
    results = []
    for model in pair(name):
        kept = model.prune_intermediate_layers([1, 2])
        results.append((kept, model.forward_intermediates(noise(1, 3, 64, 64), indices=kept, intermediates_only=True)))
    assert results[0][0] == results[1][0]
    same(results[0][1], results[1][1])


@every_kind
@pytest.mark.parametrize("wrapper", ["list", "dict", "hook", "getter", "fx"])
def test_every_feature_wrapper_equals_timms(name, wrapper):
    ours, timms = pair(name, features_only=True, feature_cls=wrapper, out_indices=(1, 2, 3))
    assert ours.feature_info.channels() == timms.feature_info.channels()
    assert ours.feature_info.reduction() == timms.feature_info.reduction()
    same(ours(noise(1, 3, 64, 64)), timms(noise(1, 3, 64, 64)))


@every_name
def test_a_head_can_be_added_and_removed(name):
    ours, timms = pair(name)
    for classes, pool in ((5, "avg"), (0, "avg"), (3, "max")):
        for model in (ours, timms):
            model.reset_classifier(classes, pool)
        timms.load_state_dict(ours.state_dict(), strict=True)
        assert ours.num_classes == classes
        same(ours(noise(1, 3, 64, 64)), timms(noise(1, 3, 64, 64)))
    assert type(ours.get_classifier()) is type(timms.get_classifier())


@every_name
def test_layerwise_decay_groups_equal_timms(name):
    scales = []
    for model in pair(name, num_classes=4):
        for setting in (True, False):
            assert model.group_matcher(coarse=setting)
        names = {id(p): key for key, p in model.named_parameters()}
        groups = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.7).param_groups
        scales.append({names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]})
    assert scales[0] == scales[1]
    assert len({scale for scale, _ in scales[0].values()}) > 4


@every_kind
def test_checkpointing_changes_no_gradient(name):
    gradients = []
    for model in (*pair(name), pair(name)[0]):
        model.set_grad_checkpointing(len(gradients) < 2)
        model.train()(noise(2, 3, 64, 96)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    same(gradients[0], gradients[1])
    same(gradients[0], gradients[2])


# --- configs and tags ------------------------------------------------------------------------------------------------


@every_name
def test_the_config_is_complete_and_matches_the_model(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    config = model.pretrained_cfg
    assert config["architecture"] == name
    assert model.num_classes == config["num_classes"] == 0
    assert isinstance(model.get_submodule(config["first_conv"]), nn.Conv2d)
    assert model.get_submodule(config["classifier"]) is model.get_classifier()
    data = timm.data.resolve_data_config({}, model=model)
    assert (data["input_size"], data["crop_pct"], data["interpolation"]) == (config["input_size"], 1.0, "bicubic")
    assert tuple(32 * side for side in config["pool_size"]) == config["input_size"][1:]
    assert (data["mean"], data["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert timm.data.resolve_data_config({"input_size": (3, 96, 96)}, model=model)["input_size"] == (3, 96, 96)
    assert timm.get_pretrained_cfg(name, allow_unregistered=False).license == "apache-2.0"


@every_kind
def test_configs_can_be_passed_and_overlaid(name):
    for how in ({}, dict(features_only=True)):
        made = timm.create_model(name, **narrow(name), pretrained_cfg_overlay=dict(mean=(0.5, 0.5, 0.5)), **how)
        assert made.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
        assert made.pretrained_cfg["input_size"] == timm.get_pretrained_cfg(name).input_size
    config = dataclasses.replace(timm.get_pretrained_cfg(name), num_classes=9, input_size=(3, 32, 64))
    made = timm.create_model(name, **narrow(name), pretrained_cfg=config)
    assert (made.num_classes, made.pretrained_cfg["input_size"]) == (9, (3, 32, 64))


def test_tags_equal_timms():
    assert "mim4d_convnext_small.uvtr_nuscenes" in timm.list_models("mim4d_*", pretrained=True)
    with torch.device("meta"):
        model = timm.create_model("mim4d_convnext_small.uvtr_nuscenes")
        assert model.pretrained_cfg["tag"] == "uvtr_nuscenes"
        assert model.pretrained_cfg["input_size"] == (3, 480, 800)
        assert timm.create_model("mim4d_convnext_atto").pretrained_cfg["tag"] == "demo"
        with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
            timm.create_model("mim4d_resnet18.nobody")
        with pytest.raises(WeightsError, match="there are no weights for mim4d_resnet34 without a tag"):
            timm.create_model("mim4d_resnet34", pretrained=True)


# --- torch's ---------------------------------------------------------------------------------------------------------


@every_family
def test_export(name):
    model, images = pair(name)[0], noise(2, 3, 64, 96)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        for n in (2, 3):
            torch.testing.assert_close(exported(noise(n, 3, 64, 96)), model(noise(n, 3, 64, 96)))


@every_family
def test_onnx(name, tmp_path):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnx and onnxscript (pip install mim4d[dev])")
    from onnx.reference import ReferenceEvaluator

    if name.startswith("mim4d_resnet") and torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 cannot export a batch norm with this onnxscript: export with a newer torch")
    model, images = pair(name)[0], noise(1, 3, 64, 64)
    file = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (images,), file, dynamo=True, verbose=False)
    (found,) = ReferenceEvaluator(file).run(None, {"x": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(images), rtol=1e-4, atol=1e-4)


@every_kind
@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript(name, how):
    with timm.layers.set_scriptable(True):
        model = pair(name)[0]
    images = noise(2, 3, 64, 96)
    compiled = torch.jit.script(model) if how == "script" else torch.jit.trace(model, images)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))


@every_family
def test_compile(name):
    ours, timms = pair(name)
    compiled = torch.compile(ours.train(), backend="aot_eager", fullgraph=True)
    images = noise(2, 3, 64, 96)
    for model in (compiled, timms.train()):
        model(images).square().sum().backward()
    close = dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close([p.grad for p in ours.parameters()], [p.grad for p in timms.parameters()], **close)
    torch.testing.assert_close(list(ours.buffers()), list(timms.buffers()), **close)


@every_kind
def test_channels_last(name):
    ours, timms = pair(name, global_pool="")
    images = noise(2, 3, 64, 96)
    for model in (ours, timms):
        model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        outputs = [model(images.to(memory_format=torch.channels_last)) for model in (ours, timms)]
        visible = torch.ones(2, 2, 3, dtype=torch.bool)
        masked = ours.forward_masked(images.to(memory_format=torch.channels_last), visible)[-1]
        maps = ours.forward_intermediates(images, intermediates_only=True)
    same(*outputs)
    assert outputs[0].stride() == outputs[1].stride()
    torch.testing.assert_close(masked, maps[-1])


@every_kind
def test_bf16(name):
    results = []
    for model in pair(name, num_classes=4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(noise(2, 3, 64, 96))
        results.append([mixed, model.bfloat16()(noise(2, 3, 64, 96).bfloat16())])
    same(*results)
    assert all(x.dtype == torch.bfloat16 for x in results[0])
    made = timm.create_model(name, **narrow(name), dtype=torch.bfloat16)
    assert all(x.dtype == torch.bfloat16 for x in made.parameters())

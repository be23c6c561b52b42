"""Learning rates per parameter, against lists made by hand."""

import pytest
from torch import nn

from mim4d.backbones.pyramid import make_backbone, parts_of, trained_parameters
from mim4d.optim import OptimConfig, make_optimizer

LAYERS = {
    "mim4d_convnext_atto": [
        ("stem",),
        ("stages.0.blocks.0", "stages.0.downsample"),
        ("stages.0.blocks.1",),
        ("stages.1.blocks.0", "stages.1.downsample"),
        ("stages.1.blocks.1",),
        ("stages.2.blocks.0", "stages.2.downsample"),
        *((f"stages.2.blocks.{block}",) for block in range(1, 6)),
        ("stages.3.blocks.0", "stages.3.downsample"),
        ("stages.3.blocks.1",),
    ],
    "resnet18": [
        ("conv1", "bn1"),
        *((f"layer{stage}.{block}",) for stage in (1, 2, 3, 4) for block in (0, 1)),
    ],
    "tf_efficientnet_lite0": [
        ("conv_stem", "bn1"),
        *((f"blocks.{stage}.{block}",) for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(depth)),
    ],
    "vit_tiny_patch16_224": [
        ("cls_token", "pos_embed", "patch_embed"),
        *((f"blocks.{block}",) for block in range(11)),
        ("blocks.11", "norm"),
    ],
}
"""Modules and parameters that share a learning rate, from the stem to the deepest layer."""


def rates(name: str, config: OptimConfig, frozen: int = 0) -> dict[str, float]:
    """The peak learning rate of each trained parameter of a backbone in pretraining, by name."""
    encoder = make_backbone(name)
    trained = trained_parameters(encoder)
    for parameter_name, parameter in encoder.named_parameters():
        parameter.requires_grad_(parameter_name in trained)
    for part in parts_of(encoder)[:frozen]:
        part.freeze()
    model = nn.ModuleDict({"encoder": encoder, "neck": nn.Linear(2, 2)})
    names = {parameter: parameter_name for parameter_name, parameter in model.named_parameters()}
    groups = make_optimizer(model, config).param_groups
    return {names[parameter]: group["peak"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_learns_at_a_fixed_fraction_of_the_next_deeper_ones_rate(name):
    found = rates(name, OptimConfig(lr=1.0, backbone_scale=0.1, stem_scale=0.01))
    assert (found.pop("neck.weight"), found.pop("neck.bias")) == (1.0, 1.0)
    layers = LAYERS[name]
    for parameter, rate in found.items():
        own = parameter.removeprefix("encoder.") + "."
        (depth,) = [d for d, modules in enumerate(layers) if own.startswith(tuple(f"{module}." for module in modules))]
        assert rate == pytest.approx(0.1 * 0.01 ** (1 - depth / (len(layers) - 1))), parameter
    assert len({round(rate, 12) for rate in found.values()}) == len(layers)


def test_without_decay_all_layers_learn_at_the_same_rate():
    found = rates("resnet18", OptimConfig(lr=1.0, backbone_scale=0.1))
    assert {rate for name, rate in found.items() if name.startswith("encoder.")} == {0.1}


def test_frozen_layers_are_left_out_and_change_no_rate():
    config = OptimConfig(lr=1.0, stem_scale=0.1)
    whole, rest = rates("resnet18", config), rates("resnet18", config, frozen=2)
    left_out = {name.removeprefix("encoder.").partition(".")[0] for name in whole.keys() - rest.keys()}
    assert left_out == {"conv1", "bn1", "layer1"}
    assert rest == {name: rate for name, rate in whole.items() if name in rest}


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_a_scale_out_of_range_is_refused(scale):
    with pytest.raises(ValueError, match=rf"optim.stem_scale = {scale} must lie in 1e-06 .. 1"):
        OptimConfig(stem_scale=scale)

"""MIM4DConvNeXt: exactly timm's ConvNeXt, and a masked forward that is submanifold convolution."""

import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.convnext import ConvNeXt

from mim4d import MIM4DEncoder
from mim4d.backbones import convnext
from mim4d.backbones.convnext import MIM4DConvNeXt, masked_block
from mim4d.backbones.encoder import patch_indices
from mim4d.hub.names import to_openmmlab_names, to_timm_names
from tests.encoders import at_sites, close, gradient, masks, noise, pixels, shake, some_mask
from tests.reference.masked_convnext import masked_convnext

NAMES = (
    *(f"convnext_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large")),
    *(f"convnextv2_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base")),
)
"""Names of the same models in timm."""
SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 12, 16, 24))
KINDS = ("convnext_atto", "convnext_tiny", "convnextv2_atto", "convnextv2_tiny")
"""``atto`` has its MLPs as 1x1 convolutions, ``tiny`` as linear layers; V2 has a response norm in them."""


def small(kind="convnext_atto", **changes) -> MIM4DEncoder:
    """A narrow encoder."""
    return shake(timm.create_model(f"mim4d_{kind}", **SMALL, **changes)).eval()


# --- dense use -------------------------------------------------------------------------------------------------------


def test_timm_lists_every_size():
    assert set(timm.list_models("mim4d_convnext*")) == {f"mim4d_{name}" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_shapes_equal_timms(name):
    with torch.device("meta"):
        ours = timm.create_model(f"mim4d_{name}")
        timms = timm.create_model(name, num_classes=0)
    assert isinstance(ours, MIM4DEncoder)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [(k, v.shape) for k, v in timms.state_dict().items()]
    assert ours.feature_info == timms.feature_info


@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_timms(name):
    """All models of this test share their tensors, so that the largest need memory once."""
    ours = shake(timm.create_model(f"mim4d_{name}", drop_path_rate=0.2))
    with torch.device("meta"):
        timms = timm.create_model(name, num_classes=0, drop_path_rate=0.2)
        nets = [timm.create_model(n, features_only=True, drop_path_rate=0.2) for n in (f"mim4d_{name}", name)]
    timms.load_state_dict(ours.state_dict(), strict=True, assign=True)
    body = [tensor for key, tensor in ours.state_dict().items() if not key.startswith("head.")]
    for net in nets:
        net.load_state_dict(dict(zip(net.state_dict(), body, strict=True)), strict=True, assign=True)
    assert nets[0].state_dict().keys() == nets[1].state_dict().keys()
    assert nets[0].feature_info.channels() == nets[1].feature_info.channels()
    assert nets[0].feature_info.reduction() == [4, 8, 16, 32]

    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        for training in (True, False):
            results = []
            for model in (ours, timms, *nets):
                torch.manual_seed(0)
                maps = model.train(training)(images)
                results.append(maps if isinstance(maps, list) else [maps])
            for a, b in ((0, 1), (2, 3)):
                assert all(torch.equal(x, y) for x, y in zip(results[a], results[b], strict=True))
            assert results[0][0].abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64, 96), (50, 70)])
def test_features_only_equals_timms(kind, shape):
    ours = shake(timm.create_model(f"mim4d_{kind}", features_only=True, **SMALL)).eval()
    timms = timm.create_model(kind, features_only=True, **SMALL).eval()
    timms.load_state_dict(ours.state_dict(), strict=True)
    images = noise(2, 3, *shape)
    with torch.no_grad():
        for a, b in zip(ours(images), timms(images), strict=True):
            assert torch.equal(a, b)


def test_a_classifier_can_be_requested():
    model = timm.create_model("mim4d_convnext_atto", num_classes=7).eval()
    with torch.no_grad():
        assert model(noise(1, 3, 64, 64)).shape == (1, 7)


def test_the_model_matches_its_declared_config():
    model = timm.create_model("mim4d_convnextv2_atto").eval()
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 256, 704)
    with torch.no_grad():
        assert (
            model.forward_features(torch.zeros(1, *config["input_size"])).shape[-2:]
            == model.pretrained_cfg["pool_size"]
        )


@pytest.mark.parametrize("release", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_openmmlabs_names_convert_back(kind, release):
    model = small(kind)
    theirs = to_openmmlab_names(model.state_dict(), prefix="backbone.", release=release)
    ours = to_timm_names(theirs, model, "test")
    assert ours.keys() == model.state_dict().keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())


# --- the masked forward ----------------------------------------------------------------------------------------------


def check_against_reference(model, images, visible, tolerance=1e-5):
    """Values and gradients, by parameters and pixels, of a random weighting of all outputs."""
    model = copy.deepcopy(model)
    images = images.clone().requires_grad_()
    maps = model.forward_masked(images, visible)
    loss = sum((m * noise(*m.shape, seed=i)).sum() for i, m in enumerate(maps))
    loss.backward()

    twins = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    images64 = images.detach().double().requires_grad_()
    expected = masked_convnext(twins, images64, visible)
    loss64 = sum((m * noise(*m.shape, seed=i).double()).sum() for i, m in enumerate(expected))
    loss64.backward()

    for stage, (got, want) in enumerate(zip(maps, expected, strict=True)):
        close(got, want, tolerance, f"stage {stage}")
    close(gradient(images), gradient(images64), 10 * tolerance, "pixels")
    for name, parameter in model.named_parameters():
        close(gradient(parameter), gradient(twins[name]), 10 * tolerance, name)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_equals_the_reference(kind):
    visible = torch.tensor([[[1, 0, 1], [1, 1, 0]], [[0, 0, 0], [0, 1, 0]]]).bool()
    check_against_reference(small(kind), noise(2, 3, 64, 96), visible)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(visible=masks(2, 2, 2), seed=st.integers(0, 1000))
def test_masked_equals_the_reference_for_any_mask(kind, visible, seed):
    check_against_reference(small(kind), noise(2, 3, 64, 64, seed=seed), visible)


@pytest.mark.parametrize("kind", KINDS)
def test_all_visible_equals_dense(kind):
    model, images = small(kind), noise(2, 3, 96, 64)
    with torch.no_grad():
        masked = model.forward_masked(images, torch.ones(2, 3, 2, dtype=torch.bool))
        dense = model.forward_intermediates(images, intermediates_only=True)
    for a, b in zip(masked, dense, strict=True):
        close(a, b.double(), 1e-6, "dense")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30, 0.0])
def test_hidden_pixels_change_nothing_at_all(kind, junk):
    images, visible = noise(3, 3, 96, 128), some_mask(3, 3, 4)
    results = []
    for seen in (images, torch.where(pixels(visible), images, junk)):
        model = small(kind)
        maps = model.forward_masked(seen, visible)
        sum(m.square().sum() for m in maps).backward()
        results.append([*maps, *(gradient(p) for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(visible=masks(2, 2, 3), seed=st.integers(0, 1000))
def test_hidden_pixels_get_no_gradient_and_hidden_sites_are_exactly_zero(visible, seed):
    model, images = small(), noise(2, 3, 64, 96, seed=seed).requires_grad_()
    maps = model.forward_masked(images, visible)
    sum(m.square().sum() for m in maps).backward()
    assert images.grad[~pixels(visible).expand_as(images)].eq(0).all()
    for m in maps:
        sites = at_sites(visible, m)
        assert m[~sites].eq(0).all()
        assert m[sites].ne(0).any(dim=-1).all() if sites.any() else m.eq(0).all()


def test_visible_patches_depend_on_their_visible_neighbours():
    model, images = small(), noise(1, 3, 64, 64)
    both = torch.tensor([[[True, True], [False, False]]])
    alone = torch.tensor([[[True, False], [False, False]]])
    with torch.no_grad():
        apart = [
            a[..., 0, 0] - b[..., 0, 0]
            for a, b in zip(*(model.forward_masked(images, v) for v in (both, alone)), strict=True)
        ]
    assert apart[-1].abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["convnext_atto", "convnextv2_tiny"])
def test_images_of_a_batch_do_not_mix(kind):
    model, images, visible = small(kind), noise(3, 3, 64, 96), some_mask(3, 2, 3, seed=3)
    with torch.no_grad():
        together = model.forward_masked(images, visible)
        for n in range(3):
            for a, b in zip(together, model.forward_masked(images[n : n + 1], visible[n : n + 1]), strict=True):
                torch.testing.assert_close(a[n : n + 1], b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_the_same_without_onednn_and_for_channels_last(kind, monkeypatch):
    model, images, visible = small(kind), noise(2, 3, 64, 96), some_mask(2, 2, 3)
    expected = model.forward_masked(images, visible)
    model = model.to(memory_format=torch.channels_last)
    monkeypatch.setattr(convnext, "_ONEDNN", False)
    for a, b in zip(
        model.forward_masked(images.contiguous(memory_format=torch.channels_last), visible), expected, strict=True
    ):
        close(a, b.double(), 1e-6, "channels last")


def test_a_block_compiles_to_one_graph():
    block, visible = small("convnextv2_atto").stages[3].blocks[0], some_mask(2, 2, 3)
    patches = patch_indices(visible)
    results = []
    for run in (masked_block, torch.compile(masked_block, backend="eager", fullgraph=True)):
        x = noise(len(patches.image), 1, 1, 24).requires_grad_()
        y = run(block, x, patches, visible.shape)
        y.square().sum().backward()
        results.append([y, x.grad])
    for a, b in zip(*results, strict=True):
        close(a, b.double(), 1e-6, "compiled")


def test_strides_and_widths():
    maps = small().forward_masked(noise(1, 3, 128, 96), some_mask(1, 4, 3))
    assert [tuple(m.shape) for m in maps] == [(1, 8, 32, 24), (1, 12, 16, 12), (1, 16, 8, 6), (1, 24, 4, 3)]


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        ((2, 3, 64, 96), (2, 3, 3), r"expected \[2, 2, 3\] \(images are 64 x 96, a patch is 32 px\), got \[2, 3, 3\]"),
        ((2, 3, 64, 96), (1, 2, 3), r"expected \[2, 2, 3\] .* got \[1, 2, 3\]"),
        ((2, 3, 64, 96), (2, 1, 2, 3), r"expected \[2, 2, 3\] .* got \[2, 1, 2, 3\]"),
        ((2, 3, 64, 96), (2, 16, 24), r"got \[2, 16, 24\]"),
        ((2, 3, 64, 80), (2, 2, 2), r"64 x 80"),
        ((2, 3, 33, 64), (2, 1, 2), r"33 x 64"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(image, mask, message):
    with pytest.raises(ValueError, match=message):
        small().forward_masked(torch.zeros(image), torch.ones(mask, dtype=torch.bool))


@pytest.mark.parametrize(
    "arguments",
    [
        dict(stem_type="overlap"),
        dict(stem_type="overlap_tiered"),
        dict(output_stride=16),
        dict(patch_size=8),
        dict(patch_size=2, output_stride=8),
        dict(norm_layer="groupnorm1"),
        dict(norm_layer="batchnorm2d"),
    ],
)
def test_models_whose_patches_overlap_are_refused(arguments):
    model = small(**arguments)
    with pytest.raises(ValueError, match="forward_masked"):
        model.forward_masked(noise(1, 3, 64, 64), torch.ones(1, 2, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    "arguments",
    [
        dict(patch_size=2),
        dict(kernel_sizes=5),
        dict(ls_init_value=None),
        dict(conv_bias=False),
        dict(norm_layer="rmsnorm2d"),
    ],
)
def test_other_variants_work(arguments):
    model, images = small(**arguments), noise(1, 3, 64, 64)
    with torch.no_grad():
        masked = model.forward_masked(images, torch.ones(1, 2, 2, dtype=torch.bool))
        dense = model.forward_intermediates(images, intermediates_only=True)
    for a, b in zip(masked, dense, strict=True):
        close(a, b.double(), 1e-6, "dense")


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_drop_path_drops_whole_blocks_and_keeps_hidden_sites_zero(kind):
    model = small(kind, drop_path_rate=0.9).train()
    images, visible = noise(4, 3, 64, 64), some_mask(4, 2, 2, seed=1)
    torch.manual_seed(0)
    first = model.forward_masked(images, visible)
    second = model.forward_masked(images, visible)
    assert not torch.equal(first[-1], second[-1])
    for m in first:
        assert m.isfinite().all()
        assert m[~at_sites(visible, m)].eq(0).all()
    first[-1].sum().backward()
    with torch.no_grad():
        still = model.eval().forward_masked(images, visible)
        assert torch.equal(still[-1], small(kind).forward_masked(images, visible)[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_gives_the_same_gradients(kind):
    images, visible = noise(2, 3, 64, 64), some_mask(2, 2, 2)
    gradients = []
    for checkpointing in (False, True):
        model = small(kind, drop_path_rate=0.3).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(5)
        sum(m.square().mean() for m in model.forward_masked(images, visible)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 40
    for name in gradients[0]:
        assert torch.equal(gradients[0][name], gradients[1][name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast(kind):
    model, images, visible = small(kind), noise(2, 3, 64, 96), some_mask(2, 2, 3)
    exact = model.forward_masked(images, visible)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.forward_masked(images, visible)
        nothing = model.forward_masked(images, torch.zeros_like(visible))
    sum(m.float().square().mean() for m in rough).backward()
    assert all(p.grad.isfinite().all() for name, p in model.named_parameters() if not name.startswith("head."))
    for a, b in zip(exact, rough, strict=True):
        assert b[~at_sites(visible, b)].eq(0).all()
        close(b.float(), a.double(), 0.05, "bf16")
    assert all(m.eq(0).all() for m in nothing)


def test_no_visible_patch():
    model = small()
    maps = model.forward_masked(noise(1, 3, 64, 64), torch.zeros(1, 2, 2, dtype=torch.bool))
    sum(m.sum() for m in maps).backward()
    assert all(m.eq(0).all() for m in maps)
    assert all(p.grad.eq(0).all() for p in model.parameters() if p.grad is not None)


def test_it_is_timms_class():
    """So isinstance checks and weight filters that were written for timm's ConvNeXt work."""
    assert issubclass(MIM4DConvNeXt, ConvNeXt)

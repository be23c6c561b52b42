"""MIM4DResNet: exactly timm's ResNet, and a masked forward whose BatchNorm uses visible sites alone."""

import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from timm.models.resnet import ResNet

from mim4d import MIM4DEncoder
from mim4d.backbones.resnet import MIM4DResNet
from tests.encoders import at_sites, close, gradient, masks, noise, pixels, shake, some_mask
from tests.reference.masked_resnet import MaskedResNet

SIZES = (18, 34, 50, 101)
SMALL = dict(layers=(1, 1, 2, 1), channels=(8, 12, 16, 24))
BLOCKS = pytest.mark.parametrize("size", [18, 50])  # basic blocks, bottlenecks
ALL = torch.ones(2, 2, 3, dtype=torch.bool)
STAGES = [1, 2, 3, 4]  # of the five maps of timm's ResNet; 0 is the stem


def small(size=18, **changes) -> MIM4DResNet:
    """A narrow encoder, in evaluation mode."""
    return shake(timm.create_model(f"mim4d_resnet{size}", **{**SMALL, **changes})).eval()


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


# --- dense use -------------------------------------------------------------------------------------------------------


def test_timm_lists_and_creates_every_size():
    assert set(timm.list_models("mim4d_resnet*")) == {f"mim4d_resnet{size}" for size in SIZES}
    with torch.device("meta"):
        for size in SIZES:
            model = timm.create_model(f"mim4d_resnet{size}")
            assert isinstance(model, MIM4DEncoder)
            assert isinstance(model, ResNet)


@pytest.mark.parametrize("size", SIZES)
def test_keys_and_shapes_equal_timms(size):
    with torch.device("meta"):
        ours = timm.create_model(f"mim4d_resnet{size}")
        timms = timm.create_model(f"resnet{size}", num_classes=0)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [(k, v.shape) for k, v in timms.state_dict().items()]
    assert ours.feature_info == timms.feature_info


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("training", [False, True])
def test_dense_outputs_equal_timms(size, training):
    ours = small(size, drop_path_rate=0.2).train(training)
    timms = timm.create_model(f"resnet{size}", num_classes=0, drop_path_rate=0.2, **SMALL).train(training)
    timms.load_state_dict(ours.state_dict(), strict=True)
    images, results = noise(2, 3, 64, 96), []
    for model in (ours, timms):
        torch.manual_seed(0)
        model(images).square().sum().backward()
        with torch.no_grad():
            maps = model.forward_intermediates(images, intermediates_only=True)
        results.append([*maps, *model.state_dict().values(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape", [(64, 96), (50, 70)])
@BLOCKS
def test_features_only_equals_timms(size, shape):
    ours = shake(timm.create_model(f"mim4d_resnet{size}", features_only=True, **SMALL)).eval()
    timms = timm.create_model(f"resnet{size}", features_only=True, **SMALL).eval()
    timms.load_state_dict(ours.state_dict(), strict=True)
    assert ours.feature_info.channels() == timms.feature_info.channels()
    assert ours.feature_info.reduction() == [2, 4, 8, 16, 32]
    images = noise(2, 3, *shape)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(ours(images), timms(images), strict=True))


# --- the masked forward ----------------------------------------------------------------------------------------------


def check_against_reference(model, images, visible, tolerance=1e-5):
    """Values, gradients by parameters and pixels of a random weighting of all outputs, and running statistics."""
    model, images = copy.deepcopy(model), images.clone().requires_grad_()
    state = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
    twins = {name: state[name].requires_grad_() for name, _ in model.named_parameters()}
    images64 = images.detach().double().requires_grad_()
    reference = MaskedResNet(state, visible, model.training)
    expected = reference(images64)
    maps = model.forward_masked(images, visible)
    for stage, (got, want) in enumerate(zip(maps, expected, strict=True)):
        close(got, want, tolerance, f"stage {stage}")
    for results in (maps, expected):
        sum((m * noise(*m.shape, seed=i).to(m.dtype)).sum() for i, m in enumerate(results)).backward()
    close(gradient(images), gradient(images64), 10 * tolerance, "pixels")
    for name, parameter in model.named_parameters():
        close(gradient(parameter), gradient(twins[name]), 10 * tolerance, name)
    for name, buffer in model.named_buffers():
        norm = name.rpartition(".")[0]
        counted = f"{norm}.running_mean" in reference.statistics
        want = state[name] + counted if name.endswith("tracked") else reference.statistics.get(name, state[name])
        close(buffer, want, tolerance, name)


@BLOCKS
def test_masked_equals_the_reference(size):
    visible = torch.tensor([[[1, 0, 1], [1, 1, 0]], [[0, 0, 0], [0, 1, 0]]]).bool()
    check_against_reference(small(size), noise(2, 3, 64, 96), visible)


@BLOCKS
@settings(max_examples=8, deadline=None, derandomize=True)
@given(visible=masks(2, 2, 2))
def test_masked_equals_the_reference_for_any_mask(size, visible):
    check_against_reference(small(size), noise(2, 3, 64, 64), visible)


@BLOCKS
@settings(max_examples=8, deadline=None, derandomize=True)
@given(visible=masks(2, 2, 2))
def test_masked_training_equals_the_reference_for_any_mask(size, visible):
    """In float64, because the norm of a few sites divides by their small differences and amplifies rounding."""
    check_against_reference(small(size).double().train(), noise(2, 3, 64, 64).double(), visible, tolerance=1e-10)


@pytest.mark.parametrize("training", [False, True])
@BLOCKS
def test_all_visible_equals_dense(size, training):
    """To the last bit of float64, including running statistics and the draws of stochastic depth."""
    images, results = noise(2, 3, 64, 96).double(), []
    for masked in (True, False):
        model = small(size, drop_path_rate=0.5).double().train(training)
        torch.manual_seed(3)
        with torch.no_grad():
            dense = (
                model.forward_masked(images, ALL) if masked else model.forward_intermediates(images, [1, 2, 3, 4])[1]
            )
        results.append([*dense, *statistics(model).values()])
    for a, b in zip(*results, strict=True):
        close(a, b, 1e-12, "dense")


@pytest.mark.parametrize("act_layer", ["relu", "gelu"])
@BLOCKS
def test_a_single_visible_patch_equals_an_image_of_its_own(size, act_layer):
    """Convolutions and pooling ignore hidden neighbours; with GELU the pooled values can be negative."""
    model, images = small(size, act_layer=act_layer), noise(1, 3, 96, 96)
    visible = torch.zeros(1, 3, 3, dtype=torch.bool)
    visible[0, 1, 2] = True
    with torch.no_grad():
        masked = model.forward_masked(images, visible)
        alone = model.forward_intermediates(images[..., 32:64, 64:], STAGES, intermediates_only=True)
    for a, b in zip(masked, alone, strict=True):
        side = b.shape[-1]
        close(a[..., side : 2 * side, 2 * side :], b.double(), 1e-6, "patch")


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30, 0.0])
@BLOCKS
def test_hidden_pixels_change_nothing_at_all(size, junk):
    images, visible = noise(3, 3, 64, 96), some_mask(3, 2, 3)
    results = []
    for seen in (images, torch.where(pixels(visible), images, junk)):
        model = small(size).train()
        maps = model.forward_masked(seen, visible)
        sum(m.square().sum() for m in maps).backward()
        results.append([*maps, *(gradient(p) for p in model.parameters()), *model.buffers()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@BLOCKS
def test_hidden_pixels_get_no_gradient_and_hidden_sites_are_exactly_zero(size):
    images, visible = noise(3, 3, 64, 96).requires_grad_(), some_mask(3, 2, 3, seed=2)
    maps = small(size).train().forward_masked(images, visible)
    sum(m.square().sum() for m in maps).backward()
    assert images.grad[~pixels(visible).expand_as(images)].eq(0).all()
    assert images.grad[pixels(visible).expand_as(images)].ne(0).any()
    for m in maps:
        assert m[~at_sites(visible, m)].eq(0).all()
        assert m[at_sites(visible, m)].ne(0).any()


def test_strides_and_widths():
    maps = small(50).forward_masked(noise(1, 3, 128, 96), some_mask(1, 4, 3))
    assert [tuple(m.shape) for m in maps] == [(1, 32, 32, 24), (1, 48, 16, 12), (1, 64, 8, 6), (1, 96, 4, 3)]
    assert small(50).widths() == [32, 48, 64, 96]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"expected \[2, 2, 3\] \(images are 64 x 96, a patch is 32 px\), got \[2, 3, 3\]"
    ):
        small().forward_masked(noise(2, 3, 64, 96), torch.ones(2, 3, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    "arguments",
    [
        dict(stem_type="deep", stem_width=32),
        dict(output_stride=16),
        dict(avg_down=True),
        dict(aa_layer=torch.nn.AvgPool2d),
        dict(norm_layer="groupnorm"),
        dict(block_args=dict(attn_layer="se")),
        dict(replace_stem_pool=True),
        dict(drop_block_rate=0.1),
    ],
)
def test_unknown_variants_are_refused(arguments):
    with pytest.raises(ValueError, match="forward_masked"):
        small(**{**arguments, "channels": (32, 32, 32, 32)}).forward_masked(noise(2, 3, 64, 96), ALL)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [0, 1])
@BLOCKS
def test_too_few_sites_for_a_variance_do_not_change_running_statistics(size, shown):
    """No visible patch, or one: a single site of the last stage."""
    model = small(size).train()
    before = statistics(model)
    visible = torch.zeros(2, 2, 3, dtype=torch.bool)
    visible.view(-1)[:shown] = True
    maps = model.forward_masked(noise(2, 3, 64, 96), visible)
    sum(m.square().sum() for m in maps).backward()
    untouched = [torch.equal(before[name], value) for name, value in statistics(model).items()]
    assert all(untouched) if not shown else any(untouched) and not all(untouched)
    assert all(torch.equal(before[n], v) for n, v in statistics(model).items() if n.startswith("layer4.0.bn2"))
    assert all(m.isfinite().all() and (m.ne(0).any() if shown else m.eq(0).all()) for m in maps)
    assert all(p.grad.isfinite().all() for p in model.parameters())  # none is missing: other processes wait for them


@pytest.mark.parametrize("checkpointing", [False, True])
@BLOCKS
def test_groups_of_images_are_normalised_as_if_alone(size, checkpointing):
    """Maps, gradients and running statistics; the latter move once, towards the mean over the groups."""
    images = noise(6, 3, 64, 96).double()
    visible = torch.tensor([[[1, 0, 1], [1, 1, 0]], [[0, 0, 1], [1, 1, 1]]]).bool().repeat(3, 1, 1)
    results = []
    for groups in ([images], images.split(2)):
        model = small(size).double().train()
        model.set_grad_checkpointing(checkpointing)
        before, own, maps = statistics(model), [], []
        for group in groups:
            model.load_state_dict(before, strict=False)
            maps.append(model.forward_masked(group, visible[: len(group)], num_visible=4, norm_group=2))
            sum(m.square().sum() for m in maps[-1]).backward()
            own.append(statistics(model))
        averaged = [torch.stack([group[name].double() for group in own]).mean(0) for name in before]
        results.append([*map(torch.cat, zip(*maps, strict=True)), *averaged, *map(gradient, model.parameters())])
        assert all(own[0][name] == before[name] + 1 for name in before if name.endswith("tracked"))
    for a, b in zip(*results, strict=True):
        close(a, b, 1e-11, "groups")


@pytest.mark.parametrize("arguments", [dict(norm_group=2), dict(norm_group=4, num_visible=6)])
def test_groups_that_do_not_fit_are_refused(arguments):
    with pytest.raises(ValueError, match=r"norm_group: expected a divisor of the 6 images, together with num_visible"):
        small().forward_masked(noise(6, 3, 64, 96), torch.ones(6, 2, 3, dtype=torch.bool), **arguments)


def test_drop_path_drops_whole_images():
    """The sites of half-hidden images follow the draw of their own image."""
    model = small(18, layers=(1, 1, 1, 1), drop_path_rate=0.6)
    images, visible = noise(6, 3, 64, 64), some_mask(6, 2, 2, seed=4)
    with torch.no_grad():
        whole = model.forward_masked(images, visible)[-1]
        model.layer4[0].bn2.weight.zero_()
        model.layer4[0].bn2.bias.zero_()
        without = model.forward_masked(images, visible)[-1]  # layer 4 is its shortcut alone
        model = small(18, layers=(1, 1, 1, 1), drop_path_rate=0.6)
        for block in (model.layer1, model.layer2, model.layer3):
            block[0].drop_path = None
        model.layer4[0].drop_path.train().scale_by_keep = False
        torch.manual_seed(1)
        dropped = model.forward_masked(images, visible)[-1]
    fate = [(torch.equal(d, a), torch.equal(d, b)) for d, a, b in zip(dropped, whole, without, strict=True)]
    assert set(fate) >= {(True, False), (False, True)}
    assert all(any(f) for f in fate)


@BLOCKS
def test_checkpointing_gives_the_same_gradients(size):
    images, visible, gradients = noise(2, 3, 64, 96), some_mask(2, 2, 3), []
    for checkpointing in (False, True):
        model = small(size, drop_path_rate=0.3).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(5)
        sum(m.square().mean() for m in model.forward_masked(images, visible)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient_ in gradients[0].items():
        assert torch.equal(gradient_, gradients[1][name]), name


@BLOCKS
def test_bf16_autocast(size):
    images, visible = noise(2, 3, 64, 96), some_mask(2, 2, 3)
    exact = small(size).forward_masked(images, visible)
    model = small(size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.forward_masked(images, visible)
        nothing = model.train().forward_masked(images, torch.zeros_like(visible))
    sum(m.float().square().mean() for m in rough).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(m.eq(0).all() for m in nothing)
    for a, b in zip(exact, rough, strict=True):
        assert (a - b.float()).abs().max() < 0.1 * a.abs().max()

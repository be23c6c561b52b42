"""The masked forward of any timm model: against crops, attention masks and our own fast paths, and by perturbation."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import timm
import torch
from torch import Tensor, nn

import mim4d
from benchmarks.backbones import check, randomise
from mim4d.backbones import NoMaskedForwardError
from mim4d.backbones.masked import dense_maps

CNNS = [
    "test_byobnet",
    "test_convnext",
    "test_efficientnet",
    "test_nfnet",
    "test_resnet",
    "convnextv2_atto",
    "dla46_c",
    "ese_vovnet19b_dw",
    "ghostnet_050",
    "hrnet_w18_small",
    "mobileone_s0",
    "poolformer_s12",
    "regnety_002",
    "skresnet18",
    "tf_efficientnet_lite0",
]
"""Models with all kinds of convolutions, poolings, norms, pooled gates, splits and pyramids."""
VITS = ["test_vit", "test_vit2", "test_vit3", "test_vit4"]
"""Models with class tokens, register tokens or neither; average and map pooling."""


@pytest.mark.parametrize("name", [*CNNS, *VITS])
def test_hidden_pixels_have_no_influence_on_visible_features(name):
    """Features and gradients, in training and evaluation; all visible equals timm; and against a reference."""
    result = check(name)
    assert result["status"] == "works", result["why"]
    assert result["reference"] < 1e-5


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit_small_patch14_reg4_dinov2", dict(img_size=56, embed_dim=48, num_heads=3)),
        ("vit_small_patch16_dinov3", dict(img_size=64, embed_dim=48, num_heads=3)),
        ("vit_small_patch16_rope_mixed_224", dict(img_size=64, embed_dim=48, num_heads=3)),
        ("eva02_tiny_patch14_224", dict(img_size=56, embed_dim=48, num_heads=3)),
    ],
)
def test_a_vit_without_hidden_tokens_equals_one_that_does_not_attend_to_them(name, sizes):
    torch.manual_seed(0)
    model = timm.create_model(name, depth=2, num_classes=0, **sizes).eval()
    randomise(model)
    images, visible = torch.randn(3, 3, sizes["img_size"], sizes["img_size"]), torch.rand(3, 4, 4) < 0.5
    prefix = torch.ones(3, model.num_prefix_tokens, dtype=torch.bool)
    keys = torch.cat([prefix, visible.flatten(1)], dim=1)[:, None, None]
    with torch.no_grad():
        bias = torch.zeros(3, 1, keys.shape[-1], keys.shape[-1]).masked_fill(~keys, float("-inf"))
        expected = model.forward_intermediates(images, intermediates_only=True, attn_mask=bias)
        for found, whole in zip(mim4d.forward_masked(model, images, visible), expected, strict=True):
            torch.testing.assert_close(found, whole.masked_fill(~visible[:, None], 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("timms", "ours"), [("resnet18", "mim4d_resnet18"), ("convnext_atto", "mim4d_convnext_atto")])
def test_the_fast_path_of_our_own_families_agrees(timms, ours, training):
    torch.manual_seed(0)
    model = timm.create_model(timms, num_classes=0)
    randomise(model)
    fast = timm.create_model(ours, num_classes=0)
    fast.load_state_dict(model.state_dict())
    images, visible = torch.randn(4, 3, 96, 128).double(), torch.rand(4, 12).argsort(1).view(4, 3, 4) < 7
    pull, outputs = None, []
    for one in (model, fast):
        one.double().train(training)  # in float64, because gradients of the stem sum over many sites
        maps = mim4d.forward_masked(one, images, visible, num_visible=7, norm_group=2)[-4:]
        pull = pull or [torch.randn_like(x) for x in maps]
        sum((x * y).sum() for x, y in zip(maps, pull, strict=True)).backward()
        outputs.append((maps, {name: p.grad for name, p in one.named_parameters()}, dict(one.named_buffers())))
    for found, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_maps_of_features_only_are_those_of_its_indices():
    whole = timm.create_model("test_efficientnet", num_classes=0).eval()
    some = timm.create_model("test_efficientnet", features_only=True, out_indices=(1, 3)).eval()
    some.load_state_dict(whole.state_dict(), strict=False)
    images, visible = torch.randn(2, 3, 128, 160), torch.rand(2, 4, 5) < 0.5
    with torch.no_grad():
        every, chosen = (mim4d.forward_masked(model, images, visible) for model in (whole, some))
    assert [list(x.shape) for x in chosen] == [list(every[i].shape) for i in (1, 3)]
    assert all(torch.equal(x, every[i]) for x, i in zip(chosen, (1, 3), strict=True))

    vit = timm.create_model("test_vit", features_only=True, out_indices=(1, 4)).eval()
    side = vit.model.patch_embed.img_size[0]
    maps = mim4d.forward_masked(vit, torch.randn(2, 3, side, side), torch.rand(2, 5, 5) < 0.5)
    assert [x.shape[1:] for x in maps] == [(64, 10, 10)] * 2


def test_patches_of_several_tokens():
    """A ViT of patches of 16 px, masked in patches of 32 px."""
    vit = timm.create_model("test_vit", num_classes=0).eval()
    coarse = torch.rand(2, 5, 5) < 0.5
    fine = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        for one, other in zip(*(mim4d.forward_masked(vit, images, m) for m in (coarse, fine)), strict=True):
            assert torch.equal(one, other)


def test_the_model_is_not_modified():
    for name in ("test_resnet", "test_vit"):
        model = timm.create_model(name, num_classes=0).eval()
        before, modules = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
        images, visible = torch.randn(2, 3, 160, 160), torch.rand(2, 5, 5) < 0.5
        with torch.no_grad():
            expected = dense_maps(model, images)
            mim4d.forward_masked(model, images, visible)
            assert all(torch.equal(x, y) for x, y in zip(dense_maps(model, images), expected, strict=True))
        assert [type(m) for m in model.modules()] == modules
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_single_visible_site_leaves_the_running_statistics_alone():
    model = timm.create_model("resnet18", num_classes=0).train()
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    visible = torch.zeros(1, 2, 2, dtype=torch.bool)
    visible[0, 0, 0] = True
    mim4d.forward_masked(model, torch.randn(1, 3, 64, 64), visible, num_visible=1)
    after = dict(model.named_buffers())
    assert all(after[name].isfinite().all() for name in before)
    assert torch.equal(after["layer4.1.bn2.running_var"], before["layer4.1.bn2.running_var"])  # one site per image


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_dinov3_qkvb"])
def test_checkpointing_changes_no_gradient_of_a_vit(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, dynamic_img_size=True)
    randomise(model)
    images, visible = torch.randn(2, 3, 64, 96), torch.rand(2, 4, 6) < 0.5
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        sum(x.square().sum() for x in mim4d.forward_masked(model, images, visible)).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


def test_it_runs_in_bfloat16():
    model = timm.create_model("test_efficientnet", num_classes=0)
    images, visible = torch.randn(2, 3, 128, 160), torch.rand(2, 4, 5) < 0.6
    with torch.autocast("cpu", torch.bfloat16):
        maps = mim4d.forward_masked(model, images, visible)
    sum(x.float().square().mean() for x in maps).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("swin_tiny_patch4_window7_224", "channels last"),
        ("tresnet_m", "view of a map"),
        ("inception_v3", "sites for 4 x 5 patches"),
        ("coatnet_nano_rw_224", "of a map of"),
        ("vit_base_r50_s16_224", "patches overlap"),
        ("beit_base_patch16_224", "flatten of a map"),
    ],
)
def test_models_that_mix_patches_are_refused_by_name(name, why):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    size = 224 if "224" in name else 128
    images = torch.zeros(1, 3, size, size if size == 224 else 160, device="meta")
    visible = torch.ones(1, *((7, 7) if size == 224 else (4, 5)), dtype=torch.bool, device="meta")
    with pytest.raises(NoMaskedForwardError, match=why):
        mim4d.forward_masked(model, images, visible, num_visible=12)


class Shift(nn.Module):
    """Mixes neighbours in an operation that function modes intercept, or do not, as one of a C++ extension."""

    def __init__(self, seen: bool) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        with nullcontext() if self.seen else torch._C.DisableTorchFunction():
            return x.roll(1, -1)


@pytest.mark.parametrize(("seen", "why"), [(True, "because of roll$"), (False, "do not see")])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_an_unknown_operation_is_refused(name, seen, why):
    model = timm.create_model(name, num_classes=0)
    parent, _, last = next(n for n, m in model.named_modules() if type(m) is nn.Conv2d).rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Sequential(getattr(model.get_submodule(parent), last), Shift(seen)))
    with pytest.raises(NoMaskedForwardError, match=why):
        mim4d.forward_masked(model, torch.randn(2, 3, 128, 160), torch.rand(2, 4, 5) < 0.5)


class Explode(nn.Module):
    """Is infinite or NaN, or has such a gradient, where a convolution sees nothing but hidden sites."""

    def __init__(self, convolution: nn.Conv2d, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.convolution, self.function = convolution, function
        convolution.bias = nn.Parameter(torch.randn(convolution.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.function((self.convolution(x) - self.convolution.bias[:, None, None]).square())


EXPLOSIVE = {
    "sqrt": torch.sqrt,
    "reciprocal": lambda x: 0.01 / (x + 0.1) + 1e-3 * x.reciprocal().clamp(max=1.0),
    "division": lambda x: x / x,
    "in-place division": lambda x: x.clone().div_(x),
    "logarithm": lambda x: 0.1 * x.log(),
    "power": lambda x: x**0.3,
}


@pytest.mark.parametrize("function", EXPLOSIVE.values(), ids=EXPLOSIVE)
def test_functions_that_are_infinite_at_hidden_sites_stay_there(function):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=0)
    model.layer1[0].conv2 = Explode(model.layer1[0].conv2, function)
    visible = torch.rand(2, 4, 5) < 0.4
    hidden = (~visible).repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]
    images = torch.randn(2, 3, 128, 160)
    filled = images.masked_fill(hidden, torch.nan).requires_grad_()
    maps = mim4d.forward_masked(model, filled, visible)
    for found, expected in zip(maps, mim4d.forward_masked(model, images, visible), strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected)
    maps[-1].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert filled.grad.isfinite().all()
    assert filled.grad[hidden.expand_as(images)].eq(0).all()


def test_invalid_arguments_are_refused():
    model = timm.create_model("test_resnet", num_classes=0)
    images = torch.randn(2, 3, 128, 160)
    with pytest.raises(ValueError, match="do not tile"):
        mim4d.forward_masked(model, images, torch.ones(2, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="expected a bool mask"):
        mim4d.forward_masked(model, images, torch.ones(2, 4, 5))
    with pytest.raises(ValueError, match="a divisor of the 2 images"):
        mim4d.forward_masked(model, images, torch.ones(2, 4, 5, dtype=torch.bool), norm_group=3)
    model.set_grad_checkpointing()
    with pytest.raises(NoMaskedForwardError, match="gradient checkpointing"):
        mim4d.forward_masked(model, images, torch.rand(2, 4, 5) < 0.5)

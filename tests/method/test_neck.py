"""The neck: mask tokens at hidden sites, and stages joined at one stride."""

import pytest
import torch

from mim4d.method.neck import Neck, NeckConfig, group_norm

WIDTHS = [5, 7, 9, 11]


def make(stages=(2, 3), channels=32):
    torch.manual_seed(0)
    neck = Neck(NeckConfig(stages=stages, channels=channels), WIDTHS)
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return neck


def maps(n=2, height=64, width=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, c, height // s, width // s, generator=generator)
        for c, s in zip(WIDTHS, (4, 8, 16, 32), strict=True)
    ]


def half(n=2, rows=2, columns=3):
    visible = torch.zeros(n, rows, columns, dtype=torch.bool)
    visible[:, 0, 0] = visible[:, 1, 2] = True
    return visible


@pytest.mark.parametrize(
    ("stages", "stride"), [((3,), 32), ((2, 3), 16), ((1, 2, 3), 8), ((0, 1, 2, 3), 4), ((1, 3), 8), ((0, 3), 4)]
)
def test_the_first_stage_sets_the_stride(stages, stride):
    neck = make(stages)
    assert neck.stride == stride
    assert neck(maps(), half()).shape == (2, 32, 64 // stride, 96 // stride)


def slow(neck, maps, visible):
    """The neck by loops over sites: the token at hidden ones, the map at others; coarser maps are repeated."""
    stride = neck.stride
    n, rows, columns = visible.shape
    joined = torch.zeros(n, neck.mask_tokens[0].numel(), rows * 32 // stride, columns * 32 // stride)
    for stage, lateral, token in zip(neck.indices, neck.laterals, neck.mask_tokens, strict=True):
        step = 4 * 2**stage
        weight, bias = lateral.weight[:, :, 0, 0], lateral.bias
        for image in range(n):
            for y in range(joined.shape[2]):
                for x in range(joined.shape[3]):
                    seen = visible[image, y * stride // 32, x * stride // 32]
                    site = maps[stage][image, :, y * stride // step, x * stride // step]
                    joined[image, :, y, x] += (weight @ site + bias) if seen else token
    return neck.output(joined)


@pytest.mark.parametrize("stages", [(3,), (2, 3), (1, 3)])
def test_hidden_sites_get_mask_tokens(stages):
    neck = make(stages)
    expected = slow(neck, maps(), half())
    torch.testing.assert_close(neck(maps(), half()), expected, rtol=1e-4, atol=1e-5)

    gradients = []
    for output in (neck(maps(), half()), expected):
        neck.zero_grad()
        (output * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
        gradients.append([p.grad.clone() for p in neck.parameters()])
    for fast, by_hand in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, by_hand, rtol=1e-3, atol=1e-4)


def test_values_at_hidden_sites_have_no_influence():
    neck, visible = make((0, 1, 2, 3)), half()
    clean = maps()
    dirty = [
        torch.where(torch.kron(visible, torch.ones(1, m.shape[2] // 2, m.shape[3] // 3)).bool()[:, None], m, torch.nan)
        for m in clean
    ]
    assert torch.equal(neck(clean, visible), neck(dirty, visible))


def test_hidden_sites_get_no_gradient():
    visible, inputs = half(), [m.requires_grad_() for m in maps()]
    make((0, 1, 2, 3))(inputs, visible).square().sum().backward()
    for m in inputs:
        seen = torch.kron(visible, torch.ones(1, m.shape[2] // 2, m.shape[3] // 3)).bool()[:, None].expand_as(m)
        assert m.grad[~seen].eq(0).all()
        assert m.grad[seen].ne(0).all()


def test_images_do_not_mix():
    neck, visible, inputs = make(), half(), maps()
    visible[1] = True
    together = neck(inputs, visible)
    for i in range(2):
        alone = neck([m[i : i + 1] for m in inputs], visible[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def test_bf16_autocast():
    neck = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = neck(maps(), half())
    torch.testing.assert_close(rough.float(), neck(maps(), half()), rtol=0, atol=0.1)


@pytest.mark.parametrize("stages", [(), (2,), (3, 2), (2, 2, 3), (-1, 3), (3, 4)])
def test_invalid_stages_are_refused(stages):
    with pytest.raises(ValueError, match=r"neck.stages"):
        NeckConfig(stages=stages)


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (16, 1), (32, 2), (40, 2), (256, 16)])
def test_group_norm_has_about_16_channels_per_group(channels, groups):
    assert group_norm(channels).num_groups == groups

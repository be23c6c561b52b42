"""MIM4DEncoder: properties of all families."""

import pytest
import timm
import torch

import mim4d
from tests.encoders import noise

NAMES = timm.list_models("mim4d_*")


@pytest.fixture(scope="module", params=NAMES)
def encoder(request):
    with torch.device("meta"):
        return timm.create_model(request.param)


def test_every_model_is_a_mim4d_encoder(encoder):
    assert isinstance(encoder, mim4d.MIM4DEncoder)
    assert encoder.num_classes == 0


def test_parts_are_all_but_the_head(encoder):
    parts = encoder.parts()
    assert len(parts) == 5
    inside = [id(parameter) for part in parts for parameter in part.parameters()]
    outside = [name for name, parameter in encoder.named_parameters() if id(parameter) not in inside]
    assert len(inside) == len(set(inside))
    assert all(name.startswith("head.") for name in outside)


def test_widths_are_the_four_last_maps(encoder):
    maps = encoder.forward_intermediates(torch.empty(1, 3, 64, 64, device="meta"), indices=4, intermediates_only=True)
    assert encoder.widths() == [m.shape[1] for m in maps]
    assert [m.shape[2] for m in maps] == [16, 8, 4, 2]


@pytest.mark.parametrize("visible", [(1, 2, 3), (2, 2, 2), (2, 64, 64)])
def test_a_mask_that_does_not_fit_is_refused(encoder, visible):
    with pytest.raises(ValueError, match=r"expected \[2, 2, 3\] \(images are 64 x 96, a patch is 32 px\), got"):
        encoder.forward_masked(torch.empty(2, 3, 64, 96, device="meta"), torch.ones(visible, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_mask_that_is_not_bool_is_refused(encoder, dtype):
    with pytest.raises(ValueError, match=f"^visible: expected a bool mask, got {dtype}$"):
        encoder.forward_masked(torch.empty(1, 3, 64, 64, device="meta"), torch.ones(1, 2, 2, dtype=dtype))


@pytest.mark.parametrize("name", ["mim4d_convnextv2_atto", "mim4d_resnet18"])
def test_no_image_gives_no_maps(name):
    encoder = timm.create_model(name)
    maps = encoder.forward_masked(torch.empty(0, 3, 64, 96), torch.empty(0, 2, 3, dtype=torch.bool))
    assert [tuple(m.shape) for m in maps] == [
        (0, width, 64 // stride, 96 // stride) for width, stride in zip(encoder.widths(), (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("mim4d_convnextv2_atto", dict(depths=(1, 1, 1, 1), dims=(8, 12, 16, 24))),
        ("mim4d_resnet18", dict(layers=(1, 1, 1, 1), channels=(8, 12, 16, 24))),
    ],
)
def test_a_given_count_changes_nothing_and_compiles_to_one_graph(name, small):
    """Without a count the mask is read, which does not compile to one graph."""
    encoder, images = timm.create_model(name, **small).train(), noise(2, 3, 64, 96)
    visible = torch.tensor([[[1, 0, 1], [1, 1, 0]], [[0, 1, 1], [1, 1, 0]]]).bool()
    expected = encoder.forward_masked(images, visible)
    compiled = torch.compile(encoder.forward_masked, backend="eager", fullgraph=True)
    for run in (encoder.forward_masked, compiled):
        assert all(torch.equal(a, b) for a, b in zip(run(images, visible, num_visible=4), expected, strict=True))

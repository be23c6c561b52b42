"""Losses against loops over clips and rays."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mim4d.method.losses import LossConfig, compare
from mim4d.method.rays import Rays
from mim4d.method.render import Rendered


def make(groups: int, rays: int, seed: int = 0, share: float = 0.7) -> tuple[Rendered, Rays]:
    """Random renderings and observations; a fraction of the rays is valid, fewer have depth, some miss the volume."""
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    valid = uniform(groups, rays) < share
    rendered = Rendered(
        rgb=uniform(groups, rays, 3),
        depth=1 + 50 * uniform(groups, rays),
        opacity=uniform(groups, rays),
        hit=uniform(groups, rays) < 0.9,
    )
    seen = Rays(
        origins=torch.zeros(groups, rays, 3),
        directions=torch.zeros(groups, rays, 3),
        rgb=uniform(groups, rays, 3),
        depth=1 + 50 * uniform(groups, rays),
        valid=valid,
        has_depth=valid & (uniform(groups, rays) < 0.8),
        pixels=torch.zeros(groups, rays, 2),
    )
    return rendered, seen


KINDS = ("rgb", "depth", "abs_rel", "psnr", "delta", "rgb_hidden", "rgb_visible", "depth_hidden", "depth_visible")


def by_loops(rendered: Rendered, rays: Rays, clips: int, on_visible: Tensor) -> dict[str, list[float]]:
    """Each measure of each clip; NaN if there is nothing to measure."""
    per_clip: dict[str, list[float]] = {name: [] for name in KINDS}
    groups = len(rays.valid) // clips
    for clip in range(clips):
        errors: dict[str, list[float]] = {name: [] for name in (*KINDS, "squared")}
        for g in range(clip * groups, (clip + 1) * groups):
            for r in range(rays.valid.shape[1]):
                if not rendered.hit[g, r]:
                    continue
                side = "visible" if on_visible[g, r] else "hidden"
                if rays.valid[g, r]:
                    off = [(rendered.rgb[g, r, c] - rays.rgb[g, r, c]).item() for c in range(3)]
                    for name in ("rgb", f"rgb_{side}"):
                        errors[name].append(sum(abs(x) for x in off) / 3)
                    errors["squared"].append(sum(x * x for x in off) / 3)
                if rays.has_depth[g, r]:
                    error = abs((rendered.depth[g, r] - rays.depth[g, r]).item())
                    for name in ("depth", f"depth_{side}"):
                        errors[name].append(error)
                    errors["abs_rel"].append(error / rays.depth[g, r].item())
                    near, far = sorted((rendered.depth[g, r].item(), rays.depth[g, r].item()))
                    errors["delta"].append(float(far / near < 1.25))
        squared = errors.pop("squared")
        errors["psnr"] = [-10 * math.log10(max(sum(squared) / len(squared), 1e-10))] if squared else []
        for name, found in errors.items():
            per_clip[name].append(sum(found) / len(found) if found else math.nan)
    return per_clip


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    clips=st.integers(1, 3),
    targets=st.integers(1, 2),
    rays=st.integers(1, 8),
    share=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    seed=st.integers(0, 1000),
)
def test_against_loops(clips, targets, rays, share, seed):
    rendered, seen = make(clips * targets, rays, seed, share)
    on_visible = torch.rand(clips * targets, rays, generator=torch.Generator().manual_seed(seed)) < 0.5
    got = compare(rendered, seen, clips, on_visible)
    expected = by_loops(rendered, seen, clips, on_visible)
    assert got.measures.keys() == expected.keys()
    for name, values in expected.items():
        assert got.measures[name].tolist() == pytest.approx(values, rel=1e-4, abs=1e-6, nan_ok=True), name
    for name in ("rgb", "depth"):
        learnt_from = sum(value for value in expected[name] if not math.isnan(value)) / clips
        assert got.errors[name].item() == pytest.approx(learnt_from, rel=1e-4, abs=1e-6), name


def test_a_clip_without_valid_rays_counts_as_zero():
    rendered, seen = make(2, 10)
    seen.valid[1] = False
    seen.has_depth[1] = False
    rgb, depth = rendered.rgb.requires_grad_(), rendered.depth.requires_grad_()
    compared = compare(rendered._replace(rgb=rgb, depth=depth), seen, 2)
    both = compared.errors
    (both["rgb"] + both["depth"]).backward()
    first = compare(*(first_group(x) for x in (rendered, seen)), 1).errors
    for name, value in compared.measures.items():
        assert value.isnan().tolist() == [False, True], name
    assert both["rgb"].item() == pytest.approx(first["rgb"].item() / 2, rel=1e-5)
    assert both["depth"].item() == pytest.approx(first["depth"].item() / 2, rel=1e-5)
    assert (rgb.grad[1] == 0).all()
    assert (depth.grad[1] == 0).all()
    assert depth.grad[0].abs().max() > 0


def first_group(x: Rendered | Rays) -> Rendered | Rays:
    """The values of the first group alone."""
    if isinstance(x, Rendered):
        return Rendered(*(value.detach()[:1] for value in x))
    return Rays(**{name: value[:1] for name, value in vars(x).items()})


def test_no_valid_ray_in_any_clip():
    rendered, seen = make(2, 10, share=0.0)
    rendered = rendered._replace(rgb=rendered.rgb.requires_grad_(), depth=rendered.depth.requires_grad_())
    got = compare(rendered, seen, 2)
    assert got.errors["rgb"] == got.errors["depth"] == 0
    assert all(value.isnan().all() for value in got.measures.values())
    sum(got.errors.values()).backward()
    assert (rendered.rgb.grad == 0).all()


def test_rays_that_are_not_valid_or_miss_have_no_influence():
    """Rays that are not valid or miss the volume may hold any number."""
    rendered, seen = make(2, 20)
    start = compare(rendered, seen, 2)
    with torch.no_grad():
        seen.rgb[~seen.valid] = 1e9
        seen.depth[~seen.has_depth] = 1e9
        rendered.rgb[~rendered.hit] = -1e9
        rendered.depth[~rendered.hit] = 1e9
    after = compare(rendered, seen, 2)
    for before, now in ((start.errors, after.errors), (start.measures, after.measures)):
        for name in before:
            torch.testing.assert_close(now[name], before[name])


def test_every_clip_has_the_same_weight_however_many_rays_it_has():
    """So the average over processes with one clip each equals one process with all clips."""
    rendered, seen = make(4, 30)
    seen.valid[0, 3:] = False  # a clip of few rays
    seen.has_depth[0, 3:] = False
    together = compare(rendered, seen, 4)
    alone = [
        compare(
            Rendered(*(value[g : g + 1] for value in rendered)),
            Rays(**{name: value[g : g + 1] for name, value in vars(seen).items()}),
            1,
        )
        for g in range(4)
    ]
    for name in ("rgb", "depth"):
        mean = sum(one.errors[name].item() for one in alone) / 4
        assert together.errors[name].item() == pytest.approx(mean, rel=1e-5), name
    for name, values in together.measures.items():
        torch.testing.assert_close(values, torch.cat([one.measures[name] for one in alone]))


def test_gradients_are_signs_over_counts():
    rendered, seen = make(2, 12)
    rgb, depth = rendered.rgb.requires_grad_(), rendered.depth.requires_grad_()
    got = compare(rendered._replace(rgb=rgb, depth=depth), seen, 2)
    sum(got.errors.values()).backward()
    for g in range(2):
        for weight, error, gradient, channels in (
            (seen.valid & rendered.hit, rgb - seen.rgb, rgb.grad, 3),
            (seen.has_depth & rendered.hit, (depth - seen.depth)[..., None], depth.grad[..., None], 1),
        ):
            expected = error[g].detach().sign() * weight[g, :, None] / weight[g].sum() / channels / 2
            torch.testing.assert_close(gradient[g], expected)


def test_metrics_carry_no_gradient():
    rendered, seen = make(1, 12)
    got = compare(rendered._replace(rgb=rendered.rgb.requires_grad_(), depth=rendered.depth.requires_grad_()), seen, 1)
    assert all(value.requires_grad for value in got.errors.values())
    assert not any(value.requires_grad for value in got.measures.values())


def test_known_numbers():
    """One ray off by 0.1, 0.2 and 0.3 in colour, and at 11 m instead of 10."""
    rendered = Rendered(
        torch.tensor([[[0.5, 0.5, 0.5]]]), torch.tensor([[11.0]]), torch.ones(1, 1), torch.ones(1, 1) > 0
    )
    sure = torch.ones(1, 1) > 0
    seen = Rays(
        origins=torch.zeros(1, 1, 3),
        directions=torch.zeros(1, 1, 3),
        rgb=torch.tensor([[[0.6, 0.3, 0.8]]]),
        depth=torch.tensor([[10.0]]),
        valid=sure,
        has_depth=sure,
        pixels=torch.zeros(1, 1, 2),
    )
    got = compare(rendered, seen, 1).measures
    assert got["rgb"].item() == pytest.approx(0.2)
    assert got["depth"].item() == pytest.approx(1.0)
    assert got["abs_rel"].item() == pytest.approx(0.1)
    assert got["psnr"].item() == pytest.approx(-10 * math.log10(0.14 / 3), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"other_rays": -1.0}, r"loss.other_rays = -1.0 must be at least 0"),
        ({"rgb": 0.0, "depth": 0.0, "consistency": 4.0, "other_rays": 1.0}, r"both 0: raise one of them"),
    ],
)
def test_weights_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**settings)

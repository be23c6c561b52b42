"""The whole forward pass, as a trainer uses it."""

import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from mim4d.clip import Clip
from mim4d.geometry import VoxelGrid, transform, unproject
from mim4d.method.lift import LiftConfig
from mim4d.method.losses import LossConfig
from mim4d.method.mask import draw_targets
from mim4d.method.model import MIM4D, pick, through_visible
from mim4d.method.neck import NeckConfig
from mim4d.method.rays import choose_rays, with_depth_of_lift
from mim4d.method.render import RenderConfig
from tests.encoders import shake
from tests.method.test_render_scene import CHANNELS, make_renderer
from tests.street import WALL, street, texture
from tests.toy import toy_clip, toy_config, toy_model

LOSSES = {"direct": ("direct_rgb", "direct_depth"), "temporal": ("temporal_rgb", "temporal_depth")}
ALL_LOSSES = LOSSES["direct"] + LOSSES["temporal"]


def step(model, clip):
    """Run one forward and backward pass; return the values as floats, averaged over clips, and the gradients."""
    model.zero_grad()
    out = model(clip)
    out["loss"].backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {name: float(value.detach().float().nanmean()) for name, value in out.items()}, gradients


def ragged(seed) -> Clip:
    """A clip whose frames have different numbers of LiDAR points, one of them none, padded with noise."""
    clip = toy_clip(1, 3, 2, points=150 + 60 * seed, seed=seed)
    return replace(clip, num_points=torch.tensor([[20 + 40 * seed, 0, 150]]))


FAMILIES = pytest.mark.parametrize("encoder", ["mim4d_convnext_atto", "mim4d_convnextv2_atto", "mim4d_resnet18"])
WAITS = {
    *("aten::nonzero", "aten::nonzero_numpy", "aten::argwhere", "aten::masked_select", "aten::_unique2"),
    *("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::allclose"),
    *("aten::lift_fresh", "aten::lift_fresh_copy"),
}
"""Operators that make the host wait for a GPU, because they copy numbers to it or read them from it."""


def waits(run):
    """The waits for the device during ``run()``, from torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:  # a dispatch mode would see other gradients than these
        run()
    return [event.name for event in profiled.events() if event.name in WAITS]


@FAMILIES
def test_a_training_step_never_waits_for_the_device(encoder):
    """Forward, backward and gradient clipping. AdamW is left out: its fused CPU kernel reads its step count."""
    model, clip = MIM4D(toy_config(encoder=encoder, drop_path=0.2)), toy_clip(1, 2, 1)

    def train_step():
        model(clip)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)

    train_step()  # constants are made once
    assert waits(train_step) == []


@FAMILIES
def test_a_mask_without_its_count_waits_once(encoder):
    """This also shows that the profiler finds a wait."""
    model, clip = MIM4D(toy_config(encoder=encoder)), toy_clip(1, 2)
    images, visible = model.normalised(clip), model.visible(clip).flatten(0, 2)
    assert waits(lambda: model.encoder.forward_masked(images, visible)) == ["aten::nonzero"]


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_is_the_mean_of_its_clips(training):
    """Values and gradients, with ragged LiDAR: a run does not depend on the batch size or the number of processes."""
    model = toy_model().train(training)
    clips = [toy_clip(1, seed=1), ragged(2), ragged(3)]
    together, gradients = step(model, Clip.collate(clips))
    alone = [step(model, clip) for clip in clips]
    for name in together:
        assert together[name] == pytest.approx(sum(out[name] for out, _ in alone) / 3, rel=1e-4), name
    for name, gradient in gradients.items():
        mean = sum(g[name] for _, g in alone) / 3
        # Where importance sampling puts its points magnifies the last digits; a leak between clips is of order 1.
        assert (gradient - mean).norm() <= 1e-2 * mean.norm() + 1e-6, name


def test_the_order_of_the_clips_does_not_matter():
    model, clips = toy_model(), [toy_clip(1, seed=s) for s in range(3)]
    forth, back = model(Clip.collate(clips)), model(Clip.collate(clips[::-1]))
    torch.testing.assert_close(forth["loss"], back["loss"])


def test_forward_is_deterministic():
    model, clip = toy_model(), toy_clip()
    first, gradients = step(model, clip)
    torch.rand(7)  # torch's own generator has no say
    second, again = step(model, clip)
    assert first == second
    assert all(torch.equal(gradients[name], again[name]) for name in gradients)


def test_results_vary_with_the_seed():
    model, clip = toy_model(), toy_clip()
    assert model(clip)["loss"] != model(replace(clip, seeds=clip.seeds + 1))["loss"]


# --- frames and cameras ----------------------------------------------------------------------------------------------


def test_one_frame_has_no_temporal_path():
    model = toy_model(frames=1)
    assert model.temporal is None
    assert not [name for name, _ in model.named_parameters() if "temporal" in name]
    out, _ = step(model, toy_clip(frames=1))
    assert set(out) >= {"loss", *LOSSES["direct"], "direct_psnr", "direct_abs_rel", "frames", "rays"}
    assert not [name for name in out if name.startswith("temporal")]
    assert out["frames"] == 1


def test_two_frames_have_no_long_branch():
    model = toy_model(frames=2)
    assert model.temporal.long is None
    out, gradients = step(model, toy_clip(frames=2))
    assert out["frames"] == 2
    assert len(gradients) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("frames", [2, 3, 6])
def test_a_model_accepts_more_or_fewer_frames_than_it_was_built_for(frames):
    out, _ = step(toy_model(frames=3), toy_clip(1, frames))
    assert out["frames"] == frames
    assert all(torch.tensor(out[name]).isfinite() for name in ALL_LOSSES)


def test_every_frame_that_is_counted_is_used():
    """The official release silently falls back to a single frame; here the pixels of each frame reach the loss."""
    model, clip = toy_model(), toy_clip(1, 5)
    before = model.eval()(clip)
    assert before["frames"] == 5
    targets = set(draw_targets(clip.seeds, 5).flatten().tolist())
    for t in set(range(5)) - targets:  # a target's own pixels are seen by the direct rendering anyhow
        images = clip.images.clone()
        images[:, t] = 255 - images[:, t]
        after = model(replace(clip, images=images))
        assert (after["temporal_rgb"] - before["temporal_rgb"]).abs() > 1e-6, t
        assert after["direct_rgb"] == before["direct_rgb"], t


def test_more_frames_than_a_model_without_a_long_branch_was_built_for():
    """The short branch takes all frames, and all are counted."""
    model, clip = toy_model(frames=2), toy_clip(1, 4)
    before = model.eval()(clip)
    assert before["frames"] == 4
    furthest = 0 if 0 not in draw_targets(clip.seeds, 4) else 1
    images = clip.images.clone()
    images[:, furthest] = 255 - images[:, furthest]
    assert model(replace(clip, images=images))["temporal_rgb"] != before["temporal_rgb"]


def test_a_temporal_model_refuses_a_single_frame():
    with pytest.raises(ValueError, match=r"needs clips of 2 frames or more, got 1"):
        toy_model(frames=3)(toy_clip(frames=1))


@pytest.mark.parametrize("cameras", [1, 2, 6])
def test_any_number_of_cameras(cameras):
    out, gradients = step(toy_model(frames=2), toy_clip(1, 2, cameras, (64, 64)))
    assert torch.tensor([out[name] for name in ALL_LOSSES]).isfinite().all()
    assert all(g.isfinite().all() for g in gradients.values())


def test_cameras_may_be_given_in_any_order():
    model, clip = toy_model().eval(), toy_clip(1, 3, 3)
    model.config = toy_config(mask_ratio=0.0)  # masks are drawn by a camera's place
    turned = replace(
        clip,
        images=clip.images.flip(2),
        intrinsics=clip.intrinsics.flip(2),
        ego_from_camera=clip.ego_from_camera.flip(2),
        cameras=clip.cameras[::-1],
    )
    torch.testing.assert_close(model.encode(clip), model.encode(turned), rtol=1e-4, atol=1e-5)


# --- supervision -----------------------------------------------------------------------------------------------------


def test_colour_alone_needs_no_lidar():
    model = toy_model(supervision="rgb")
    clip = toy_clip(points=0)
    assert clip.num_points.eq(0).all()
    out, gradients = step(model, clip)
    assert out["rays"] == 1
    measured = {name for name, value in out.items() if value == value}
    assert not [name for name in measured if "depth" in name or "abs_rel" in name or "delta" in name]
    assert set(model.terms(clip)) == {"direct_rgb", "temporal_rgb"}
    assert out["direct_rgb"] > 0
    assert out["loss"] == pytest.approx(10 * (out["direct_rgb"] + out["temporal_rgb"]), rel=1e-5)
    assert all(g.isfinite().all() for g in gradients.values())


def test_colour_alone_does_not_use_lidar():
    model = toy_model(supervision="rgb")
    assert model(toy_clip(points=0))["loss"] == model(toy_clip(points=200))["loss"]


def test_without_lidar_the_loss_of_depth_supervision_is_zero():
    """The loss of a clip without a single point is zero, its measures are NaN, and ``rays`` is 0."""
    out, gradients = step(toy_model(), toy_clip(points=0))
    assert out["rays"] == 0
    assert out["loss"] == 0
    assert {name for name, value in out.items() if value == value} == {"loss", "frames", "rays"}
    assert all(g.isfinite().all() for g in gradients.values())


def test_padding_of_the_points_has_no_influence():
    model, clip = toy_model(), ragged(2)
    void = ~clip.points_valid[..., None]
    clean, gradients = step(model, replace(clip, points=clip.points.masked_fill(void, 0.0)))
    dirty, same = step(model, replace(clip, points=clip.points.masked_fill(void, torch.nan)))
    assert clean == dirty
    assert all(torch.equal(gradients[name], same[name]) for name in gradients)


def test_the_loss_is_the_weighted_sum():
    model = toy_model()
    out, _ = step(model, toy_clip())
    scale = 24.0  # the toy grid's largest reach, metres
    rgb = out["direct_rgb"] + out["temporal_rgb"]
    depth = out["direct_depth"] + out["temporal_depth"]
    assert out["loss"] == pytest.approx(10 * rgb + 10 * depth / scale, rel=1e-5)


def test_the_terms_sum_to_the_loss_and_their_gradients_to_its_gradient():
    model, clip = toy_model(), toy_clip()
    weights = [p for p in model.parameters() if p.requires_grad]
    whole = model(clip)["loss"]
    terms = model.terms(clip)
    assert set(terms) == set(ALL_LOSSES)
    torch.testing.assert_close(sum(terms.values()), whole)
    summed = [torch.zeros_like(p) for p in weights]
    for term in terms.values():
        parts = torch.autograd.grad(term, weights, retain_graph=True, materialize_grads=True)
        summed = [one + part for one, part in zip(summed, parts, strict=True)]
    for one, part in zip(summed, torch.autograd.grad(whole, weights), strict=True):
        torch.testing.assert_close(one, part, rtol=1e-3, atol=1e-5)


def test_rays_through_hidden_and_visible_patches_are_measured_separately():
    """Ray by ray, against the patch of its pixel in the mask of its frame and camera."""
    model, clip = toy_model().eval(), toy_clip()
    targets = draw_targets(clip.seeds, 3)
    rays = choose_rays(clip, targets, 16, model.config.grid, "rgbd")
    got = through_visible(rays.pixels, pick(model.visible(clip), targets), model.patch)
    assert 0 < got.float().mean() < 1
    for g in range(4):
        for r in range(32):
            u, v = rays.pixels[g, r].tolist()
            seen = model.visible(clip)[g // 2, targets[g // 2, g % 2], r // 16, int(v) // 32, int(u) // 32]
            assert got[g, r] == seen
    out = model(clip)
    assert {f"direct_{what}_{side}" for what in ("rgb", "depth") for side in ("hidden", "visible")} <= set(out)
    assert not [name for name in out if name.startswith("temporal") and name.endswith(("hidden", "visible"))]
    low, high = (f(out["direct_rgb_hidden"], out["direct_rgb_visible"]) for f in (torch.minimum, torch.maximum))
    assert ((low < out["direct_rgb"]) & (out["direct_rgb"] < high)).all()


def test_without_a_mask_no_ray_goes_through_a_hidden_patch():
    out = toy_model(mask_ratio=0.0)(toy_clip())
    assert out["direct_rgb_hidden"].isnan().all()
    torch.testing.assert_close(out["direct_rgb_visible"], out["direct_rgb"])


# --- the masks -------------------------------------------------------------------------------------------------------


def test_hidden_pixels_do_not_reach_the_volumes():
    model, clip = toy_model(), toy_clip()
    visible = model.visible(clip)
    assert 0 < visible.float().mean() < 1
    hidden = ~visible.repeat_interleave(32, -1).repeat_interleave(32, -2)[:, :, :, None]
    noise = torch.randint(0, 256, clip.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    dirty = replace(clip, images=torch.where(hidden, noise, clip.images))
    assert not torch.equal(dirty.images, clip.images)
    with torch.no_grad():
        assert torch.equal(model.encode(clip), model.encode(dirty))


def test_visible_pixels_reach_the_volumes():
    model, clip = toy_model(), toy_clip()
    with torch.no_grad():
        assert not torch.equal(model.encode(clip), model.encode(replace(clip, images=255 - clip.images)))


def test_a_target_frame_is_dropped_before_it_is_rebuilt():
    model, clip = toy_model(frames=4), toy_clip(3, 4)
    targets = draw_targets(clip.seeds, 4)
    volumes = torch.randn(3, 4, 2, *model.config.grid.shape)
    for k in range(2):
        missing = volumes.clone()
        missing[torch.arange(3), targets[:, k]] = torch.nan
        warped, _ = model.warp_others(missing, clip, targets)
        assert warped.view(3, 2, 3, -1)[:, k].isfinite().all()


@FAMILIES
@pytest.mark.parametrize("training", [True, False])
def test_a_dropped_frame_does_not_reach_its_own_rebuilt_volume(encoder, training):
    """Neither as features nor through the statistics of a norm; the other target's volume does depend on it."""
    model, clip = MIM4D(toy_config(encoder=encoder, drop_path=0.2)), toy_clip(1, 3)
    shake(model.encoder)
    model.train(training)
    targets = draw_targets(clip.seeds, 3)  # [1, 2]

    @torch.no_grad()
    def rebuilt(images):
        torch.manual_seed(0)  # stochastic depth
        changed = replace(clip, images=images)
        return model.temporal(*model.warp_others(model.encode(changed), changed, targets))  # [2, C, Z, Y, X]

    before = rebuilt(clip.images)
    for k in range(2):
        images = clip.images.clone()
        images[:, targets[0, k]] = 255 - images[:, targets[0, k]]
        after = rebuilt(images)
        assert torch.equal(after[k], before[k])
        assert not torch.equal(after[1 - k], before[1 - k])


def test_other_frames_have_their_own_poses_and_gaps():
    """Every other frame, the oldest first, is warped by its own pose and has its own signed gap."""
    clip = toy_clip(2, 4, turn=0.2)
    model = toy_model(frames=4)
    grid = model.config.grid
    volumes = torch.randn(2, 4, 1, *grid.shape, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[3, 0], [3, 2]])
    warped, gaps = model.warp_others(volumes, clip, targets)
    assert gaps.view(2, 2, 3).tolist() == [
        [[-1.5, -1.0, -0.5], [0.5, 1.0, 1.5]],
        [[-1.5, -1.0, -0.5], [-1.0, -0.5, 0.5]],
    ]
    others = [[[0, 1, 2], [1, 2, 3]], [[0, 1, 2], [0, 1, 3]]]
    centers = grid.centers(volumes)
    for b in range(2):
        for k in range(2):
            for s, source in enumerate(others[b][k]):
                current_from_target = clip.current_from_ego[b, targets[b, k]].double()
                source_from_target = clip.current_from_ego[b, source].double().inverse() @ current_from_target
                place = grid.index_of(transform(source_from_target, centers[1, 6, 8].double()[None]))[0]
                x, y, z = (round(float(i)) for i in place)
                nearby = volumes[b, source, 0, z, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                value = warped.view(2, 2, 3, *grid.shape)[b, k, s, 1, 6, 8]
                assert nearby.min() <= value <= nearby.max()


def test_pick():
    per_frame = torch.arange(12).view(2, 3, 2)
    assert pick(per_frame, torch.tensor([[2, 0], [1, 1]])).tolist() == [[4, 5], [0, 1], [8, 9], [8, 9]]
    assert pick(per_frame[..., 0], torch.tensor([[[2, 0]], [[1, 2]]])).tolist() == [[4, 0], [8, 10]]


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("supervision", ["rgbd", "rgb"])
def test_every_trainable_parameter_gets_a_nonzero_gradient(supervision):
    """Within a few steps, because some parameters are multiplied by an initial zero."""
    model = toy_model(supervision=supervision)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    silent = {name for name, p in model.named_parameters() if p.requires_grad}
    for number in range(3):
        clip = toy_clip(1, seed=number)
        optimiser.zero_grad()
        model(clip)["loss"].backward()
        optimiser.step()
        silent -= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.ne(0).any()}
    assert not silent


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
def test_frozen_parts_alone_stay_unchanged(frozen):
    model = toy_model(frozen=frozen)
    parts = [model.encoder.stem, *model.encoder.stages]
    for i, part in enumerate(parts):
        assert all(p.requires_grad == (i >= frozen) for p in part.parameters())
    _, gradients = step(model, toy_clip(1))
    assert not [name for name in gradients if name.startswith("encoder.head")]


def test_it_overfits_one_clip():
    model, clip = toy_model(frames=2), toy_clip(1, 2, 1, (64, 64))
    clip = replace(clip, images=(clip.images // 8 + 200))  # bright, nearly of one colour: easily learned
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(25):
        out, _ = step(model, clip)
        optimiser.step()
        history.append(out)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    for name in ALL_LOSSES:
        assert history[-1][name] < 0.85 * history[0][name], name


def test_drop_path_and_bf16_stay_finite():
    model, clip = toy_model(frames=2, drop_path=0.5), toy_clip(1, 2, 1, (64, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, gradients = step(model, clip)
    assert torch.tensor(list(out.values())).isfinite().all()
    assert all(g.isfinite().all() for g in gradients.values())


def test_bf16_uses_the_same_rays_and_gives_similar_losses():
    model, clip = toy_model(frames=2).eval(), toy_clip(1, 2, 2, (64, 64))
    with torch.no_grad():
        exact = model(clip)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(clip)
    assert rough["rays"] == exact["rays"]
    for name in ALL_LOSSES:
        assert float(rough[name]) == pytest.approx(float(exact[name]), rel=0.05), name


def test_measures_have_no_graph():
    out = toy_model()(toy_clip(2))
    for name, value in out.items():
        assert value.shape == (() if name in ("loss", "frames", "rays") else (2,))
        assert value.requires_grad == (name == "loss"), name


def test_baselines_are_returned_with_the_losses():
    model, clip = toy_model().eval(), toy_clip()
    compared, plain = model.baselines(clip), model(clip)
    assert set(compared) - set(plain) == {
        f"{kind}_{t}" for kind in ("zero", "mean") for t in ("rgb", "depth", "psnr", "abs_rel", "delta")
    }
    for name in plain:
        torch.testing.assert_close(compared[name], plain[name].detach(), equal_nan=True)
    assert not any(value.requires_grad for value in compared.values())
    nothing = model.renderer(torch.zeros(1, 16, 3, 12, 16), torch.zeros(1, 1, 3), torch.tensor([[[1.0, 0, 0]]]))
    assert nothing.rgb.isfinite().all()


# --- construction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "patch", "strides"),
    [
        ("convnext_atto", 32, (4, 8, 16, 32)),
        ("regnety_002", 32, (4, 8, 16, 32)),
        ("test_efficientnet", 32, (4, 8, 16, 32)),
        ("test_vit", 32, (16,)),
    ],
)
def test_any_timm_model_with_a_masked_forward_works(encoder, patch, strides):
    """A step trains all parameters but a head's, and hidden pixels have no influence."""
    torch.manual_seed(0)
    model = MIM4D(toy_config(encoder=encoder))
    assert (model.patch, model.pyramid.strides) == (patch, strides)
    clip = toy_clip()
    model(clip)["loss"].backward()
    assert not [name for name, p in model.encoder.named_parameters() if p.requires_grad and p.grad is None]
    hidden = ~model.visible(clip).repeat_interleave(patch, 3).repeat_interleave(patch, 4)[:, :, :, None]
    other = replace(clip, images=torch.where(hidden, 255 - clip.images, clip.images))
    assert torch.equal(model.encode(clip), model.encode(other))


def test_a_model_that_mixes_patches_is_refused_by_name():
    with pytest.raises(ValueError, match="SwinTransformer has no masked forward"):
        MIM4D(toy_config(encoder="swin_tiny_patch4_window7_224"))


@pytest.mark.parametrize(("changes", "message"), [(dict(frames=0), "frames"), (dict(mask_ratio=1.0), "mask_ratio")])
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        toy_config(**changes)


def test_images_are_normalised_as_the_encoder_declares():
    model, seen = toy_model(augment=False), []
    model.encoder.forward_masked = lambda images, visible, **_: (
        seen.append(images)
        or [torch.zeros(len(images), c, 64 // s, 96 // s) for c, s in ((40, 4), (80, 8), (160, 16), (320, 32))]
    )
    clip = toy_clip()
    model.encode(clip)
    config = model.encoder.pretrained_cfg
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(seen[0], ((clip.images / 255 - mean) / std).flatten(0, 2))


def test_checkpoints_contain_only_parameters():
    """Grids, means and tables follow from the config."""
    model = toy_model()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("encoder", ["mim4d_convnext_atto", "mim4d_convnext_tiny"])
@pytest.mark.parametrize("stages", [(3,), (1, 2, 3)])
def test_other_encoders_and_strides(encoder, stages):
    neck = replace(toy_config().neck, stages=stages)
    model = toy_model(encoder=encoder, neck=neck, frames=1)
    with torch.no_grad():
        assert model.encode(toy_clip(1, 1, 1, (64, 64))).shape == (1, 1, 16, 3, 12, 16)


CONSISTENCY_ALONE = LossConfig(rgb=0.0, depth=0.0, consistency=4.0)
CAMERAS_ALONE = LossConfig(rgb=1.0, depth=10.0, consistency=4.0, rendered_gradient=0.0)


def test_the_loss_is_the_sum_of_its_terms():
    config = LossConfig(rgb=2.0, depth=3.0, consistency=4.0, lift_depth=0.5)
    model, clip = toy_model(loss=config), toy_clip()
    terms, values = model.terms(clip), model(clip)
    assert set(terms) == {*ALL_LOSSES, "consistency", "lift_depth"}
    torch.testing.assert_close(sum(terms.values()), values["loss"])
    torch.testing.assert_close(terms["consistency"], 4 * values["consistency"].mean())
    twice = toy_model(loss=replace(config, consistency=8.0, lift_depth=1.0)).terms(clip)
    for name, factor in {"consistency": 2, "lift_depth": 2, "direct_rgb": 1}.items():
        torch.testing.assert_close(twice[name], factor * terms[name])


def test_rendering_may_be_kept_from_the_encoder(monkeypatch):
    """Encoder, neck and depth network then get the gradient of consistency alone; the rest still learns."""
    clip = toy_clip()
    _, together = step(toy_model(supervision="rgb", loss=CAMERAS_ALONE), clip)
    monkeypatch.setattr(MIM4D, "encoded_frames", lambda model, clip: slice(None))  # as with rendering
    _, alone = step(toy_model(supervision="rgb", loss=CONSISTENCY_ALONE), clip)
    assert alone
    assert all(name.startswith(("encoder.", "neck.", "lift.depth_net.")) for name in alone)
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, msg=name)
    kept = {name: gradient for name, gradient in together.items() if name not in alone}
    assert {name.split(".")[0] for name in kept} == {"lift", "temporal", "renderer"}
    assert all(gradient.abs().max() > 0 for name, gradient in kept.items() if name.startswith("lift."))


@pytest.mark.parametrize(("frames", "middle"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_consistency_alone_trains_on_the_middle_frame(frames, middle):
    """Its neighbours are only looked at: they teach it what they show, and are not encoded."""
    model = toy_model(supervision="rgb", frames=frames, loss=CONSISTENCY_ALONE)
    clip, encoded = toy_clip(clips=2, frames=frames), []
    forward_masked = model.encoder.forward_masked
    model.encoder.forward_masked = lambda images, *rest, **more: (
        encoded.append(len(images)) or forward_masked(images, *rest, **more)
    )
    assert model.encoded_frames(clip) == slice(middle, middle + 1)
    model(clip)
    model.eval()(clip)
    assert encoded == [2 * 2, 2 * frames * 2]  # clips and cameras; in evaluation all frames count
    if frames > 1:
        other = replace(clip, images=clip.images.clone())
        other.images[:, middle - 1] = 0  # a source
        assert model.train()(other)["loss"] != model(clip)["loss"]


def test_a_share_of_the_rendering_gradient_reaches_the_encoder():
    clip = toy_clip()

    def gradient(share):
        loss = LossConfig(rgb=1.0, depth=0.0, rendered_gradient=share)
        return step(toy_model(supervision="rgb", loss=loss), clip)[1]

    whole, tenth = gradient(1.0), gradient(0.1)
    for name, found in tenth.items():
        share = 0.1 if name.startswith(("encoder.", "neck.", "lift.depth_net.")) else 1.0
        torch.testing.assert_close(found, share * whole[name], rtol=1e-3, atol=1e-6, msg=name)


def test_without_lidar_rendering_learns_the_depth_of_the_lift():
    """It is no measurement, so it is not reported as an error of depth."""
    model, clip = toy_model(supervision="rgb", loss=CAMERAS_ALONE), toy_clip()
    terms, values = model.terms(clip), model(clip)
    assert terms["direct_depth"] > 0
    assert terms["temporal_depth"] > 0
    assert not [name for name in values if "depth" in name or "abs_rel" in name or "delta" in name]
    colour = toy_model(supervision="rgb", loss=LossConfig(rgb=1.0, depth=10.0))  # no depth to learn
    assert "direct_depth" not in colour.terms(clip)


def test_held_out_clips_are_scored_against_lidar_that_did_not_supervise():
    model, clip = toy_model(supervision="rgb", loss=CAMERAS_ALONE), toy_clip()
    assert not [name for name in model(clip) if "lift" in name]
    model.eval()
    values = model.baselines(clip)
    for name in ("lift_depth", "lift_abs_rel", "lift_delta", "direct_depth", "temporal_delta"):
        assert values[name].isfinite().all()
    blind = replace(clip, points=clip.points[:, :, :0], num_points=torch.zeros_like(clip.num_points))
    assert not [name for name in model.baselines(blind) if "lift" in name]
    assert model.baselines(blind)["direct_depth"].isnan().all()


@pytest.mark.parametrize("flow", [0.0, 1.0])
def test_without_rendering_nothing_waits_for_a_gradient(flow):
    """What gets none must not be trained: on several processes a step would wait for it."""
    model = toy_model(supervision="rgb", loss=LossConfig(rgb=0.0, depth=0.0, consistency=1.0, flow=flow))
    _, gradients = step(model, toy_clip())
    assert set(gradients) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


WITH_FLOW = LossConfig(rgb=0.0, depth=0.0, consistency=1.0, flow=2.0)


def test_the_flow_has_its_own_term_and_measure():
    model, clip = toy_model(supervision="rgb", loss=WITH_FLOW), toy_clip()
    terms, values = model.terms(clip), model.baselines(clip)
    assert set(terms) == {"consistency", "flow"}
    torch.testing.assert_close(terms["flow"], 2 * values["flow"].mean())
    torch.testing.assert_close(values["flow"], values["zero_flow"])  # nothing moves at the start of training


def test_the_flow_touches_neither_encoder_nor_depth():
    """Its gradient trains its head and the modules that make volumes, all of which are discarded."""
    model, clip = toy_model(supervision="rgb", loss=WITH_FLOW), toy_clip()
    torch.nn.init.normal_(model.flow.last.weight)
    model.terms(clip)["flow"].backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(name.startswith(("flow.", "lift.context.", "lift.refine.")) for name in reached)
    assert all(parameter.grad.abs().max() > 0 for name, parameter in model.named_parameters() if name in reached)


def test_without_a_weight_there_is_no_flow():
    """Checkpoints of runs without it stay valid, and its weights change no others."""
    without, with_flow = (toy_model(supervision="rgb", loss=replace(WITH_FLOW, flow=weight)) for weight in (0.0, 1.0))
    assert without.flow is None
    mine, other = without.state_dict(), with_flow.state_dict()
    assert {name.split(".")[0] for name in other.keys() - mine.keys()} == {"flow"}
    assert all(torch.equal(other[name], value) for name, value in mine.items())


def test_a_flow_needs_depth_and_two_frames():
    with pytest.raises(ValueError, match=r"^loss\.flow = 1\.0 needs loss\.consistency or loss\.lift_depth above 0"):
        LossConfig(flow=1.0)
    with pytest.raises(ValueError, match=r"^loss\.flow = 2\.0 needs frames of 2 or more, got 1$"):
        toy_config(frames=1, loss=WITH_FLOW)


@pytest.mark.parametrize("loss", [replace(CAMERAS_ALONE, other_rays=1.0), WITH_FLOW])
def test_a_camera_step_never_waits_for_the_device(loss):
    model, clip = toy_model(supervision="rgb", loss=loss), toy_clip()
    model(clip)["loss"].backward()  # constants are copied once
    assert waits(lambda: model(clip)["loss"].backward()) == []


def test_depth_does_not_collapse_in_200_steps():
    """From cameras alone, on a scene without obstacles: the lift's depth is right, and the rendered one follows it."""
    clip, depth = street(frames=3)
    torch.manual_seed(0)
    model = toy_model(
        supervision="rgb", loss=CAMERAS_ALONE, mask_ratio=0.0, neck=NeckConfig(stages=(1, 2, 3), channels=32)
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for number in range(200):
        optimizer.zero_grad()
        model(replace(clip, seeds=torch.tensor([number])))["loss"].backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = model.lift.log_depth(model.lift.depth(model.images(clip), clip))  # [1, 3, 1, 8, 12]
        target = torch.full((1, 1), 2)
        volume = pick(model.encode(clip), target)
        rays = choose_rays(clip, target, 64, model.config.grid, "rgb")
        exact = with_depth_of_lift(rays, depth.log(), clip, target, model.config.grid)
        rendered = model.renderer(volume, rays.origins, rays.directions)
    truth = F.avg_pool2d(depth.flatten(0, 2).log()[:, None], 8).view_as(found)
    ground = (found - truth)[..., 5:, 1:-1]  # seen from other frames, and near
    assert (ground.abs() < 0.4).float().mean() > 0.7
    assert found.std() > 0.2
    assert rendered.opacity.mean() > 0.5
    ratio = (rendered.depth / exact.depth)[exact.has_depth & rendered.hit]
    assert ratio.log().abs().lt(math.log(1.25)).float().mean() > 0.9


# --- rays of another frame -------------------------------------------------------------------------------------------


def scaled_street(clip: Clip, frame: int, factor: float, grid: VoxelGrid) -> torch.Tensor:
    """The volume [4, Z, Y, X] of one frame of a street at ``factor`` times its distance from the frame's camera.

    The camera sees the same image whatever the factor.
    """
    camera = clip.ego_from_camera[0, frame, 0, :3, 3]
    points = camera + (grid.centers(camera).flatten(0, 2) - camera) / factor
    points = transform(clip.current_from_ego[0, frame], points).view(*grid.shape, 3)  # in the street as it is
    distance = factor * torch.minimum(points[..., 2], WALL - points[..., 0])
    logits = texture(points).clamp(0.02, 0.98).logit()
    return torch.cat([distance[..., None], logits], dim=-1).permute(3, 0, 1, 2)


def with_lidar(clip: Clip, depth: torch.Tensor) -> Clip:
    """A street whose LiDAR points lie at the centres of every eighth pixel in rows and columns."""
    v, u = torch.meshgrid(torch.arange(4, 64, 8), torch.arange(4, 96, 8), indexing="ij")
    pixels = torch.stack([u, v], dim=-1).flatten(0, 1) + 0.5
    points = unproject(clip.intrinsics, pixels, depth[..., v, u].flatten(3))  # [1, T, V, P, 3]
    points = transform(clip.ego_from_camera, points).flatten(2, 3)
    return replace(clip, points=points, num_points=torch.full((1, clip.num_frames), points.shape[2]))


@pytest.mark.parametrize("depth_from", ["nothing", "lift", "lidar"])
def test_rays_of_another_frame_find_the_depth(depth_from):
    """Colour along a frame's own rays fits at any depth; along those of another frame it fits at the true one alone."""
    clip, depth = street()
    clip = with_lidar(clip, depth) if depth_from == "lidar" else clip
    grid = VoxelGrid(x=(-6, 18), y=(-10, 10), z=(-2, 8), voxel=(0.4, 0.4, 0.4))
    model = toy_model(
        supervision="rgbd" if depth_from == "lidar" else "rgb",
        loss=LossConfig(rgb=1.0, depth=1.0, other_rays=1.0, consistency=float(depth_from == "lift")),
        grid=grid,
        lift=LiftConfig(depth_range=(1, 29), depth_step=2, depth_channels=32, channels=CHANNELS),
        render=RenderConfig(rays_per_view=90),
    )
    model.renderer = make_renderer(grid=grid)
    targets = torch.tensor([[2, 0]])
    errors: dict[str, dict[float, float]] = defaultdict(dict)
    for factor in (0.6, 0.8, 0.9, 1.0, 1.1, 1.25):
        volumes = torch.stack([scaled_street(clip, frame, factor, grid) for frame in (2, 0)])
        with torch.no_grad():
            terms, _ = model.score({"direct": volumes}, depth.log(), clip, targets)
        for name, term in terms.items():
            errors[name][factor] = float(term)
    kinds = {"rgb"} if depth_from == "nothing" else {"rgb", "depth"}
    assert set(errors) == {f"{rays}_{kind}" for rays in ("direct", "other") for kind in kinds}
    for kind in kinds:
        other = errors[f"other_{kind}"]
        assert min(other, key=other.__getitem__) == 1, other
        assert other[1.0] < 0.6 * min(other[0.9], other[1.1]), other
    assert max(errors["direct_rgb"].values()) < 0.25 * errors["other_rgb"][0.6]
    assert errors["direct_rgb"][1.1] < errors["direct_rgb"][1.0]


def test_rays_of_another_frame_are_a_fraction_of_the_direct_terms():
    clip = toy_clip()

    def terms(other_rays):
        return toy_model(loss=LossConfig(rgb=2.0, depth=3.0, other_rays=other_rays)).terms(clip)

    without, half, whole = terms(0.0), terms(0.5), terms(1.0)
    assert set(without) == set(ALL_LOSSES)
    assert set(half) == {*ALL_LOSSES, "other_rgb", "other_depth"}
    for name, term in half.items():
        torch.testing.assert_close(term, without[name] if name in without else whole[name] / 2)
    values = toy_model(loss=LossConfig(rgb=2.0, depth=3.0, other_rays=0.5))(clip)
    torch.testing.assert_close(values["loss"], sum(half.values()))
    torch.testing.assert_close(half["other_rgb"], 0.5 * 2.0 * values["other_rgb"].mean())
    torch.testing.assert_close(half["other_depth"], 0.5 * 3.0 * values["other_depth"].mean() / 24)


@pytest.mark.parametrize(("other_rays", "renderings"), [(0.0, 2), (0.5, 3)])
def test_rays_of_another_frame_cost_one_rendering(other_rays, renderings, monkeypatch):
    model, calls = toy_model(loss=LossConfig(other_rays=other_rays)), []
    model.renderer.register_forward_hook(lambda *_: calls.append(1))
    model(toy_clip())
    assert len(calls) == renderings


def test_rays_of_another_frame_train_the_encoder():
    model = toy_model(loss=LossConfig(rgb=2.0, depth=3.0, other_rays=0.5))
    terms = model.terms(toy_clip())
    weights = [p for p in model.encoder.parameters() if p.requires_grad]
    for name in ("other_rgb", "other_depth"):
        gradient = torch.autograd.grad(terms[name], weights, retain_graph=True, allow_unused=True)
        assert sum(float(part.abs().sum()) for part in gradient if part is not None) > 0
    assert all(p.grad is None for p in model.temporal.parameters())
    temporal = torch.autograd.grad(
        terms["other_rgb"] + terms["other_depth"], list(model.temporal.parameters()), allow_unused=True
    )
    assert all(part is None for part in temporal)


@pytest.mark.parametrize("training", [True, False])
def test_rays_of_another_frame_in_a_batch(training):
    model = toy_model(loss=LossConfig(rgb=2.0, depth=3.0, other_rays=0.5)).train(training)
    clips = [toy_clip(1, seed=1), ragged(2), ragged(3)]
    together = model(Clip.collate(clips))
    alone = [model(clip) for clip in clips]
    for name in ("other_rgb", "other_depth", "other_psnr", "other_abs_rel", "other_delta"):
        expected = torch.cat([values[name] for values in alone])
        torch.testing.assert_close(together[name], expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together["loss"], sum(values["loss"] for values in alone) / 3, rtol=1e-4, atol=1e-5)


def test_a_single_frame_has_no_rays_of_another():
    loss = LossConfig(other_rays=1.0)
    assert set(toy_model(frames=1, loss=loss).terms(toy_clip(frames=1))) == set(LOSSES["direct"])

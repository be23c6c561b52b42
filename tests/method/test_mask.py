"""The masks: which patches are hidden, and which frames are rebuilt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim4d.method.mask import count_visible, draw_others, draw_targets, visible_patches


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    rows=st.integers(1, 15),
    columns=st.integers(1, 25),
    share=st.floats(0, 1),
    frames=st.integers(1, 4),
    cameras=st.integers(1, 6),
)
def test_every_image_has_the_same_number_of_visible_patches(seed, rows, columns, share, frames, cameras):
    visible = visible_patches(torch.tensor([seed]), frames, cameras, (32 * rows, 32 * columns), share)
    assert visible.shape == (1, frames, cameras, rows, columns)
    assert visible.dtype == torch.bool
    count = visible.sum((-1, -2))
    assert (count == count.flatten()[0]).all()
    assert int(count.flatten()[0]) == count_visible((32 * rows, 32 * columns), share)
    wanted = (1 - share) * rows * columns
    assert abs(int(count.flatten()[0]) - max(1, wanted)) <= 0.5 + 1e-9


def test_the_published_setting():
    """800 x 480 pixels, mask ratio 0.3: 375 patches, of which 262 are visible."""
    visible = visible_patches(torch.arange(2), 4, 6, (480, 800), 0.3)
    assert visible.shape == (2, 4, 6, 15, 25)
    assert (visible.sum((-1, -2)) == round(0.7 * 375)).all()


def test_none_hidden_and_all_but_one_hidden():
    assert visible_patches(torch.tensor([1]), 1, 1, (64, 64), 0.0).all()
    assert visible_patches(torch.tensor([1]), 2, 3, (64, 96), 0.999).sum((-1, -2)).eq(1).all()


def test_masks_differ_between_seeds_frames_and_cameras():
    visible = visible_patches(torch.arange(8), 3, 2, (128, 192), 0.5)
    patterns = {tuple(image.tolist()) for image in visible.flatten(0, 2).flatten(1)}
    assert len(patterns) == 8 * 3 * 2


def test_the_mask_of_a_seed_does_not_depend_on_the_batch():
    alone = visible_patches(torch.tensor([5]), 2, 3, (128, 64), 0.3)
    among = visible_patches(torch.tensor([7, 5, 9]), 2, 3, (128, 64), 0.3)
    assert torch.equal(alone[0], among[1])


def test_every_patch_is_hidden_equally_often():
    visible = visible_patches(torch.arange(3000), 1, 2, (64, 96), 0.3)
    share = visible.double().mean((0, 1, 2))
    keep = round(0.7 * 6) / 6
    assert (share - keep).abs().max() < 5 * (keep * (1 - keep) / 6000) ** 0.5


def test_neighbouring_patches_are_hidden_independently():
    """Up to the covariance of draws without replacement, which the fixed number of patches causes."""
    hidden = (~visible_patches(torch.arange(4000), 1, 1, (64, 128), 0.5)).flatten(1).double()  # [4000, 8]
    correlation = torch.corrcoef(hidden.T)
    off = correlation[~torch.eye(8, dtype=torch.bool)]
    assert (off + 1 / 7).abs().max() < 5 * 4000**-0.5


def test_a_single_frame_is_its_own_target():
    assert draw_targets(torch.arange(3), 1).tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("frames", [2, 3, 4, 7])
def test_targets_are_the_current_frame_and_a_uniformly_drawn_other(frames):
    clips = 6000
    targets = draw_targets(torch.arange(clips), frames)
    assert targets.shape == (clips, 2)
    assert targets.dtype == torch.int64
    assert (targets[:, 0] == frames - 1).all()
    counts = torch.bincount(targets[:, 1], minlength=frames)
    assert counts[-1] == 0
    share = 1 / (frames - 1)
    assert (counts[:-1] / clips - share).abs().max() <= 5 * (share * (1 - share) / clips) ** 0.5


def test_targets_do_not_depend_on_the_batch():
    assert torch.equal(draw_targets(torch.tensor([3, 8, 11]), 4)[1:2], draw_targets(torch.tensor([8]), 4))


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_every_other_frame_is_drawn_equally_often(frames):
    clips = 3000
    targets = torch.arange(clips)[:, None] % frames
    others = draw_others(torch.arange(clips), targets.expand(-1, 2), frames)
    assert others.shape == (clips, 2)
    counts = torch.zeros(frames, frames)
    for target, drawn in zip(targets[:, 0].tolist(), others.tolist(), strict=True):
        for other in drawn:
            counts[target, other] += 1
    assert (counts.diagonal() == 0).all()
    expected = 2 * clips / frames / (frames - 1)
    assert ((counts - expected) * (1 - torch.eye(frames))).abs().max() < 5 * expected**0.5


def test_the_other_frames_of_a_clip_do_not_depend_on_its_batch():
    seeds, targets = torch.tensor([3, 8, 11]), torch.tensor([[3, 0], [3, 2], [3, 1]])
    assert torch.equal(draw_others(seeds, targets, 4)[1:2], draw_others(seeds[1:2], targets[1:2], 4))

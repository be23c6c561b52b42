from dataclasses import replace

import pytest
import torch

from mim4d.clip import Clip
from mim4d.geometry import make_pose, rotation_from_quaternion, transform


def make_clip(frames=3, cameras=2, points=5, seed=0) -> Clip:
    """A clip of noise that is valid."""
    generator = torch.Generator().manual_seed(seed)

    def poses(*shape):
        rotation = rotation_from_quaternion(torch.randn(*shape, 4, generator=generator))
        return make_pose(rotation, torch.randn(*shape, 3, generator=generator))

    current_from_ego = poses(1, frames)
    current_from_ego[:, -1] = torch.eye(4)
    intrinsics = torch.tensor([[50.0, 0, 32], [0, 50, 16], [0, 0, 1]]).expand(1, frames, cameras, 3, 3)
    return Clip(
        images=torch.randint(0, 256, (1, frames, cameras, 3, 32, 64), generator=generator, dtype=torch.uint8),
        intrinsics=intrinsics.clone(),
        ego_from_camera=poses(1, frames, cameras),
        current_from_ego=current_from_ego,
        timestamps=1.5e9 + 0.5 * torch.arange(frames, dtype=torch.float64)[None],
        points=torch.randn(1, frames, points, 3, generator=generator),
        num_points=torch.full((1, frames), points),
        seeds=torch.tensor([seed]),
        names=(f"clip-{seed}",),
        cameras=tuple(f"CAM_{v}" for v in range(cameras)),
    )


def test_a_good_clip_is_valid():
    make_clip().validate()
    make_clip(frames=1, cameras=1, points=0).validate()
    with torch.autocast("cpu", torch.bfloat16):  # bfloat16 matrix products are off by 0.4 %
        make_clip().validate()


def test_sizes():
    clip = Clip.collate([make_clip(seed=s) for s in range(4)])
    assert (clip.batch_size, clip.num_frames, clip.num_cameras, clip.image_size) == (4, 3, 2, (32, 64))


def with_(name, change):
    """A clip with one field changed."""
    clip = make_clip()
    value = getattr(clip, name).clone()
    return replace(clip, **{name: change(value)})


def at(*place, value):
    def change(tensor):
        tensor[place] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: with_("images", lambda x: x.float()), r"Clip.images: expected torch.uint8 .* got torch.float32"),
        (lambda: with_("images", lambda x: x[0]), r"Clip.images: expected \[B, T, V, 3, H, W\] .* got \[3, 2, 3"),
        (lambda: with_("images", lambda x: x[0, 0, 0, 0, 0]), r"Clip.images: expected .* got \[64\]"),
        (lambda: with_("intrinsics", at(0, 1, 1, 0, 2, value=torch.nan)), r"intrinsics: must be finite, .* \(CAM_1\)"),
        (lambda: with_("intrinsics", at(0, 1, 0, 2, 2, value=0)), r"the last row must be 0 0 1"),
        (lambda: with_("timestamps", at(0, 1, value=torch.nan)), r"Clip.timestamps: must be finite"),
        (lambda: with_("ego_from_camera", at(0, 0, 0, 3, 0, value=5)), r"not a rigid .*last row must be 0 0 0 1"),
        (lambda: with_("intrinsics", lambda x: x[:, :2]), r"Clip.intrinsics: expected .*\[1, 3, 2, 3, 3\]"),
        (lambda: with_("intrinsics", at(0, 1, 0, 0, 0, value=-1)), r"focal lengths must be positive"),
        (lambda: with_("ego_from_camera", lambda x: x.double()), r"Clip.ego_from_camera: expected torch.float32"),
        (lambda: with_("ego_from_camera", at(0, 0, 0, 0, 0, value=2)), r"Clip.ego_from_camera: not a rigid transform"),
        (lambda: with_("current_from_ego", at(0, 0, 0, 3, value=torch.nan)), r"current_from_ego: not a rigid"),
        (lambda: with_("current_from_ego", at(0, -1, 0, 3, value=0.5)), r"identity for the last frame"),
        (lambda: with_("timestamps", lambda x: x.flip(1)), r"the oldest first"),
        (lambda: with_("num_points", at(0, 0, value=6)), r"0 .. 5, got up to 6"),
        (lambda: with_("points", at(0, 2, 4, 1, value=torch.nan)), r"Clip.points: valid points must be finite"),
        (lambda: replace(make_clip(), names=()), r"expected 1 names and 2 cameras, got 0 and 2"),
        (lambda: replace(make_clip(), cameras=("CAM_0",)), r"expected 1 names and 2 cameras, got 1 and 1"),
    ],
)
def test_a_broken_clip_is_named(broken, message):
    with pytest.raises(ValueError, match=message):
        broken().validate()


def test_nan_in_the_padding_is_allowed():
    clip = with_("points", at(0, 2, 4, 1, value=torch.nan))
    replace(clip, num_points=torch.full((1, 3), 4)).validate()


def test_collate_pads_ragged_lidar():
    short, long = make_clip(points=3, seed=1), make_clip(points=7, seed=2)
    both = Clip.collate([short, long])
    both.validate()
    assert both.names == ("clip-1", "clip-2")
    assert both.points.shape == (2, 3, 7, 3)
    assert both.points_valid.sum(-1).tolist() == [[3] * 3, [7] * 3]
    torch.testing.assert_close(both.points[0, :, :3], short.points[0])
    torch.testing.assert_close(both.points[both.points_valid][-21:], long.points[0].flatten(0, 1))
    assert torch.equal(both.images, torch.cat([short.images, long.images]))
    assert both.seeds.tolist() == [1, 2]


def test_collate_with_and_without_lidar():
    both = Clip.collate([make_clip(points=0), make_clip(points=4)])
    assert both.num_points.tolist() == [[0] * 3, [4] * 3]


def test_collate_refuses_clips_that_differ():
    with pytest.raises(ValueError, match=r"differ in num_frames: 3 in clip-0, 2 in clip-7"):
        Clip.collate([make_clip(), make_clip(frames=2, seed=7)])
    with pytest.raises(ValueError, match="differ in cameras"):
        Clip.collate([make_clip(), make_clip(cameras=3)])


def test_times_are_relative_to_the_current_frame():
    torch.testing.assert_close(make_clip().times, torch.tensor([[-1.0, -0.5, 0.0]]))


def test_source_from_target_maps_points_between_frames():
    clips = Clip.collate([make_clip(seed=s) for s in range(2)])
    target = torch.tensor([[0], [2]])
    source = torch.tensor([[[1, 2]], [[0, 1]]])
    relative = clips.source_from_target(target, source)  # [B, K, S, 4, 4]
    point = torch.tensor([[1.0, 2.0, 3.0]])
    for b in range(2):
        in_current = transform(clips.current_from_ego[b, target[b, 0]], point)
        for s in range(2):
            # Through the source frame the point must arrive at the same place.
            in_source = transform(relative[b, 0, s], point)
            back = transform(clips.current_from_ego[b, source[b, 0, s]], in_source)
            torch.testing.assert_close(back, in_current, atol=1e-5, rtol=0)


def test_some_frames_of_a_clip():
    clip = make_clip(frames=3)
    middle = clip.at(slice(1, 2))
    assert middle.num_frames == 1
    assert torch.equal(middle.images, clip.images[:, 1:2])
    assert torch.equal(middle.current_from_ego, clip.current_from_ego[:, 1:2])
    assert torch.equal(middle.num_points, clip.num_points[:, 1:2])
    assert torch.equal(middle.seeds, clip.seeds)
    assert middle.names == clip.names


def test_first_is_the_first_clip():
    clips = Clip.collate([make_clip(seed=s) for s in range(2)])
    first = clips.first()
    first.validate()
    assert first.names == ("clip-0",)
    assert torch.equal(first.images, make_clip(seed=0).images)


def test_to_moves_every_tensor():
    clip = make_clip().to("meta")
    assert clip.device.type == "meta"
    assert all(value.device.type == "meta" for value in vars(clip).values() if isinstance(value, torch.Tensor))
    assert clip.names == ("clip-0",)

"""Augmentation: a mirrored clip is as true as the clip, and light changes nothing but what the encoder sees."""

from dataclasses import replace

import torch
from PIL import Image, ImageEnhance

from mim4d.clip import Clip
from mim4d.geometry import invert, project, transform
from mim4d.method import augment
from mim4d.method.augment import mirror, mirror_half, relight
from mim4d.method.consistency import consistency
from tests.street import street
from tests.toy import toy_clip, toy_model


def skewed_clip() -> Clip:
    """Two clips whose principal point is off the middle and whose pixels are not square to each other."""
    clip = toy_clip(clips=2, frames=3, cameras=3)
    clip.intrinsics[..., 0, 1] = 1.5
    clip.intrinsics[..., 0, 2] += 7
    return clip


def pixels_of_points(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    points = transform(invert(clip.ego_from_camera), clip.points[:, :, None])  # [B, T, V, P, 3]
    return project(clip.intrinsics, points)  # [B, T, V, P, 2], [B, T, V, P]


def test_lidar_points_appear_on_the_other_side_of_mirrored_images():
    clip = skewed_clip()
    mirrored = mirror(clip, torch.tensor([True, True]))
    mirrored.validate()
    pixels, depth = pixels_of_points(clip)
    there, same_depth = pixels_of_points(mirrored)
    ahead = depth > 1
    torch.testing.assert_close(same_depth, depth)
    torch.testing.assert_close(there[..., 0][ahead], 96 - pixels[..., 0][ahead], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(there[..., 1][ahead], pixels[..., 1][ahead], rtol=1e-4, atol=1e-2)
    assert torch.equal(mirrored.images, clip.images.flip(-1))


def test_a_mirrored_drive_turns_the_other_way():
    clip = toy_clip(clips=1, turn=0.05)
    mirrored = mirror(clip, torch.tensor([True])).current_from_ego
    torch.testing.assert_close(mirrored[..., :3, :3], clip.current_from_ego[..., :3, :3].mT)  # rotations about z
    expected = clip.current_from_ego[..., :3, 3] * torch.tensor([1.0, -1.0, 1.0])
    torch.testing.assert_close(mirrored[..., :3, 3], expected)


def test_the_depth_of_a_mirrored_street_is_as_consistent():
    clip, depth = street(cameras=2)
    log_depth = depth.log()
    mirrored = mirror(clip, torch.ones(len(depth), dtype=torch.bool))
    torch.testing.assert_close(
        consistency(log_depth.flip(-1), mirrored), consistency(log_depth, clip), rtol=1e-3, atol=0
    )
    images_alone = replace(clip, images=clip.images.flip(-1))  # the geometry of another street
    assert consistency(log_depth.flip(-1), images_alone) > 1.2 * consistency(log_depth, clip)


def test_two_mirrors_show_the_clip_itself_and_clips_that_are_not_chosen_stay():
    clip = skewed_clip()
    chosen = torch.tensor([True, False])
    once = mirror(clip, chosen)
    assert not torch.equal(once.images[0], clip.images[0])
    for name, tensor in clip._tensors().items():
        torch.testing.assert_close(once._tensors()[name][1], tensor[1], rtol=0, atol=0)
        torch.testing.assert_close(mirror(once, chosen)._tensors()[name], tensor, rtol=0, atol=1e-5)


def test_half_of_all_clips_are_mirrored():
    clip = toy_clip(clips=400, frames=1, cameras=1, size=(32, 32), points=1)
    mirrored = (mirror_half(clip).images != clip.images).flatten(1).any(1)
    assert 160 < mirrored.sum() < 240
    assert torch.equal(mirror_half(clip.first()).images[0], mirror_half(clip).images[0])  # whatever the batch


def test_light_changes_as_pillow_changes_it():
    """Brightness, then saturation, then contrast, by the factors of the seed."""
    clip = toy_clip(clips=1, frames=1, cameras=2, size=(32, 64))
    clip = replace(clip, images=clip.images // 2 + 40)  # nothing gets as bright as 255
    found = relight(clip.images, clip.seeds)[0, 0]
    factors = 1 + augment.LIGHT * (2 * augment.uniform(clip.seeds, augment.Stream.LIGHT, (1, 2, 3)) - 1)
    for image, result, (brightness, contrast, saturation) in zip(clip.images[0, 0], found, factors[0, 0], strict=True):
        expected = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = ImageEnhance.Brightness(expected).enhance(float(brightness))
        expected = ImageEnhance.Color(expected).enhance(float(saturation))
        expected = Image.blend(Image.new("RGB", expected.size, (127, 127, 127)), expected, float(contrast))
        values = torch.tensor(list(expected.getdata())).T.reshape(3, 32, 64)
        # Pillow cuts off fractions after every step, and the grey's; factors of up to 1.2 enlarge them.
        assert (result - values).abs().max() < 1.2**2 + 1.2 + 1 + 0.1


def test_light_stays_within_its_bounds():
    images = torch.zeros(50, 1, 1, 3, 4, 4)
    images[..., :2] = 255
    changed = relight(images, torch.arange(50))
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert changed.flatten(1).std(0).max() > 5  # not all in the same light


def test_only_training_sees_augmented_clips():
    model = toy_model(mask_ratio=0.0)
    clip = toy_clip(clips=1)
    plain = (clip.images.flatten(0, 2).float() - model.mean) / model.std
    assert not torch.equal(model.normalised(clip), plain)
    assert torch.equal(model.eval().normalised(clip), plain)
    assert torch.equal(toy_model(augment=False).normalised(clip), plain)

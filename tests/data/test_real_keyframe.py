"""Real pixels, LiDAR, calibration and poses, compared with what the devkit makes of them."""

import numpy as np
import pytest
import torch
from nuscenes.nuscenes import NuScenes

from mim4d.data import DataConfig, NuScenesClips
from mim4d.data.pictures import lidar_on_images
from mim4d.geometry import invert, project, transform


@pytest.fixture
def dataset(real_keyframe):
    return NuScenesClips(
        DataConfig(
            dataroot=str(real_keyframe), version="v1.0-mini", split="mini_train", frames=3, image_size=(896, 1600)
        )
    )


def test_reads(dataset):
    clip = dataset[0]
    clip.validate()
    assert clip.images.shape == (1, 3, 6, 3, 896, 1600)
    assert (clip.num_points > 25000).all()  # of 34688; a quarter are the car's own
    torch.testing.assert_close(clip.times, torch.tensor([[-1.0, -0.5, 0.0]]))
    # The same moment again and again: the car stands still between frames, but moves between sensors.
    torch.testing.assert_close(clip.current_from_ego[0, 0], torch.eye(4), atol=1e-5, rtol=0)


def test_lidar_falls_on_the_pixels_the_devkit_says(dataset, real_keyframe):
    devkit = NuScenes("v1.0-mini", dataroot=str(real_keyframe), verbose=False)
    sample = devkit.sample[2]
    clip = dataset[0]
    points = clip.points[0, -1, : clip.num_points[0, -1]]
    for v, camera in enumerate(clip.cameras):
        expected, depths, _ = devkit.explorer.map_pointcloud_to_image(
            sample["data"]["LIDAR_TOP"], sample["data"][camera]
        )
        pixels, depth = project(clip.intrinsics[0, -1, v], transform(invert(clip.ego_from_camera[0, -1, v]), points))
        pixels = pixels + torch.tensor([-0.5, 4 - 0.5])  # its centres are at integers; we cut four rows
        inside = (depth > 1) & (pixels > 1).all(-1) & (pixels[:, 0] < 1599) & (pixels[:, 1] < 899)
        assert inside.sum() == expected.shape[1] > 1000
        np.testing.assert_allclose(pixels[inside], expected[:2].T, atol=0.05)
        np.testing.assert_allclose(depth[inside], depths, atol=1e-3)


def test_picture(dataset, tmp_path):
    clip = dataset[0]
    picture = lidar_on_images(clip)
    assert picture.size == (3 * 1600, 2 * 896)
    drawn = np.asarray(picture)[:896, :1600] != clip.images[0, -1, 0].permute(1, 2, 0).numpy()
    assert 0.005 < drawn.any(-1).mean() < 0.2

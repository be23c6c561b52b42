"""Whatever lies where a file should be: it is read, or named in one line; nothing else comes out."""

import re

import numpy as np
import pytest

from mim4d.data.images import read_image
from mim4d.data.lidar import read_points
from mim4d.errors import BadDataError
from tests.fuzz.files import image_files, lidar_files


def read_or_refuse(read, files, folder):
    read_count = 0
    for number, (name, write) in enumerate(files):
        path = folder / str(number)
        write(path)
        try:
            result = read(path)
        except BadDataError as error:
            what, problem = error.args
            assert str(path) in what, name
            assert problem, name
            assert "\n" not in problem, name
            assert not re.search(r"\b0x", problem), name  # an object's address, not 3000x2000 pixels
            continue
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}") from error
        read_count += 1
        yield name, result
    assert len(files) / 10 < read_count < len(files)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::ResourceWarning")
def test_images(tmp_path):
    def read(path):
        return read_image(path, (72, 128), (64, 128))

    for name, image in read_or_refuse(read, image_files(0, 300), tmp_path):
        assert image.shape == (3, 64, 128), name
        assert image.dtype == np.uint8, name


def test_sweeps(tmp_path):
    for name, points in read_or_refuse(read_points, lidar_files(0, 300), tmp_path):
        assert points.dtype == np.float32, name
        assert points.shape[1:] == (3,), name
        assert np.isfinite(points).all(), name


def test_the_same_seed_makes_the_same_files(tmp_path):
    for make in (image_files, lidar_files):
        first, again, other = make(3, 20), make(3, 20), make(4, 20)
        assert [name for name, _ in first] == [name for name, _ in again] != [name for name, _ in other]

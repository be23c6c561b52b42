"""The strip: the parts of each picture's first row, side by side."""

import numpy as np
from PIL import Image

from benchmarks.evidence.strip import HEADER, strip

WIDTH, HEIGHT = 1350, 999


def picture(path, prediction):
    """Cameras dark, truth red, prediction as given; below the first row white."""
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    image[:333, :772] = 40
    image[:333, 772:1060] = (200, 0, 0)
    image[:333, 1062:] = prediction
    Image.fromarray(image).save(path)
    return path


def test_each_prediction_stands_beside_the_truth(tmp_path):
    colours = {"one": (0, 200, 0), "other": (0, 0, 200)}
    pictures = {title: picture(tmp_path / f"{title}.png", colour) for title, colour in colours.items()}
    strip(pictures, tmp_path / "strip.jpg")
    got = np.asarray(Image.open(tmp_path / "strip.jpg"), int)
    assert got.shape[0] == HEADER + HEIGHT // 3
    middle = got[HEADER + 200]
    for left, colour in zip((300, 900, 1200, 1480), ((40, 40, 40), (200, 0, 0), *colours.values()), strict=True):
        assert np.abs(middle[left] - colour).max() < 12
    assert (got[:HEADER] < 100).any(), "titles"

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from mim4d.data.images import Fit, read_image
from mim4d.errors import BadDataError, UserError
from mim4d.geometry import project

FOCAL = 300.0


def blob_image(path, size, at, spread=6.0):
    """A grey image with a bright spot around a continuous pixel (centres at halves)."""
    v, u = np.mgrid[: size[0], : size[1]] + 0.5
    spot = 220 * np.exp(-((u - at[0]) ** 2 + (v - at[1]) ** 2) / (2 * spread**2))
    Image.fromarray(np.stack([spot] * 3, axis=-1).astype(np.uint8)).save(path, quality=98)


def centre_of(image):
    """The spot's centre of mass, continuous pixels."""
    weights = image[0].astype(float)
    weights[weights < 20] = 0
    v, u = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return (u * weights).sum() / weights.sum(), (v * weights).sum() / weights.sum()


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize(
    ("size", "image_size"),
    [
        ((180, 320), (160, 320)),  # crop alone
        ((180, 320), (64, 160)),  # half-size decoding alone
        ((450, 800), (96, 224)),  # half-size decoding, then a resize
        ((604, 960), (128, 224)),  # quarter size, and rows cut by a fraction
        ((451, 803), (96, 192)),  # sizes that do not divide
        ((100, 170), (128, 288)),  # enlarged
    ],
)
def test_a_point_stays_on_what_it_shows(tmp_path, kind, size, image_size):
    """A spot is drawn where a 3D point projects; after the fit, the fitted intrinsics must point at the spot."""
    point = torch.tensor([[0.1 * size[1] / FOCAL, 0.15 * size[0] / FOCAL, 1.0]], dtype=torch.float64)
    intrinsics = torch.tensor([[FOCAL, 0, size[1] / 2 + 3.7], [0, FOCAL, size[0] / 2 - 1.2], [0, 0, 1]]).double()
    path = tmp_path / f"image.{kind}"
    blob_image(path, size, project(intrinsics, point)[0][0].tolist(), spread=size[1] / 40)

    image = read_image(path, size, image_size)
    expected = project(Fit.of(size, image_size).intrinsics(intrinsics), point)[0][0]
    assert image.shape == (3, *image_size)
    np.testing.assert_allclose(centre_of(image), expected, atol=0.05)


def test_an_image_that_was_scaled_on_disk_keeps_the_calibration_of_the_tables(tmp_path):
    blob_image(tmp_path / "full.jpg", (360, 640), (320, 240), spread=16)
    Image.open(tmp_path / "full.jpg").resize((320, 180)).save(tmp_path / "half.jpg", quality=98)
    full, half = (read_image(tmp_path / f"{name}.jpg", (360, 640), (128, 256)) for name in ("full", "half"))
    np.testing.assert_allclose(centre_of(full), centre_of(half), atol=0.05)


def test_reduced_decoding_looks_like_full_decoding(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (45, 80, 3), dtype=np.uint8)).resize((800, 450))
    noise.save(tmp_path / "image.jpg", quality=95)
    fast = read_image(tmp_path / "image.jpg", (450, 800), (224, 400))
    slow = noise.resize((400, 225), Image.Resampling.BILINEAR).crop((0, 1, 400, 225))
    assert np.abs(fast.astype(int) - np.asarray(slow).transpose(2, 0, 1)).mean() < 3


def test_grey_images_become_rgb(tmp_path):
    Image.new("L", (64, 32), 90).save(tmp_path / "grey.jpg")
    assert (read_image(tmp_path / "grey.jpg", (32, 64), (32, 64)) == 90).all()


def test_too_few_rows_is_the_users_error():
    with pytest.raises(UserError, match=r"images of 1600x900 scaled to 800 wide are 450 high, lower than .* 480"):
        Fit.of((900, 1600), (480, 800))


def broken(tmp_path, kind):
    path = tmp_path / "image.jpg"
    blob_image(path, (90, 160), (80, 45))
    data = path.read_bytes()
    half = len(data) // 2
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "half": data[:half],
                "last bytes": data[:-20],
                "zeros at the end": data[:half] + bytes(half),
                "no image": b"hello",
                "header alone": data[:200],
            }[kind]
        )
    return path


KINDS = ["missing", "empty", "half", "last bytes", "zeros at the end", "no image", "header alone"]


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_image_is_named(tmp_path, monkeypatch, kind, tolerant):
    # Some libraries set this for the whole process: then Pillow fills what is lacking with grey.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    path = broken(tmp_path, kind)
    with pytest.raises(BadDataError) as caught:
        read_image(path, (90, 160), (64, 160))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_proportions_than_in_the_tables_are_named(tmp_path):
    blob_image(tmp_path / "image.jpg", (120, 160), (80, 45))
    with pytest.raises(BadDataError, match=r"the image is 160x120 where the tables say 1600x900"):
        read_image(tmp_path / "image.jpg", (900, 1600), (64, 160))

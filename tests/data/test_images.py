import io
import os
import socket
import struct
import zlib

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mim4d.data import NuScenesClips
from mim4d.data.images import Fit, read_image
from mim4d.data.index import open_index
from mim4d.errors import BadDataError, UserError
from mim4d.geometry import project
from tests.data.roots import VERSION
from tests.data.test_nuscenes import config_of
from tests.reference import png

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
    with pytest.raises(UserError, match=r"1600x900 scaled to a width of 800 have 450 rows, fewer than .* 480"):
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
    with pytest.raises(BadDataError, match=r"the image is 160x120, but the tables say 1600x900"):
        read_image(tmp_path / "image.jpg", (900, 1600), (64, 160))


SIZE = (72, 128)
RAMP = np.linspace(0, 1, SIZE[1]) * np.ones((SIZE[0], 1))
COLOURS = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)  # smooth, so that compression keeps it
).resize(SIZE[::-1])


def read(path):
    return read_image(path, SIZE, (64, 128)).transpose(1, 2, 0).astype(int)


def refusal(path):
    with pytest.raises(BadDataError) as caught:
        read(path)
    what, problem = caught.value.args
    assert str(path) in what
    assert "\n" not in problem
    return problem


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((RAMP * 65535).astype("<u2"), "PNG"),
        ((RAMP * 65535).astype("<u2"), "TIFF"),
        ((RAMP * 65535).astype(">u2"), "TIFF"),
        ((RAMP * 65535).astype("<u2"), "JPEG2000"),
        ((RAMP * 65535).astype(np.int32), "TIFF"),
        ((RAMP * 16383).astype("<u2"), "PNG"),
        ((RAMP * 4095).astype("<u2"), "PNG"),
        ((RAMP * 1023).astype("<u2"), "TIFF"),
        ((RAMP * 255).astype("<u2"), "PNG"),
        (RAMP.astype(np.float32), "TIFF"),
    ],
)
def test_grey_of_more_than_8_bits_keeps_its_levels(tmp_path, values, kind):
    """Pillow's own conversion clips at 255: all white."""
    Image.fromarray(values).save(tmp_path / "image", format=kind)
    expected = np.repeat((RAMP * 255)[8:, :, None], 3, 2)
    np.testing.assert_allclose(read(tmp_path / "image"), expected, atol=1.01)


def test_a_camera_of_12_bits_has_one_scale_by_day_and_by_night(root):
    index = open_index(root, VERSION)
    records = index.records[index.all_rows("CAM_FRONT")]
    for number, record in enumerate(records):  # dark but for the last, which is of another split
        brightness = 4000 if number == len(records) - 1 else 400
        image = Image.fromarray(np.full(record["size"], brightness, "<u2"))
        image.save(root / record["file"].decode(), format="PNG")
    clips = NuScenesClips(config_of(root, cameras=("CAM_FRONT", "CAM_BACK"), frames=1))
    images = clips[0].images[0, 0]
    assert (images[0] == 400 // 16).all()
    assert len(images[1].unique()) > 1  # the other camera is as it was


def test_brighter_than_the_camera_s_scale_is_white(tmp_path):
    Image.fromarray((RAMP * 4095).astype("<u2")).save(tmp_path / "image.png")
    got = read_image(tmp_path / "image.png", SIZE, (64, 128), bits=10)
    np.testing.assert_allclose(got[0, 0], np.minimum(RAMP[0] * 4095 / 4, 255), atol=1.01)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ((RAMP * 65536 * 2).astype(np.int32), "expected integers in 0 .. 65535, found 0 to 131072"),
        ((RAMP * 100 - 50).astype(np.int32), "found -50 to 50"),
        ((RAMP * 255).astype(np.float32), "expected floats in 0 .. 1, found 0 to 255"),
        (np.full(SIZE, np.nan, np.float32), "found nan to nan"),
    ],
)
def test_numbers_that_are_no_brightness_are_named(tmp_path, values, problem):
    Image.fromarray(values).save(tmp_path / "image.tiff")
    assert problem in refusal(tmp_path / "image.tiff")


def test_grey_from_white_to_black_is_named(tmp_path):
    Image.fromarray((RAMP * 65535).astype("<u2")).save(tmp_path / "image.tiff", tiffinfo={262: 0})
    assert "stores white as 0" in refusal(tmp_path / "image.tiff")


@pytest.mark.parametrize(
    ("mode", "kind"),
    [(mode, "TIFF") for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")]
    + [("RGB", kind) for kind in ("PNG", "BMP", "PPM", "JPEG2000")]
    + [(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGBA")],
)
def test_every_mode_shows_the_same_picture(tmp_path, mode, kind):
    stored = COLOURS.convert(mode)
    stored.save(tmp_path / "image", format=kind)
    if (mode, kind) == ("YCbCr", "TIFF") and int(PIL.__version__.partition(".")[0]) < 13:
        assert "cannot be decoded" in refusal(tmp_path / "image")  # older versions of Pillow do not read their own
        return
    tolerance = 2 if mode == "YCbCr" else 0
    expected = np.asarray(stored.convert("RGB"))[8:].astype(int)
    np.testing.assert_allclose(read(tmp_path / "image"), expected, atol=tolerance)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "MPO"])
def test_lossy_formats(tmp_path, kind):
    COLOURS.save(tmp_path / "image", format=kind)
    assert np.abs(read(tmp_path / "image") - np.asarray(COLOURS)[8:]).mean() < 6


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_png_agrees_with_a_slow_reference(tmp_path_factory, data):
    colour, bits = data.draw(
        st.sampled_from(
            [(c, b) for c in png.CHANNELS for b in (1, 2, 4, 8, 16) if b >= 8 or c in (png.GREY, png.PALETTE)]
        ).filter(lambda kind: kind != (png.PALETTE, 16))
    )
    entries = 2 ** min(bits, 4)
    palette = [tuple(data.draw(st.binary(min_size=3, max_size=3))) for _ in range(entries * (colour == png.PALETTE))]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = rng.integers(0, entries if palette else 2**bits, (32, 32, png.CHANNELS[colour])).tolist()
    values[0][0][0] = (entries if palette else 2**bits) - 1  # so that no fewer bits would do
    path = tmp_path_factory.mktemp("png") / "image.png"
    path.write_bytes(png.encode(values, colour, bits, palette))
    got = read_image(path, (32, 32), (32, 32)).transpose(1, 2, 0)
    np.testing.assert_array_equal(got, png.colours(values, colour, bits, palette))


def test_colours_of_12_bits_in_16_are_not_read_as_black(tmp_path):
    values = [[(4095, 2000, 0)] * SIZE[1]] * SIZE[0]
    (tmp_path / "image.png").write_bytes(png.encode(values, png.RGB, 16))
    assert "16 bits per channel" in refusal(tmp_path / "image.png")


def test_lab_is_named(tmp_path):
    COLOURS.convert("LAB").save(tmp_path / "image.tiff")
    assert "colour mode LAB: convert it to RGB" in refusal(tmp_path / "image.tiff")


@pytest.mark.parametrize("kind", ["GIF", "TGA", "ICO", "PCX", "PDF", "EPS"])
def test_other_formats_are_named(tmp_path, kind):
    COLOURS.save(tmp_path / "image.jpg", format=kind)
    assert "mim4d can read (JPEG, PNG, TIFF, WEBP, BMP, PPM, JPEG2000)" in refusal(tmp_path / "image.jpg")


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
def test_a_film_is_named(tmp_path, kind):
    COLOURS.save(tmp_path / "image", format=kind, save_all=True, append_images=[Image.new("RGB", COLOURS.size)])
    assert "expected one image in the file, found 2" in refusal(tmp_path / "image")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_taken_as_they_are_stored(tmp_path, orientation):
    """The calibration belongs to them, whichever way a viewer is told to turn them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    COLOURS.save(tmp_path / "image.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "image.png"), np.asarray(COLOURS)[8:])


def test_a_size_that_only_its_header_has_is_refused_before_decoding(tmp_path, monkeypatch):
    """A file of kilobytes may claim gigabytes; the devkit switches Pillow's guard off."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    buffer = io.BytesIO()
    COLOURS.save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", 128 * 200, 72 * 200)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "image.png").write_bytes(content)
    assert "25600x14400, but the tables say 128x72; it is too large" in refusal(tmp_path / "image.png")


def jpeg(**settings):
    buffer = io.BytesIO()
    COLOURS.save(buffer, "JPEG", quality=90, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("tail", [bytes(3), bytes(5000), b"\xff" * 3000, jpeg(), b"\xff\xd8 and text" * 99])
def test_bytes_behind_the_end_of_a_jpeg_are_ignored(tmp_path, tail, progressive):
    whole = jpeg(progressive=progressive)
    (tmp_path / "plain.jpg").write_bytes(whole)
    (tmp_path / "padded.jpg").write_bytes(whole + tail)
    np.testing.assert_array_equal(read(tmp_path / "padded.jpg"), read(tmp_path / "plain.jpg"))


@pytest.mark.parametrize("tail", [b"", bytes(5000), jpeg(), b"\xff\xd8\xff\xd9"])
def test_a_jpeg_that_was_cut_off_is_refused_whatever_stands_in_its_place(tmp_path, tail):
    whole = jpeg(comment=b"an end marker \xff\xd9 in a segment")
    scan = whole.index(b"\xff\xda") + 14
    for cut in np.linspace(scan, len(whole) - 2, 9).astype(int):
        (tmp_path / "cut.jpg").write_bytes(whole[:cut] + tail)
        assert refusal(tmp_path / "cut.jpg") == "the image is truncated"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"])
@pytest.mark.parametrize("tolerant", [False, True])
def test_other_formats_that_were_cut_off_are_refused(tmp_path, monkeypatch, kind, tolerant):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    buffer = io.BytesIO()
    COLOURS.save(buffer, kind)
    (tmp_path / "image").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) * 2 // 3])
    refusal(tmp_path / "image")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


def test_what_is_not_a_file_is_named_and_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert refusal(tmp_path / "pipe.jpg") == "expected a regular file, found a named pipe"
    (tmp_path / "folder.jpg").mkdir()
    assert refusal(tmp_path / "folder.jpg") == "expected a regular file, found a folder"
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    assert refusal(tmp_path / "device.jpg") == "expected a regular file, found a device"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket.jpg"))
        assert refusal(tmp_path / "socket.jpg") == "expected a regular file, found a socket"
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert "cannot read the file" in refusal(tmp_path / "loop.jpg")
    with (tmp_path / "huge.jpg").open("wb") as huge:
        huge.truncate(5 << 30)
    assert refusal(tmp_path / "huge.jpg") == "expected a file of at most 1.0 GiB, found 5.0 GiB"
    with pytest.raises(BadDataError, match="not a valid file name"):
        read(tmp_path / "a\0b.jpg")


def test_the_same_problem_reads_the_same_each_time(tmp_path):
    """Or it could not be told only once."""
    for content in (b"hello", b"II*\0\x08\0\0\0", b"BM" + bytes(60), b"P6\n128 72\n255\n"):
        (tmp_path / "image.jpg").write_bytes(content)
        problem = refusal(tmp_path / "image.jpg")
        assert "0x" not in problem
        assert problem == refusal(tmp_path / "image.jpg")

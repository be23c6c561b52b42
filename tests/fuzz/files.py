"""Image and LiDAR files as they may be in the wild: whole ones of every kind, and damaged ones. Seeded."""

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.reference import pcd, png

Writer = Callable[[Path], None]
"""Makes something at a path where nothing is yet."""

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "F")
KINDS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000", "GIF", "TGA", "ICO", "MPO", "PCX", "SGI")


def image_files(seed: int, count: int, size: tuple[int, int] = (72, 128)) -> list[tuple[str, Writer]]:
    """Make ``count`` images, of ``size`` (height, width) unless that is what is wrong with them.

    Returns:
        A name that says what each is, and what writes it.
    """
    return [_one(_image, np.random.default_rng((seed, 0, i)), size) for i in range(count)]


def lidar_files(seed: int, count: int) -> list[tuple[str, Writer]]:
    """Make ``count`` sweeps.

    Returns:
        A name that says what each is, and what writes it.
    """
    return [_one(_sweep, np.random.default_rng((seed, 1, i)), None) for i in range(count)]


def _one(make, rng, size):
    if rng.random() < 0.08:
        return _no_file(rng)
    name, content = make(rng, size)
    for _ in range(rng.integers(0, 3)):
        damage, content = _damaged(rng, content)
        name += f", {damage}"
    return name, lambda path: path.write_bytes(content) and None


def _no_file(rng):
    makers = {
        "nothing": lambda path: None,
        "a folder": Path.mkdir,
        "a pipe": os.mkfifo,
        "a device": lambda path: path.symlink_to("/dev/zero"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "an empty file": Path.touch,
    }
    name = _pick(rng, list(makers))
    return name, makers[name]


def _damaged(rng, content):
    """Content after one accident."""
    data = bytearray(content)
    kind = _pick(rng, ["cut", "bytes changed", "header changed", "padded", "zeros inside", "doubled", "part removed"])
    if kind == "cut":
        del data[int(rng.integers(0, len(data) + 1)) :]
    elif kind == "bytes changed" or (kind == "header changed" and data):
        end = len(data) if kind == "bytes changed" else min(len(data), 300)
        for place in rng.integers(0, max(end, 1), rng.integers(1, 9)).tolist():
            data[place : place + 1] = bytes([int(rng.integers(0, 256))])
    elif kind == "padded":
        data += _pick(rng, [bytes(4096), b"\xff" * 100, rng.bytes(50), b"\n"])
    elif kind == "zeros inside":
        start = int(rng.integers(0, len(data) + 1))
        data[start : start + 200] = bytes(len(data[start : start + 200]))
    elif kind == "doubled":
        data *= 2
    else:
        start = int(rng.integers(0, len(data) + 1))
        del data[start : start + int(rng.integers(1, 100))]
    return kind, bytes(data)


def _image(rng, size):
    height, width = _pick(rng, [size] * 8 + [size[::-1], (size[0] * 2, size[1] * 2), (1, 1), (size[0], size[1] + 1)])
    if rng.random() < 0.25:
        return _png(rng, height, width)
    if rng.random() < 0.2:
        dtype = _pick(rng, ["<u2", ">u2", "<i4", "<f4", "u1"])
        values = (rng.random((height, width)) * _pick(rng, [1, 255, 4095, 65535])).astype(dtype)
        kind = _pick(rng, ["TIFF", "PNG"] if dtype in ("<u2", "u1") else ["TIFF"])
        return f"{kind} of {dtype}", _saved(Image.fromarray(values), kind)
    picture = Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize((width, height))
    mode, kind = _pick(rng, MODES), _pick(rng, KINDS)
    try:
        return f"{kind} of mode {mode}", _saved(picture.convert(mode), kind)
    except (OSError, ValueError, KeyError):
        return "JPEG", _saved(picture, "JPEG", progressive=bool(rng.integers(2)))


def _png(rng, height, width):
    colour, bits = _pick(
        rng, [(0, 1), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 4), (4, 8), (4, 16), (6, 8), (6, 16)]
    )
    palette = [tuple(rng.bytes(3)) for _ in range(2**bits)] if colour == png.PALETTE else []
    values = rng.integers(0, 2**bits, (min(height, 64), min(width, 64), png.CHANNELS[colour])).tolist()
    content = bytearray(png.encode(values, colour, bits, palette))
    if rng.random() < 0.3:  # a size that its pixels do not have
        content[16:24] = struct.pack(
            ">II", *_pick(rng, [(width, height), (30000, 16875), (2**31 - 1, 2**31 - 1), (0, 0)])
        )
        content[29:33] = struct.pack(">I", png.zlib.crc32(content[12:29]))
    return f"PNG of colour type {colour}, {bits} bits", bytes(content)


def _saved(image, kind, **settings):
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def _sweep(rng, _):
    count, floats = int(_pick(rng, [0, 1, 7, 40, 300])), int(_pick(rng, [3, 4, 5, 5, 5, 6, 8]))
    table = np.concatenate(
        [rng.normal(scale=(20, 20, 1.5), size=(count, 3)), rng.integers(0, 256, (count, 5))], 1, dtype=np.float64
    )[:, :floats]
    if rng.random() < 0.2:
        table[rng.random(table.shape) < 0.1] = _pick(rng, [np.nan, np.inf, 3.4e38, 0.0])
    kind = _pick(rng, ["rows", "rows", "another type", "pcd", "pcd", "npy", "text", "noise"])
    if kind == "rows":
        return f"{count} rows of {floats} float32", table.astype("<f4").tobytes()
    if kind == "another type":
        dtype = _pick(rng, ["<f8", ">f4", "<f2", "<i2", "<i4"])
        with np.errstate(all="ignore"):
            return f"{count} rows of {floats} {dtype}", table.astype(dtype).tobytes()
    if kind == "npy":
        buffer = io.BytesIO()
        with np.errstate(all="ignore"):
            np.save(buffer, table.astype(_pick(rng, ["<f4", "<f8", "<f2"])))
        return "npy", buffer.getvalue()
    if kind == "text":
        return "text", "\n".join(" ".join(map(str, row)) for row in table.tolist()).encode() + b"\n"
    if kind == "noise":
        return "noise", rng.bytes(20 * count)
    encoding = _pick(rng, ["ascii", "binary", "binary_compressed"])
    fields = [(name, "F", int(_pick(rng, [4, 8])), 1) for name in ("x", "y", "z", "i", "r", "t", "u", "v")[:floats]]
    points = [[float(np.clip(value, -1e38, 1e38)) for value in row] for row in table]
    return f"{encoding} pcd of {count} points", pcd.encode(fields, points, encoding, pack=pcd.pack)


def _pick(rng, choices):
    return choices[int(rng.integers(len(choices)))]

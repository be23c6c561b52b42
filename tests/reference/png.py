"""PNG files byte by byte, and the 8-bit colours that they stand for, a pixel at a time."""

import struct
import zlib

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}


def encode(values, colour, bits, palette=()):
    """A file of ``values``, rows of pixels of channels, each an integer of ``bits``."""
    rows = b""
    for row in values:
        digits = "".join(f"{value:0{bits}b}" for pixel in row for value in pixel)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    header = struct.pack(">IIBBBBB", len(values[0]), len(values), bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if palette:
        chunks.insert(1, (b"PLTE", bytes(value for entry in palette for value in entry)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def colours(values, colour, bits, palette=()):
    """Rows of (red, green, blue) 0 .. 255 as a viewer shows them, transparency left out."""

    def to_8_bits(value):
        return value >> 8 if bits == 16 else value * 255 // (2**bits - 1)

    def shown(pixel):
        if colour == PALETTE:
            return palette[pixel[0]]
        if colour in (GREY, GREY_ALPHA):
            return (to_8_bits(pixel[0]),) * 3
        return tuple(to_8_bits(value) for value in pixel[:3])

    return [[shown(pixel) for pixel in row] for row in values]


def _chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

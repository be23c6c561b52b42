"""Point clouds in PCL's .pcd format, written a number at a time."""

import struct

CODES = {("F", 4): "f", ("F", 8): "d"}
CODES |= {("I", size): code for size, code in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))}
CODES |= {("U", size): code for size, code in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))}


def encode(fields, points, encoding, *, width=None, pack=None, comment="# .PCD v0.7 - Point Cloud Data file format"):
    """A file.

    Args:
        fields: (name, type, bytes, count) of each.
        points: For each point the values of all fields, one after the other.
        encoding: ascii, binary or binary_compressed.
        width: Of an organised cloud.
        pack: Compresses, for binary_compressed.
        comment: The first line.
    """
    width = len(points) if width is None else width
    lines = [
        comment,
        "VERSION 0.7",
        "FIELDS " + " ".join(name for name, _, _, _ in fields),
        "SIZE " + " ".join(str(size) for _, _, size, _ in fields),
        "TYPE " + " ".join(kind for _, kind, _, _ in fields),
        "COUNT " + " ".join(str(count) for _, _, _, count in fields),
        f"WIDTH {width}",
        f"HEIGHT {len(points) // max(width, 1)}",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(points)}",
        f"DATA {encoding}",
    ]
    head = ("\n".join(lines) + "\n").encode()
    columns = [(kind, size) for _, kind, size, count in fields for _ in range(count)]
    if encoding == "ascii":
        return head + "".join(" ".join(repr(value) for value in point) + "\n" for point in points).encode()
    cells = [
        [struct.pack("<" + CODES[column], value) for column, value in zip(columns, point, strict=True)]
        for point in points
    ]
    if encoding == "binary":
        return head + b"".join(b"".join(point) for point in cells)
    body, first = b"", 0
    for _, _, _, count in fields:
        body += b"".join(b"".join(point[first : first + count]) for point in cells)
        first += count
    packed = pack(body)
    return head + struct.pack("<II", len(packed), len(body)) + packed


def pack_as_is(body):
    """LZF that compresses nothing: runs of up to 32 bytes as they are."""
    runs = [body[i : i + 32] for i in range(0, len(body), 32)]
    return b"".join(bytes([len(run) - 1]) + run for run in runs)


def pack(body):
    """LZF with the longest match of at least 3 bytes among the last 8192, by trying all of a few places."""
    out, plain, at, seen = b"", b"", 0, {}
    while at < len(body):
        key = body[at : at + 3]
        start = seen.get(key, -1)
        length = 0
        if start >= 0 and at - start <= 8192 and len(key) == 3:
            while length < 264 and at + length < len(body) and body[start + length] == body[at + length]:
                length += 1
        if length < 3:
            seen[key] = at
            plain += body[at : at + 1]
            at += 1
            continue
        out += pack_as_is(plain)
        plain = b""
        back, rest = at - start - 1, length - 2
        head = bytes([(rest << 5) + (back >> 8)]) if rest < 7 else bytes([(7 << 5) + (back >> 8), rest - 7])
        out += head + bytes([back & 255])
        for place in range(at, at + length):
            seen[body[place : place + 3]] = place
        at += length
    return out + pack_as_is(plain)

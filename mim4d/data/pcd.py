"""Read x, y and z from point clouds in PCL's .pcd format: ascii, binary and binary_compressed."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIGNATURES = (b"# .PCD", b"VERSION", b"FIELDS")
ENCODINGS = ("ascii", "binary", "binary_compressed")
TYPES = {("F", 4): "<f4", ("F", 8): "<f8"}
"""numpy types of x, y and z by the TYPE and SIZE of the header; other fields may have any type."""
LONGEST_HEADER = 1 << 16
LARGEST_RATIO = 264 / 3
"""Best compression ratio of LZF."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of a file."""

    fields: tuple[str, ...]
    sizes: tuple[int, ...]
    """Bytes per element of each field."""
    types: tuple[str, ...]
    """Type of each field: F, I or U."""
    counts: tuple[int, ...]
    """Elements per point of each field."""
    points: int
    """Number of points."""
    encoding: str
    """One of :data:`ENCODINGS`."""
    length: int
    """Bytes of the header itself."""

    @property
    def point_bytes(self) -> int:
        """Bytes per point."""
        return sum(size * count for size, count in zip(self.sizes, self.counts, strict=True))

    def column(self, axis: str) -> int:
        """Find the number of the field ``axis``.

        Raises:
            ValueError: If there is not exactly one such field with one float per point.
        """
        if self.fields.count(axis) != 1:
            raise ValueError(f"expected the fields x, y and z once each, found {' '.join(self.fields)}")
        column = self.fields.index(axis)
        if (self.types[column], self.sizes[column]) not in TYPES or self.counts[column] != 1:
            found = f"TYPE {self.types[column]}, SIZE {self.sizes[column]}, COUNT {self.counts[column]}"
            raise ValueError(f"field {axis}: expected TYPE F, SIZE 4 or 8, COUNT 1, found {found}")
        return column


def parse_pcd(data: bytes) -> NDArray[np.float64]:
    """Parse x, y and z. VIEWPOINT in the header is ignored, because the tables hold the pose of the LiDAR.

    Args:
        data: Content of the file.

    Returns:
        [P, 3] in the units of the file.

    Raises:
        ValueError: If the header is invalid, or the number of points differs from it.

    >>> header = b"FIELDS x y z\\nSIZE 4 4 4\\nTYPE F F F\\nWIDTH 1\\nHEIGHT 1\\nDATA ascii\\n"
    >>> parse_pcd(header + b"1.5 -2 0.25").tolist()
    [[1.5, -2.0, 0.25]]
    """
    header = parse_header(data)
    columns = [header.column(axis) for axis in "xyz"]
    body = data[header.length :]
    if header.encoding == "ascii":
        return _from_text(body, header, columns)
    if header.encoding == "binary":
        expected = header.points * header.point_bytes
        _check_length(len(body), expected, body[expected:])
        starts = np.cumsum([0, *(s * c for s, c in zip(header.sizes, header.counts, strict=True))])
        record = np.dtype(
            {
                "names": list("xyz"),
                "formats": [TYPES[header.types[c], header.sizes[c]] for c in columns],
                "offsets": [int(starts[c]) for c in columns],
                "itemsize": header.point_bytes,
            }
        )
        points = np.frombuffer(body, dtype=record, count=header.points)
        return np.stack([points[axis].astype(np.float64) for axis in "xyz"], -1)
    return _from_compressed(body, header, columns)


def parse_header(data: bytes) -> Header:
    """Parse the header, up to the line DATA.

    Raises:
        ValueError: If a line is missing or invalid.
    """
    lines: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in lines:
        end = data.find(b"\n", at, LONGEST_HEADER)
        if end < 0:
            raise ValueError("the header has no DATA line")
        words = data[at:end].decode("latin-1").split("#")[0].split()
        at = end + 1
        if words:
            lines[words[0].upper()] = words[1:]
    fields = lines.get("FIELDS", [])
    sizes, counts = _integers(lines, "SIZE"), _integers(lines, "COUNT", [1] * len(fields))
    types = lines.get("TYPE", [])
    if not fields or not len(fields) == len(sizes) == len(types) == len(counts):
        raise ValueError("FIELDS, SIZE, TYPE and COUNT in the header must have the same number of entries")
    shape = _integers(lines, "WIDTH", []) + _integers(lines, "HEIGHT", [])
    points = _integers(lines, "POINTS", [math.prod(shape)] if len(shape) == 2 else None)
    if len(points) != 1 or (len(shape) == 2 and math.prod(shape) != points[0]):
        raise ValueError("POINTS in the header must be WIDTH times HEIGHT")
    encoding = " ".join(lines["DATA"]).lower()
    if encoding not in ENCODINGS:
        raise ValueError(f"expected DATA {' or '.join(ENCODINGS)}, found {encoding[:40]}")
    return Header(
        fields=tuple(fields),
        sizes=tuple(sizes),
        types=tuple(kind.upper() for kind in types),
        counts=tuple(counts),
        points=points[0],
        encoding=encoding,
        length=at,
    )


def _integers(lines: dict[str, list[str]], name: str, default: list[int] | None = None) -> list[int]:
    words = lines.get(name)
    if words is None:
        if default is None:
            raise ValueError(f"the header has no {name} line")
        return default
    if not all(word.isascii() and word.isdigit() and len(word) < 12 for word in words):
        raise ValueError(f"{name} in the header must be whole numbers")
    return [int(word) for word in words]


def _check_length(found: int, expected: int, trailing: bytes = b"") -> None:
    if found < expected or trailing.strip(b"\0\r\n"):
        raise ValueError(f"expected {expected} bytes after the header, found {found}")


def _from_text(body: bytes, header: Header, columns: list[int]) -> NDArray[np.float64]:
    """Parse points written as text, [P, 3]."""
    words = body.split()
    per_point = sum(header.counts)
    if len(words) != header.points * per_point:
        raise ValueError(f"expected {header.points * per_point} numbers after the header, found {len(words)}")
    table = np.array(words, dtype="S").reshape(header.points, per_point) if words else np.zeros((0, per_point), "S1")
    starts = np.cumsum([0, *header.counts])
    try:
        return np.stack([table[:, starts[column]].astype(np.float64) for column in columns], -1)
    except ValueError:
        raise ValueError("x, y and z must be numbers") from None


def _from_compressed(body: bytes, header: Header, columns: list[int]) -> NDArray[np.float64]:
    """Parse points compressed by LZF, [P, 3]. The uncompressed data hold one field of all points after the other."""
    packed, unpacked = (int.from_bytes(body[i : i + 4], "little") for i in (0, 4))
    if unpacked != header.points * header.point_bytes or unpacked > LARGEST_RATIO * packed + 8:
        expected = header.points * header.point_bytes
        raise ValueError(f"expected {expected} bytes of points after decompression, found {unpacked}")
    _check_length(len(body), 8 + packed, body[8 + packed :])
    starts = header.points * np.cumsum([0, *(s * c for s, c in zip(header.sizes, header.counts, strict=True))])
    content = lzf_decompress(body[8 : 8 + packed], int(max(starts[column + 1] for column in columns)), unpacked)
    kinds = [TYPES[header.types[column], header.sizes[column]] for column in columns]
    return np.stack(
        [
            np.frombuffer(content, dtype=kind, count=header.points, offset=int(starts[column])).astype(np.float64)
            for kind, column in zip(kinds, columns, strict=True)
        ],
        -1,
    )


def lzf_decompress(packed: bytes, needed: int, whole: int) -> bytes:
    """Decompress data of LZF, at least their first ``needed`` bytes.

    A control byte c below 32 is followed by c + 1 literal bytes. Otherwise its upper 3 bits are the length of a copy
    minus 2 (7: the next byte is added), its lower 5 bits and the next byte are the distance back minus 1.

    Args:
        packed: The compressed data.
        needed: Number of bytes that are needed.
        whole: Number of bytes of all decompressed data.

    Raises:
        ValueError: If the data are damaged or decompress to more than ``whole`` bytes.

    >>> lzf_decompress(bytes([1]) + b"ab" + bytes([2 << 5, 1]), needed=6, whole=6)  # "ab", then 4 bytes from 2 back
    b'ababab'
    """
    out = bytearray()
    at = 0
    try:
        while len(out) < needed:
            control = packed[at]
            at += 1
            if control < 32:
                run = packed[at : at + control + 1]
                if len(run) <= control:
                    raise IndexError
                out += run
                at += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += packed[at]
                at += 1
            back = ((control & 31) << 8) + packed[at] + 1
            at += 1
            length += 2
            start = len(out) - back
            if start < 0:
                raise IndexError
            chunk = out[start : start + length]
            out += (chunk * (-(-length // back)))[:length]  # a copy may overlap its own output
    except IndexError:
        raise ValueError("the compressed points are damaged") from None
    if len(out) > whole:
        raise ValueError("the compressed points are damaged")
    return bytes(out)

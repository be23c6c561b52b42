"""Point clouds in PCL's .pcd format: ascii, binary and binary_compressed, of which x, y and z are read."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIGNATURES = (b"# .PCD", b"VERSION", b"FIELDS")
ENCODINGS = ("ascii", "binary", "binary_compressed")
TYPES = {("F", 4): "<f4", ("F", 8): "<f8"}
"""Of x, y and z; the other fields may be anything."""
LONGEST_HEADER = 1 << 16
LARGEST_RATIO = 264 / 3
"""By which LZF compresses at best."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The lines before the points."""

    fields: tuple[str, ...]
    sizes: tuple[int, ...]
    """Bytes of one element of each field."""
    types: tuple[str, ...]
    """F, I or U."""
    counts: tuple[int, ...]
    """Elements of each field."""
    points: int
    encoding: str
    length: int
    """Bytes of the header."""

    @property
    def point_bytes(self) -> int:
        """Bytes of one point."""
        return sum(size * count for size, count in zip(self.sizes, self.counts, strict=True))

    def column(self, axis: str) -> int:
        """The number of the field that holds ``axis``.

        Raises:
            ValueError: If there is none, or not one float per point.
        """
        if self.fields.count(axis) != 1:
            raise ValueError(f"the fields must hold x, y and z once each; they are {' '.join(self.fields)}")
        column = self.fields.index(axis)
        if (self.types[column], self.sizes[column]) not in TYPES or self.counts[column] != 1:
            kind = f"{self.types[column]} of {self.sizes[column]} bytes, {self.counts[column]} of them"
            raise ValueError(f"the field {axis} must be one F of 4 or 8 bytes; it is {kind}")
        return column


def parse_pcd(data: bytes) -> NDArray[np.float64]:
    """Read x, y and z. The header's VIEWPOINT is ignored: where the LiDAR is, the tables say.

    Returns:
        [N, 3].

    Raises:
        ValueError: If the header makes no sense, or there are more or fewer points than it says.
    """
    header = parse_header(data)
    columns = [header.column(axis) for axis in "xyz"]
    body = data[header.length :]
    if header.encoding == "ascii":
        return _from_text(body, header, columns)
    if header.encoding == "binary":
        whole = header.points * header.point_bytes
        _check_length(len(body), whole, body[whole:])
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
    """Read the lines up to DATA.

    Raises:
        ValueError: If one is missing or makes no sense.
    """
    lines: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in lines:
        end = data.find(b"\n", at, LONGEST_HEADER)
        if end < 0:
            raise ValueError("the header has no line DATA")
        words = data[at:end].decode("latin-1").split("#")[0].split()
        at = end + 1
        if words:
            lines[words[0].upper()] = words[1:]
    fields = lines.get("FIELDS", [])
    sizes, counts = _integers(lines, "SIZE"), _integers(lines, "COUNT", [1] * len(fields))
    types = lines.get("TYPE", [])
    if not fields or not len(fields) == len(sizes) == len(types) == len(counts):
        raise ValueError("the header's FIELDS, SIZE, TYPE and COUNT must name as many of each")
    shape = _integers(lines, "WIDTH", []) + _integers(lines, "HEIGHT", [])
    points = _integers(lines, "POINTS", [math.prod(shape)] if len(shape) == 2 else None)
    if len(points) != 1 or (len(shape) == 2 and math.prod(shape) != points[0]):
        raise ValueError("the header's POINTS must be WIDTH times HEIGHT")
    encoding = " ".join(lines["DATA"]).lower()
    if encoding not in ENCODINGS:
        raise ValueError(f"DATA {encoding[:40]} is not one of {', '.join(ENCODINGS)}")
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
            raise ValueError(f"the header has no line {name}")
        return default
    if not all(word.isascii() and word.isdigit() and len(word) < 12 for word in words):
        raise ValueError(f"the header's {name} must be numbers")
    return [int(word) for word in words]


def _check_length(there: int, wanted: int, behind: bytes = b"") -> None:
    if there < wanted or behind.strip(b"\0\r\n"):
        raise ValueError(f"{there} bytes follow the header, which says {wanted}")


def _from_text(body: bytes, header: Header, columns: list[int]) -> NDArray[np.float64]:
    words = body.split()
    per_point = sum(header.counts)
    if len(words) != header.points * per_point:
        raise ValueError(f"{len(words)} numbers follow the header, which says {header.points * per_point}")
    table = np.array(words, dtype="S").reshape(header.points, per_point) if words else np.zeros((0, per_point), "S1")
    starts = np.cumsum([0, *header.counts])
    try:
        return np.stack([table[:, starts[column]].astype(np.float64) for column in columns], -1)
    except ValueError:
        raise ValueError("x, y and z must be numbers") from None


def _from_compressed(body: bytes, header: Header, columns: list[int]) -> NDArray[np.float64]:
    """Fields one after the other, each of all points, compressed together by LZF."""
    packed, unpacked = (int.from_bytes(body[i : i + 4], "little") for i in (0, 4))
    if unpacked != header.points * header.point_bytes or unpacked > LARGEST_RATIO * packed + 8:
        raise ValueError(f"{unpacked} bytes are compressed where the header says {header.points * header.point_bytes}")
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


def lzf_decompress(packed: bytes, wanted: int, whole: int) -> bytes:
    """Decompress the first ``wanted`` bytes, or a few more, of ``whole``.

    Raises:
        ValueError: If the data are not LZF's, or decompress to fewer or to more than ``whole``.
    """
    out = bytearray()
    at = 0
    try:
        while len(out) < wanted:
            control = packed[at]
            at += 1
            if control < 32:  # a run of control + 1 bytes as they are
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
            out += (chunk * (-(-length // back)))[:length]  # what it copies may reach into the copy itself
    except IndexError:
        raise ValueError("the compressed points are damaged") from None
    if len(out) > whole:
        raise ValueError("the compressed points are damaged")
    return bytes(out)

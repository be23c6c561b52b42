"""One held-out sample under every initialisation, cut from the pictures that the cells left."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mim4d.eval.pictures import ROWS
from mim4d.io.files import write_file

CAMERAS, TRUTH, PREDICTION = (0.0, 0.572), (0.572, 0.775), (0.7965, 0.9985)
"""Where :func:`mim4d.eval.pictures.save_picture` puts them, as shares of the width."""
HEADER = 24
GAP = 12
"""Pixels between maps."""


def strip(pictures: dict[str, Path], file: Path) -> None:
    """Put the first sample's cameras, truth and predictions in a row.

    Args:
        pictures: A cell's ``picture.png`` by the title of its prediction; all of one task and held-out split.
        file: The JPEG.

    Raises:
        UserError: If it cannot be written.
    """
    opened = {title: Image.open(path).convert("RGB") for title, path in pictures.items()}
    first = next(iter(opened.values()))
    parts = {"what the six cameras see": _cut(first, *CAMERAS), "truth": _cut(first, *TRUTH)}
    parts |= {title: _cut(picture, *PREDICTION) for title, picture in opened.items()}
    width = sum(part.width + GAP for part in parts.values())
    row = Image.new("RGB", (width, HEADER + first.height // ROWS), "white")
    draw, font, left = ImageDraw.Draw(row), ImageFont.load_default(size=17), 0
    for title, part in parts.items():
        row.paste(part, (left, HEADER))
        if left:  # a map's own title is about its sample
            draw.rectangle((left, HEADER, left + part.width, 2 * HEADER), fill="white")
        draw.text((left + part.width / 2, HEADER / 2), title, fill="black", font=font, anchor="mm")
        left += part.width + GAP
    write_file(file, lambda partial: row.save(partial, format="JPEG", quality=90))


def _cut(picture: Image.Image, low: float, high: float) -> Image.Image:
    return picture.crop((round(low * picture.width), 0, round(high * picture.width), picture.height // ROWS))

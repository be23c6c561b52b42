"""Join the predictions of one held-out sample for all initialisations, cropped from the evaluations' pictures."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mim4d.eval.pictures import ROWS
from mim4d.io.files import write_file

CAMERAS, TRUTH, PREDICTION = (0.0, 0.572), (0.572, 0.775), (0.7965, 0.9985)
"""Positions in the picture of :func:`mim4d.eval.pictures.save_picture`, as fractions of the width."""
HEADER = 24
GAP = 12
"""Gap between maps, pixels."""


def strip(pictures: dict[str, Path], file: Path) -> None:
    """Join the first sample's cameras, truth and predictions in a row and save it.

    Args:
        pictures: ``picture.png`` of each evaluation by title; all of one task and held-out split.
        file: JPEG file to write.

    Raises:
        UserError: If it cannot be written.
    """
    opened = {title: Image.open(path).convert("RGB") for title, path in pictures.items()}
    first = next(iter(opened.values()))
    parts = {"six cameras": _cut(first, *CAMERAS), "truth": _cut(first, *TRUTH)}
    parts |= {title: _cut(picture, *PREDICTION) for title, picture in opened.items()}
    width = sum(part.width + GAP for part in parts.values())
    row = Image.new("RGB", (width, HEADER + first.height // ROWS), "white")
    draw, font, left = ImageDraw.Draw(row), ImageFont.load_default(size=17), 0
    for title, part in parts.items():
        row.paste(part, (left, HEADER))
        if left:  # cover the map's own title, which describes the sample
            draw.rectangle((left, HEADER, left + part.width, 2 * HEADER), fill="white")
        draw.text((left + part.width / 2, HEADER / 2), title, fill="black", font=font, anchor="mm")
        left += part.width + GAP
    write_file(file, lambda partial: row.save(partial, format="JPEG", quality=90))


def _cut(picture: Image.Image, low: float, high: float) -> Image.Image:
    return picture.crop((round(low * picture.width), 0, round(high * picture.width), picture.height // ROWS))

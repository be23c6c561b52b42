"""One PNG and one HTML page of images beside the colours of their features."""

import base64
import html
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..io.files import write_bytes
from .features import HIDDEN, Stage

if TYPE_CHECKING:
    from .depth import Depth

WIDTH = 352
"""Width of a picture, pixels."""
GAP = 4
TITLE = 24
"""Height of the line of titles, pixels."""
NEAR, FAR = 1.0, 60.0
"""Range of the colours of depth, metres."""

_STYLE = (
    "body{font:15px sans-serif;margin:2em;color:#222}table{border-collapse:collapse}"
    "td,th{padding:2px;text-align:left;font-weight:normal;font-size:13px}img{display:block}"
)


def save_pages(
    out: Path,
    title: str,
    names: list[str],
    images: Tensor,
    stages: list[Stage],
    visible: Tensor,
    depth: "Depth | None" = None,
) -> None:
    """Write ``features.png`` and ``index.html``, which holds its pictures.

    Args:
        out: The folder.
        title: Name of the backbone.
        names: Of the images.
        images: [N, 3, H, W] from 0 to 1.
        stages: From :func:`mim4d.show.features.stages_of`.
        visible: [N, h, w]: the mask.
        depth: Of the images, if it was read.

    Raises:
        UserError: If a file cannot be written.
    """
    height = round(WIDTH * images.shape[-2] / images.shape[-1])
    rows = [[_picture(cell, height) for cell in row] for row in _rows(images, stages, visible, depth)]
    titles = [title, *(f"stride {stage.stride}: {stage.explained:.0%} of the variance" for stage in stages)]
    per_image = len(rows) // len(names)
    if depth is not None and per_image == 1:
        titles += ["depth, read off all stages", "depth, LiDAR"]
    elif depth is not None:
        titles.append("depth: read off; below, LiDAR")
    labels = ["" if row % per_image else names[row // per_image] for row in range(len(rows))]
    buffer = io.BytesIO()
    _sheet(rows, titles, labels, depth is not None).save(buffer, "PNG")
    write_bytes(out / "features.png", buffer.getvalue())
    heads = "".join(f"<th>{title}</th>" for title in titles[1:])
    lines = []
    for number, row in enumerate(rows):
        if number % per_image == 0:
            lines.append(f"<tr><th>{html.escape(names[number // per_image])}</th>{heads}</tr>")
        lines.append(f"<tr>{''.join(f'<td>{_tag(cell)}</td>' for cell in row)}</tr>")
    hidden = (
        f"Second row of an image: {HIDDEN:.0%} of its patches are hidden from the backbone, and grey."
        if per_image == 2
        else "This backbone has no masked forward, so no masks are shown."
    )
    if depth is not None:
        hidden += (
            " Depth: what a linear function reads off all stages, fitted by the LiDAR of other moments, and the LiDAR "
            f"of this one, from {NEAR:.0f} m in red to {FAR:.0f} m in blue. Where LiDAR never measures, as in the sky, "
            "what is read off means nothing."
        )
    text = (
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><p>Features in colour: red, green and blue are the first three principal "
        "components of a stage, over all images together. Equal colours are similar features; colours of different "
        f"stages cannot be compared. {hidden}</p><table>{''.join(lines)}</table></html>\n"
    )
    write_bytes(out / "index.html", text.encode())


def _sheet(rows: list[list[Image.Image]], titles: list[str], names: list[str], has_depth: bool) -> Image.Image:
    """Pictures in rows: titles above the columns, a name on the first picture of a row, and the scale of depths."""
    height = rows[0][0].height
    sheet = Image.new("RGB", (len(titles) * (WIDTH + GAP), TITLE + len(rows) * (height + GAP)), "white")
    write = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for x, title in enumerate(titles):
        shown = title if len(title) <= 44 else f"...{title[-41:]}"
        write.text((x * (WIDTH + GAP), 3), shown, fill="black", font=font)
    if has_depth:
        scale = torch.logspace(np.log10(NEAR), np.log10(FAR), 80).expand(10, 80)
        right = sheet.width - GAP
        write.text((right, 3), f"{FAR:.0f} m", fill="black", font=font, anchor="ra")
        sheet.paste(_image(_colours(scale)), (right - 120, 7))
        write.text((right - 124, 3), f"{NEAR:.0f} m", fill="black", font=font, anchor="ra")
    for y, row in enumerate(rows):
        named = row[0].copy()  # a name that is too long ends where its picture ends
        ImageDraw.Draw(named).text((4, 2), names[y], fill="white", font=font, stroke_width=2, stroke_fill="black")
        for x, cell in enumerate([named, *row[1:]]):
            sheet.paste(cell, (x * (WIDTH + GAP), TITLE + y * (height + GAP)))
    return sheet


def _rows(images: Tensor, stages: list[Stage], visible: Tensor, depth: "Depth | None") -> Iterator[list[Tensor]]:
    """Pictures [3, h, w] of each row: an image with its maps and its depth, then the same with hidden patches.

    The depth of the LiDAR stands below the depth that is read off, or beside it if nothing is hidden.
    """
    patch = images.shape[-1] // visible.shape[-1]
    for n, image in enumerate(images):
        depths = [] if depth is None else [_colours(depth.read[n]), _colours(depth.measured[n])]
        masked = [stage.masked[n] for stage in stages if stage.masked is not None]
        if not masked:
            yield [image, *(stage.colours[n] for stage in stages), *depths]
            continue
        yield [image, *(stage.colours[n] for stage in stages), *depths[:1]]
        shown = visible[n].repeat_interleave(patch, 0).repeat_interleave(patch, 1)
        yield [torch.where(shown, image, 0.5), *masked, *depths[1:]]


def _colours(depth: Tensor) -> Tensor:
    """Colours [3, h, w] of depth [h, w] in metres, by its logarithm; white where there is none."""
    import matplotlib  # where there is depth, there is the extra that brings it

    place = (depth.clamp(NEAR, FAR).log() / np.log(FAR)).numpy()
    colours = torch.from_numpy(matplotlib.colormaps["turbo_r"](place)[..., :3]).movedim(-1, 0).float()
    return torch.where(depth.isfinite(), colours, 1.0)


def _picture(values: Tensor, height: int) -> Image.Image:
    """Enlarge a map without smoothing, and shrink an image with it."""
    mode = "nearest" if values.shape[-1] < WIDTH else "area"
    resized = F.interpolate(values[None].float(), size=(height, WIDTH), mode=mode)[0]
    return _image(resized)


def _image(values: Tensor) -> Image.Image:
    """Colours [3, h, w] from 0 to 1 as an image."""
    return Image.fromarray((255 * values.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _tag(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f'<img width="{WIDTH}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'

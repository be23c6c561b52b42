"""Facades: walls of brick, plaster or concrete with windows, shop fronts, and curtain walls of glass."""

from collections.abc import Callable

import numpy as np

from .arrays import Array
from .building import BRICK, GLASS
from .texture import Noise, band, covered, hashed


def facade(
    field: Callable[[str], Array], local: Array, face: Array, footprint: Array, noise: Noise
) -> tuple[Array, Array, Array | float]:
    """Compute albedo [3, P], gloss [P] and glow of points on the boxes of buildings, see ``surface.reflectance``.

    Args:
        field: Gathers a field of the box of each point.
        local: [3, P] in the frame of the box, metres.
        face: [P] number of the side of the box.
        footprint: [P] width of a pixel at the point, metres.
        noise: Texture of the scene.
    """
    storey, bay, style, seeds = field("look")  # [P] each, as all arrays below
    seed = seeds.astype(np.int32) * 8 + face + 2 * (local[0] > 0)
    half, paint = field("half"), field("color")
    along = np.where(face == 0, local[1], local[0])
    width = np.where(face == 0, half[1], half[0])
    height = local[2] + half[2]
    wall = _wall(paint, along, height, style, footprint, noise)
    # Windows are in a grid of storeys and a whole number of bays.
    bays = np.maximum(np.round(2 * width / bay), 1)
    size = 2 * width / bays
    column = np.floor((along + width) / size)
    row = np.floor(height / storey)
    # u and v are metres from the middle of the bay and from the floor.
    u, v = (along + width) - (column + 0.5) * size, height - row * storey
    column, row = column.astype(np.int32), row.astype(np.int32)
    glassy = style == GLASS
    ground = row == 0
    reach = np.where(glassy | ground, 0.46 * size, (0.22 + 0.14 * hashed(seed, np.int32(7))) * size)
    sill = np.where(glassy, 0.25, np.where(ground, 0.45, 0.9))
    head = np.where(glassy, storey - 0.12, np.where(ground, storey - 0.75, storey - 0.55))
    inside = np.minimum(np.minimum(reach - np.abs(u), v - sill), head - v)
    pane = covered(0.06 - inside, footprint)
    frame = covered(-inside, footprint) - pane
    solid = (hashed(column, row, seed) < np.where(glassy, 0.0, 0.06)) | (face == 2)
    pane, frame = np.where(solid, 0, pane), np.where(solid, 0, frame)
    mullion = band(np.abs(u), 0.0, 0.03, footprint) * ~ground
    pane = pane * (1 - 0.8 * mullion)
    color = wall + (np.float32(0.55) * (0.4 + 0.6 * hashed(seed, np.int32(3))) - wall) * frame * 0.9
    mood = hashed(column, row, seed + 1)
    fade = np.clip(1.2 / footprint - 0.6, 0, 1)
    curtain = np.where((mood > 0.72) & ~ground, 0.25, 0.03) * fade + 0.08 * (1 - fade)
    tint = np.stack([curtain * 0.95, curtain, curtain * 0.95 + 0.015]).astype(np.float32)
    tint += _display(along, v, seed + column, footprint, noise) * (ground * fade)
    tint = np.where(glassy, paint * (0.5 + 0.8 * mood), tint)
    color = color + (tint - color) * pane
    gloss = pane * np.where(glassy, 0.14 + 0.26 * mood, 0.05 + 0.15 * mood)
    return color, gloss.astype(np.float32), 0.0


def _wall(paint: Array, along: Array, height: Array, style: Array, footprint: Array, noise: Noise) -> Array:
    """Compute the albedo [3, P] of walls."""
    stains = noise(along, height * 0.4, 23.0, footprint)
    grain = noise(along, height, 4.0, footprint)
    tone = 1 + 0.12 * stains + 0.09 * grain - 0.15 * np.clip(1 - height / 0.8, 0, 1)
    course = np.floor(height / 0.15)
    brick = hashed(np.floor(along / 0.42 + 0.5 * (course % 2)).astype(np.int32), course.astype(np.int32)) - 0.5
    tone = tone + np.where(style == BRICK, 0.45 * brick * np.clip(0.12 / footprint - 0.4, 0, 1), 0.0)
    return paint * tone.astype(np.float32)


def _display(along: Array, height: Array, seed: Array, footprint: Array, noise: Noise) -> Array:
    """Compute the albedo [3, P] of shop windows: coloured goods below, a lit room above."""
    i, j = np.floor(along / 0.35).astype(np.int32), np.floor(height / 0.4).astype(np.int32)
    goods = np.stack([hashed(i, j, seed + k) ** 2 for k in range(3)])
    shelf = np.clip(1.9 - height, 0, 1) * (0.12 + 0.05 * noise(along, height, 2.0, footprint))
    room = 0.05 + 0.05 * np.clip(height - 1.9, 0, 1) * (1 + noise(along, height, 9.0, footprint))
    return (goods * shelf + room).astype(np.float32)

"""Sun, sky, haze and camera response: from light in the world to pixel values."""

from dataclasses import dataclass

import numpy as np

from .arrays import Array, dot
from .texture import Noise


@dataclass(frozen=True, kw_only=True)
class Light:
    """The light of a scene; colours are linear RGB."""

    toward_sun: Array
    """[3] unit vector in the world."""
    sun: Array
    """[3] colour and strength of direct sunlight."""
    zenith: Array
    """[3] colour of the sky overhead."""
    horizon: Array
    """[3] colour of the sky near the horizon and of haze."""
    clouds: float
    """Cloud cover: 0 for a clear sky, 1 for an overcast one."""
    visibility: float
    """Distance at which haze absorbs 63 % (1 - 1/e) of the light, metres."""
    exposure: float
    """Gain before the camera response."""


_MOODS = {
    # name: odds, sun height in degrees, sun, zenith, horizon, clouds, visibility
    "clear": (0.35, (35, 70), (3.4, 3.2, 2.9), (0.25, 0.45, 0.85), (0.75, 0.85, 0.95), (0.0, 0.35), (900, 2500)),
    "cloudy": (0.3, (30, 65), (2.4, 2.3, 2.2), (0.40, 0.55, 0.80), (0.85, 0.90, 0.95), (0.4, 0.7), (500, 1200)),
    "overcast": (0.2, (40, 70), (0.7, 0.7, 0.7), (0.85, 0.90, 0.97), (1.0, 1.01, 1.03), (0.9, 1.0), (450, 1000)),
    "evening": (0.15, (14, 26), (2.8, 1.9, 1.1), (0.25, 0.35, 0.62), (1.00, 0.78, 0.58), (0.1, 0.5), (400, 1200)),
}


def make_light(rng: np.random.Generator) -> Light:
    """Sample the weather and the time of day of a scene."""
    names = list(_MOODS)
    name = names[int(rng.choice(len(names), p=[_MOODS[n][0] for n in names]))]
    _, heights, sun, zenith, horizon, clouds, visibility = _MOODS[name]
    height, heading = np.deg2rad(rng.uniform(*heights)), rng.uniform(-np.pi, np.pi)
    flat = np.cos(height)
    return Light(
        toward_sun=np.array([flat * np.cos(heading), flat * np.sin(heading), np.sin(height)]),
        sun=np.array(sun) * rng.uniform(0.85, 1.1),
        zenith=np.array(zenith),
        horizon=np.array(horizon),
        clouds=float(rng.uniform(*clouds)),
        visibility=float(rng.uniform(*visibility)),
        exposure=float(rng.uniform(0.75, 1.1)),
    )


def _column(color: Array) -> Array:
    """Convert a colour [3] to a column [3, 1] float32."""
    return color.astype(np.float32)[:, None]


def sky(light: Light, noise: Noise, direction: Array) -> Array:
    """Compute the colour [3, P] of the sky, with clouds, sun and far hills, along unit directions [3, P]."""
    x, y, z = direction  # [P] each
    up = np.maximum(z, 0.0)
    horizon, zenith, sun = _column(light.horizon), _column(light.zenith), _column(light.sun)
    color = zenith + (horizon - zenith) * np.exp(-4.0 * up)  # [3, P]
    toward = dot(direction.T, light.toward_sun)  # [P]
    glow = np.exp(18 * (toward - 1)) * 0.25 + np.exp(900 * (toward - 1)) * 6.0
    color += glow * (sun * np.float32(1 - 0.9 * light.clouds))
    # Clouds are a texture on a horizontal plane, sampled where the ray meets it.
    far = 1 / (up + 0.12)
    puffs = noise(x * far, y * far, 6.0, 0.02 * far)
    puffs += 0.5 * noise(y * far, x * far, 1.7, 0.02 * far)
    cover = np.clip((puffs - 1.6 + 3.2 * light.clouds) * 0.6, 0, 1) * np.clip(up * 8, 0, 1)
    white = _column(0.75 * light.horizon + 0.10 * light.sun) * (1 - 0.12 * np.clip(puffs, -1, 1))
    color += (white - color) * cover
    # Hills and distant trees: an irregular line one to two degrees high.
    low = np.flatnonzero(z < 0.1)
    heading = np.arctan2(y[low], x[low])
    line = (
        0.022
        + 0.009 * noise(heading * 10, 0 * heading, 63.0, 0.05)
        + 0.003 * noise(heading * 80, 0 * heading, 40.0, 0.05)
    )
    hill = np.clip((line - z[low]) * 250, 0, 1)
    haze = np.exp(-600.0 / light.visibility)
    tone = np.array([0.10, 0.13, 0.09]) * (light.zenith + 0.3 * light.sun)
    color[:, low] += (_column(tone * haze + light.horizon * (1 - haze)) - color[:, low]) * hill
    return color


def lit(light: Light, albedo: Array, normal: Array, sunlit: Array, open_sky: Array) -> Array:
    """Compute the light that matt surfaces reflect.

    Args:
        light: The light of the scene.
        albedo: [3, P] linear reflectance.
        normal: [3, P] unit normals in the world.
        sunlit: [P] fraction of the direct sunlight that arrives, 0..1.
        open_sky: [P] fraction of the light of the sky that arrives, 0..1.

    Returns:
        [3, P] linear RGB.
    """
    toward = np.clip(dot(normal.T, light.toward_sun), 0, 1) * sunlit  # [P]
    above = 0.5 + 0.5 * normal[2]  # [P]
    skylight = _column(0.31 * (light.zenith + light.horizon))
    bounce = _column(0.62 * (0.10 * light.horizon + 0.06 * light.sun))
    light_there = (bounce + (skylight - bounce) * above) * open_sky  # [3, P]
    light_there += toward * _column(0.62 * light.sun)
    return albedo * light_there


def hazed(light: Light, color: Array, distance: Array) -> Array:
    """Blend colours [3, P] with haze over distances [P] in metres: c exp(-d / visibility) + horizon (1 - exp(...))."""
    clear = np.exp(-distance / np.float32(light.visibility))  # [P]
    horizon = _column(light.horizon)
    return horizon + (color - horizon) * clear


def developed(light: Light, radiance: Array) -> Array:
    """Apply the camera response: linear light [..., P] to gamma-encoded values in 0..1."""
    exposed = np.maximum(radiance, 0) * np.float32(light.exposure)
    value = (1 - np.exp(-1.5 * exposed)) ** np.float32(1 / 2.2)
    return value + np.float32(0.35) * (value * value * (3 - 2 * value) - value)  # a little more contrast

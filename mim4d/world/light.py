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


def sky(light: Light, noise: Noise, direction: Array) -> Array:
    """Compute the colour [P, 3] of the sky, with clouds, sun and far hills, along unit directions [P, 3]."""
    up = np.maximum(direction[:, 2], 0.0)  # [P]
    blue = (1 - np.exp(-4.0 * up))[:, None].astype(np.float32)  # [P, 1]
    color = light.horizon.astype(np.float32) * (1 - blue) + light.zenith.astype(np.float32) * blue  # [P, 3]
    toward = dot(direction, light.toward_sun)  # [P]
    glow = np.exp(18 * (toward - 1)) * 0.25 + np.exp(900 * (toward - 1)) * 6.0
    color = color + glow[:, None] * light.sun.astype(np.float32) * (1 - 0.9 * light.clouds)
    # Clouds are a texture on a horizontal plane, sampled where the ray meets it.
    far = 1 / (up + 0.12)
    puffs = noise(direction[:, 0] * far, direction[:, 1] * far, 6.0, 0.02 * far)
    puffs += 0.5 * noise(direction[:, 1] * far, direction[:, 0] * far, 1.7, 0.02 * far)
    cover = np.clip((puffs - 1.6 + 3.2 * light.clouds) * 0.6, 0, 1)[:, None] * np.clip(up * 8, 0, 1)[:, None]
    white = (0.75 * light.horizon + 0.10 * light.sun).astype(np.float32) * (1 - 0.12 * np.clip(puffs, -1, 1))[:, None]
    color = color * (1 - cover) + white * cover
    # Hills and distant trees: an irregular line one to two degrees high.
    heading = np.arctan2(direction[:, 1], direction[:, 0])
    line = (
        0.022
        + 0.009 * noise(heading * 10, 0 * heading, 63.0, 0.05)
        + 0.003 * noise(heading * 80, 0 * heading, 40.0, 0.05)
    )
    hill = np.clip((line - direction[:, 2]) * 250, 0, 1)[:, None]
    haze = np.exp(-600.0 / light.visibility)
    tone = np.array([0.10, 0.13, 0.09], np.float32) * (light.zenith + 0.3 * light.sun).astype(np.float32)
    return color * (1 - hill) + hill * (tone * haze + light.horizon.astype(np.float32) * (1 - haze))


def lit(light: Light, albedo: Array, normal: Array, sunlit: Array, open_sky: Array) -> Array:
    """Compute the light that matt surfaces reflect.

    Args:
        light: The light of the scene.
        albedo: [P, 3] linear reflectance.
        normal: [P, 3] unit normals in the world.
        sunlit: [P] fraction of the direct sunlight that arrives, 0..1.
        open_sky: [P] fraction of the light of the sky that arrives, 0..1.

    Returns:
        [P, 3] linear RGB.
    """
    toward = np.clip(dot(normal, light.toward_sun), 0, 1) * sunlit  # [P]
    above = (0.5 + 0.5 * normal[:, 2])[:, None]  # [P, 1]
    skylight = 0.5 * (light.zenith + light.horizon).astype(np.float32)
    bounce = (0.10 * light.horizon + 0.06 * light.sun).astype(np.float32)
    ambient = above * skylight + (1 - above) * bounce
    ambient = ambient * np.float32(0.62) * open_sky[:, None]
    return albedo * (ambient + toward[:, None] * light.sun.astype(np.float32) * np.float32(0.62))


def hazed(light: Light, color: Array, distance: Array) -> Array:
    """Blend colours [P, 3] with haze over distances [P] in metres: c exp(-d / visibility) + horizon (1 - exp(...))."""
    clear = np.exp(-distance / np.float32(light.visibility))[:, None]  # [P, 1]
    return color * clear + light.horizon.astype(np.float32) * (1 - clear)


def developed(light: Light, radiance: Array) -> Array:
    """Apply the camera response: linear light [..., 3] to gamma-encoded values in 0..1."""
    exposed = np.maximum(radiance, 0) * np.float32(light.exposure)
    value = (1 - np.exp(-1.5 * exposed)) ** np.float32(1 / 2.2)
    return value + np.float32(0.35) * (value * value * (3 - 2 * value) - value)  # a little more contrast

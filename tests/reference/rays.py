"""Intersections of rays and boxes by small steps."""

import numpy as np


def box_interval(origin, direction, low, high, longest=100.0, step=0.001):
    """First and last distance along a ray at which it is inside a box, walking in small steps; None if it never is."""
    distances = np.arange(0, longest, step)
    points = origin + distances[:, None] * direction
    inside = distances[((points >= low) & (points <= high)).all(axis=1)]
    return (inside[0], inside[-1]) if len(inside) else None

"""Synthetic worlds of procedural streets, rendered for the cameras and the LiDAR of nuScenes and written as a root.

Read the modules in this order: ``street`` and ``place`` (static surroundings), ``scene`` and ``traffic`` (moving
objects), ``views`` and ``raycast`` (ray casting), ``render`` and ``lidar`` (images and sweeps), ``capture`` (the files
of one key frame), ``tables`` and ``make`` (the root).

Coordinates are metres and radians. A place has a frame of its own, called *world* here: x, y on the ground, z up.
Shapes are written with the axis letters of :mod:`mim4d.geometry`; H and W also count the rays of other views.
"""

from .config import WorldConfig
from .make import make_world, world_in

__all__ = ["WorldConfig", "make_world", "world_in"]

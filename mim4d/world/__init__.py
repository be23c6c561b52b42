"""A world of procedural streets, seen by nuScenes' cameras and LiDAR and written as a nuScenes root.

Read in this order: ``street`` and ``place`` (where), ``scene`` and ``traffic`` (what happens), ``views`` and
``raycast`` (which surface a ray meets), ``render`` and ``lidar`` (what a sensor makes of it), ``capture`` (one key
frame on disk), ``tables`` and ``make`` (the root).
"""

from .config import WorldConfig
from .make import make_world, world_in

__all__ = ["WorldConfig", "make_world", "world_in"]

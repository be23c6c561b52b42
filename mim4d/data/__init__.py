"""Read data from disk into a :class:`mim4d.clip.Clip`.

``nuscenes`` reads a root (a folder in nuScenes format) through a cached ``index`` of its ``tables``. ``frames`` finds
the frames of each clip, ``images`` with ``lenses`` and ``lidar`` with ``pcd`` read the files, and ``loader`` makes
batches in an order that follows from the seed. ``check`` looks for faults in a root.
"""

from .loader import ClipLoader, ClipSampler, evaluation_clips, make_evaluation_loader, make_loader
from .nuscenes import DataConfig, NuScenesClips, count_substitutes

__all__ = [
    "ClipLoader",
    "ClipSampler",
    "DataConfig",
    "NuScenesClips",
    "count_substitutes",
    "evaluation_clips",
    "make_evaluation_loader",
    "make_loader",
]

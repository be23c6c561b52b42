"""From disk to :class:`mim4d.clip.Clip`.

``nuscenes`` reads a root in nuScenes format by way of a cached ``index`` of its tables, ``frames`` chooses what makes
a clip, ``images`` and ``lidar`` read the files, ``loader`` draws clips in an order that a seed and a position decide.
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

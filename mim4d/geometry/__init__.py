"""Pure geometry: tensors in, tensors out. The conventions of the whole package are said here, once.

Transforms
    4x4 matrices named ``a_from_b``: they take homogeneous points in frame b to frame a and compose so that
    neighbours cancel, ``a_from_c = a_from_b @ b_from_c``. Relative poses are formed in float64 before they become
    float32, because global coordinates are in the thousands of metres.
Frames
    ``camera``: OpenCV, x right, y down, z forward. ``ego``: nuScenes, x forward, y left, z up, origin on the ground
    under the rear axle. ``lidar``: the sensor's own. ``global``: the map's.
Units
    Metres, seconds, radians.
Pixels
    Continuous coordinates (u right, v down); the centre of the top-left pixel is (0.5, 0.5).
Volumes
    [..., Z, Y, X]; voxel (0, 0, 0) touches the low corner of the range. Index becomes metre only in
    :class:`VoxelGrid`. Sampling uses ``align_corners=False`` throughout.
"""

from .constant import constant
from .lens import distort_brown, distort_fisheye
from .pinhole import crop_intrinsics, project, resize_intrinsics, unproject
from .precision import exact
from .rays import box_interval, pixel_rays
from .rigid import invert, make_pose, rotation_from_quaternion, transform
from .voxelgrid import VoxelGrid

__all__ = [
    "VoxelGrid",
    "box_interval",
    "constant",
    "crop_intrinsics",
    "distort_brown",
    "distort_fisheye",
    "exact",
    "invert",
    "make_pose",
    "pixel_rays",
    "project",
    "resize_intrinsics",
    "rotation_from_quaternion",
    "transform",
    "unproject",
]

"""Pure geometry functions, tensors in and tensors out; this page holds the conventions of the whole package.

Transforms
    4x4 matrices named ``a_from_b``. They map homogeneous points in frame b to frame a and compose so that neighbouring
    names cancel: ``a_from_c = a_from_b @ b_from_c``. Relative poses are computed in float64 before they are stored as
    float32, because global coordinates are in the thousands of metres.
Frames
    ``camera``: OpenCV axes, x right, y down, z forward. ``ego``: nuScenes axes, x forward, y left, z up, with its
    origin on the ground under the rear axle. ``lidar``: the sensor's own frame. ``global``: the map's frame.
Units
    Metres, seconds and radians.
Pixels
    Continuous coordinates (u right, v down); the centre of the top-left pixel is (0.5, 0.5).
Volumes
    [..., Z, Y, X]; voxel (0, 0, 0) touches the low corner of the range. Only :class:`VoxelGrid` converts between
    indices and metres. All sampling uses ``align_corners=False``.
Shapes
    Docstrings and comments at line ends give shapes with one letter per kind of axis. Axes without a letter are written
    as words (``heads``, ``bins``); ``...`` stands for any leading axes; ``B*T`` is one axis that holds both.

    ====== =============================================================================================
    B      clips of a batch
    T      frames per clip
    V      cameras
    K      target frames per clip: those that are rendered
    S      source frames per target: those that are warped to it
    G      target frames of all clips, each with one volume to render: G = B*K
    N      images: N = B*T*V
    H W    rows and columns of an image, pixels
    h w    rows and columns of a feature map
    C      channels; C_i of encoder stage i, whose stride is s_i pixels
    A      active (visible) patches of all images; a patch holds k x k sites of a stage's feature map
    D      depth bins
    Z Y X  voxels up, left and forward; [Y, X] alone is a bird's-eye view (BEV)
    P      points
    R      rays per volume
    M      samples per ray
    Q      queries of an attention layer
    E      embedding channels of an attention layer
    ====== =============================================================================================

Examples in docstrings assume ``import torch`` and the names of their own module.
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

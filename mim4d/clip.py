"""The data contract: every reader of data produces a :class:`Clip`, every stage of the method consumes one.

The axis letters of shapes are listed in :mod:`mim4d.geometry`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .geometry import exact, invert

ClipT = TypeVar("ClipT", bound="Clip")

FRAMES = 3
"""Default number of frames per clip, T."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """B clips of T frames from V cameras. Frames are in temporal order and the last one is the *current* frame.

    Every frame has its own ego frame: the pose of the car at ``timestamps[:, t]``. All geometry is in metres; see
    :mod:`mim4d.geometry` for the coordinate frames. A dataset yields clips with B = 1; :meth:`collate` makes batches.
    """

    images: Tensor
    """[B, T, V, 3, H, W] uint8, RGB."""
    intrinsics: Tensor
    """[B, T, V, 3, 3] float32, in pixels of ``images``; the centre of the top-left pixel is (0.5, 0.5)."""
    ego_from_camera: Tensor
    """[B, T, V, 4, 4] float32: the pose of the camera *at its own exposure time*, in the ego frame of frame t."""
    current_from_ego: Tensor
    """[B, T, 4, 4] float32: from the ego frame of frame t to that of the current frame; identity for the last frame."""
    timestamps: Tensor
    """[B, T] float64, seconds since the epoch, increasing along T."""
    points: Tensor
    """[B, T, P, 3] float32: LiDAR points in the ego frame of frame t, metres, without returns from the car itself.
    From index ``num_points`` on they are padding with arbitrary values."""
    num_points: Tensor
    """[B, T] int64: number of valid ``points``; 0 for a frame without LiDAR."""
    seeds: Tensor
    """[B] int64: the seed from which the random choices of each clip follow (its mask, target frame and rays)."""
    names: tuple[str, ...]
    """[B] names of the clips for messages and pictures, such as ``scene-0061@1532402927.65``."""
    cameras: tuple[str, ...]
    """[V] names of the cameras, such as ``CAM_FRONT``."""

    @property
    def batch_size(self) -> int:
        """Number of clips, B."""
        return self.images.shape[0]

    @property
    def num_frames(self) -> int:
        """Number of frames per clip, T."""
        return self.images.shape[1]

    @property
    def num_cameras(self) -> int:
        """Number of cameras, V."""
        return self.images.shape[2]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images (H, W), pixels."""
        return self.images.shape[-2], self.images.shape[-1]

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.images.device

    @property
    def times(self) -> Tensor:
        """Seconds from the current frame, [B, T] float32: 0 for the last frame, negative for earlier ones."""
        return (self.timestamps - self.timestamps[:, -1:]).float()

    @property
    def points_valid(self) -> Tensor:
        """Mask of the valid ``points``, [B, T, P] bool."""
        indices = torch.arange(self.points.shape[2], device=self.points.device)  # [P]
        return indices < self.num_points[..., None]

    @exact
    def source_from_target(self, target: Tensor, source: Tensor) -> Tensor:
        """Compute relative ego poses between frames: inv(current_from_source) @ current_from_target.

        Args:
            target: [B, K] int64, indices of target frames.
            source: [B, K, S] int64, indices of the source frames of each target.

        Returns:
            ``source_from_target`` [B, K, S, 4, 4]: maps points in the ego frame of a target to that of its source.
        """
        clip = torch.arange(self.batch_size, device=self.device)[:, None]  # [B, 1]
        current_from_target = self.current_from_ego[clip, target]  # [B, K, 4, 4]
        current_from_source = self.current_from_ego[clip[..., None], source]  # [B, K, S, 4, 4]
        return invert(current_from_source) @ current_from_target[:, :, None]

    def at(self: ClipT, frames: slice) -> ClipT:
        """Return some of the frames, T' of them; ``current_from_ego`` still leads to the last frame of all."""
        tensors: dict[str, Any] = {name: x[:, frames] for name, x in self._tensors().items() if name != "seeds"}
        return replace(self, **tensors)

    def first(self: ClipT) -> ClipT:
        """Return the first clip alone (B = 1)."""
        return replace(self._map_tensors(lambda x: x[:1]), names=self.names[:1])

    def to(self: ClipT, device: torch.device | str, non_blocking: bool = False) -> ClipT:
        """Return the same clips with every tensor on ``device``."""
        return self._map_tensors(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self: ClipT) -> ClipT:
        """Return the same clips in page-locked memory; :class:`torch.utils.data.DataLoader` calls this."""
        return self._map_tensors(Tensor.pin_memory)

    def _map_tensors(self: ClipT, function: Callable[[Tensor], Tensor]) -> ClipT:
        mapped: dict[str, Any] = {name: function(value) for name, value in self._tensors().items()}
        return replace(self, **mapped)

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    @staticmethod
    def collate(clips: Sequence["Clip"]) -> "Clip":
        """Join clips along B; LiDAR points are padded with zeros to the largest P.

        Args:
            clips: One or more, each of any batch size.

        Raises:
            ValueError: If the clips differ in number of frames, cameras or image size.
        """
        first = clips[0]
        for clip in clips[1:]:
            for name in ("num_frames", "cameras", "image_size"):
                if getattr(clip, name) != getattr(first, name):
                    raise ValueError(
                        f"clips of one batch differ in {name}: {getattr(first, name)} in {first.names[0]}, "
                        f"{getattr(clip, name)} in {clip.names[0]}"
                    )
        most = max(clip.points.shape[2] for clip in clips)
        joined: dict[str, Any] = {
            name: torch.cat([c._tensors()[name] for c in clips]) for name in first._tensors() if name != "points"
        }
        padded = [torch.nn.functional.pad(c.points, (0, 0, 0, most - c.points.shape[2])) for c in clips]
        names = tuple(name for clip in clips for name in clip.names)
        return Clip(points=torch.cat(padded), names=names, cameras=first.cameras, **joined)

    def validate(self) -> None:
        """Check shapes, dtypes and geometry. Meant for readers and tests: a training step would wait for the device.

        Raises:
            ValueError: If a field is wrong; the message names the field, what was expected and what was found.
        """
        b, t, v, _, h, w = self.images.shape if self.images.dim() == 6 else (0,) * 6
        if min(b, t, v) < 1:
            shape = list(self.images.shape)
            raise ValueError(f"Clip.images: expected [B, T, V, 3, H, W] with B, T, V >= 1, got {shape}")
        p = self.points.shape[2] if self.points.dim() == 4 else 0
        expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "images": ((b, t, v, 3, h, w), torch.uint8),
            "intrinsics": ((b, t, v, 3, 3), torch.float32),
            "ego_from_camera": ((b, t, v, 4, 4), torch.float32),
            "current_from_ego": ((b, t, 4, 4), torch.float32),
            "timestamps": ((b, t), torch.float64),
            "points": ((b, t, p, 3), torch.float32),
            "num_points": ((b, t), torch.int64),
            "seeds": ((b,), torch.int64),
        }
        for name, (sizes, dtype) in expected.items():
            got = getattr(self, name)
            if tuple(got.shape) != sizes or got.dtype != dtype:
                raise ValueError(f"Clip.{name}: expected {dtype} {list(sizes)}, got {got.dtype} {list(got.shape)}")
        if len(self.names) != b or len(self.cameras) != v:
            raise ValueError(f"Clip: expected {b} names and {v} cameras, got {len(self.names)} and {len(self.cameras)}")
        for name in ("ego_from_camera", "current_from_ego"):
            self._check_rigid(name)
        self._check_intrinsics()
        if not self.timestamps.isfinite().all():
            raise ValueError("Clip.timestamps: must be finite, got NaN or infinity")
        if (self.timestamps.diff(dim=1) <= 0).any():
            raise ValueError("Clip.timestamps: must increase along the frames, the oldest first")
        eye = torch.eye(4, device=self.device)
        if (self.current_from_ego[:, -1] - eye).abs().max() > 1e-4:
            raise ValueError("Clip.current_from_ego: must be the identity for the last frame, which is the current one")
        if (self.num_points < 0).any() or (self.num_points > p).any():
            raise ValueError(f"Clip.num_points: must lie in 0 .. {p}, got up to {int(self.num_points.max())}")
        if not self.points[self.points_valid].isfinite().all():
            raise ValueError("Clip.points: valid points must be finite, got NaN or infinity")

    def _check_intrinsics(self) -> None:
        focal = self.intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2]
        for problem, bad in (  # bad: [B, T, V]
            ("must be finite, got NaN or infinity", ~self.intrinsics.isfinite().all(-1).all(-1)),
            ("focal lengths must be positive", (focal <= 0).any(-1)),
            ("the last row must be 0 0 1", (self.intrinsics[..., 2, :] != focal.new_tensor([0, 0, 1])).any(-1)),
        ):
            if bad.any():
                cameras = [self.cameras[v] for v in bad.flatten(0, 1).any(0).nonzero().flatten().tolist()]
                raise ValueError(f"Clip.intrinsics: {problem} ({', '.join(cameras)})")

    def _check_rigid(self, name: str) -> None:
        pose = getattr(self, name)
        rotation = pose[..., :3, :3]
        error = _orthonormality_error(rotation)
        if not torch.isfinite(pose).all() or error > 1e-3 or (torch.linalg.det(rotation) < 0).any():
            raise ValueError(f"Clip.{name}: not a rigid transform (max |R Rᵀ - I| = {float(error):.2g})")
        if (pose[..., 3, :] != pose.new_tensor([0, 0, 0, 1])).any():
            raise ValueError(f"Clip.{name}: not a rigid transform (the last row must be 0 0 0 1)")


@exact
def _orthonormality_error(rotation: Tensor) -> Tensor:
    """Return the largest entry of |R Rᵀ - I| over rotations R [..., 3, 3], a scalar."""
    return (rotation @ rotation.mT - torch.eye(3, device=rotation.device)).abs().max()

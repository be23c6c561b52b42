"""The one data contract: every reader makes a :class:`Clip`, every stage consumes one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .geometry import exact, invert

Moved = TypeVar("Moved", bound="Clip")

FRAMES = 3
"""T, frames per clip, where nothing else is set."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """B clips of T frames seen by V cameras. Frames are in order of time and the last one is the *current* frame.

    Every frame has its own ego frame: the car's pose at ``timestamps[:, t]``. All geometry is in metres; see
    :mod:`mim4d.geometry` for the frames. B = 1 is what a dataset yields; :meth:`collate` makes batches.
    """

    images: Tensor
    """[B, T, V, 3, H, W] uint8, RGB; H and W are multiples of 32."""
    intrinsics: Tensor
    """[B, T, V, 3, 3] float32, pixels of ``images``, pixel centres at halves."""
    ego_from_camera: Tensor
    """[B, T, V, 4, 4] float32: the camera's pose *when it fired*, in the ego frame of frame t."""
    current_from_ego: Tensor
    """[B, T, 4, 4] float32: from frame t's ego frame to the current frame's; the identity for the last frame."""
    timestamps: Tensor
    """[B, T] float64, seconds since the epoch, increasing along T."""
    points: Tensor
    """[B, T, P, 3] float32: LiDAR points in frame t's ego frame, metres, without returns from the car itself; what
    stands beyond ``num_points`` is void."""
    num_points: Tensor
    """[B, T] int64: how many of ``points`` are real; 0 where there is no LiDAR."""
    seeds: Tensor
    """[B] int64: the seed of each clip's own randomness (its mask, target frame and rays)."""
    names: tuple[str, ...]
    """B names for messages and pictures, such as ``scene-0061@1532402927.65``."""
    cameras: tuple[str, ...]
    """V camera names, such as ``CAM_FRONT``."""

    @property
    def batch_size(self) -> int:
        """B."""
        return self.images.shape[0]

    @property
    def num_frames(self) -> int:
        """T."""
        return self.images.shape[1]

    @property
    def num_cameras(self) -> int:
        """V."""
        return self.images.shape[2]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.images.shape[-2], self.images.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.images.device

    @property
    def times(self) -> Tensor:
        """[B, T] float32: seconds relative to the current frame, so 0 for the last and negative before it."""
        return (self.timestamps - self.timestamps[:, -1:]).float()

    @property
    def points_valid(self) -> Tensor:
        """[B, T, P] bool: which of ``points`` are real."""
        slots = torch.arange(self.points.shape[2], device=self.points.device)
        return slots < self.num_points[..., None]

    @exact
    def source_from_target(self, target: Tensor, source: Tensor) -> Tensor:
        """Relative ego poses between frames.

        Args:
            target: [B, K] int64, frames to come from.
            source: [B, K, S] int64, frames to go to.

        Returns:
            ``source_from_target`` [B, K, S, 4, 4]: points in each target's ego frame to its sources'.
        """
        rows = torch.arange(self.batch_size, device=self.device)[:, None]
        current_from_target = self.current_from_ego[rows, target]
        current_from_source = self.current_from_ego[rows[..., None], source]
        return invert(current_from_source) @ current_from_target[:, :, None]

    def first(self: Moved) -> Moved:
        """The first clip alone, B = 1."""
        return replace(self._map(lambda x: x[:1]), names=self.names[:1])

    def to(self: Moved, device: torch.device | str, non_blocking: bool = False) -> Moved:
        """The same clips with every tensor on ``device``."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self: Moved) -> Moved:
        """The same clips in page-locked memory (called by :class:`torch.utils.data.DataLoader`)."""
        return self._map(Tensor.pin_memory)

    def _map(self: Moved, change: Callable[[Tensor], Tensor]) -> Moved:
        changed: dict[str, Any] = {name: change(value) for name, value in self._tensors().items()}
        return replace(self, **changed)

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    @staticmethod
    def collate(clips: Sequence["Clip"]) -> "Clip":
        """Join clips along B; LiDAR is padded to the longest.

        Raises:
            ValueError: If the clips differ in frames, cameras or image size.
        """
        first = clips[0]
        for clip in clips[1:]:
            for what in ("num_frames", "cameras", "image_size"):
                if getattr(clip, what) != getattr(first, what):
                    raise ValueError(
                        f"clips of one batch differ in {what}: {getattr(first, what)} in {first.names[0]}, "
                        f"{getattr(clip, what)} in {clip.names[0]}"
                    )
        longest = max(clip.points.shape[2] for clip in clips)
        joined: dict[str, Any] = {
            name: torch.cat([c._tensors()[name] for c in clips]) for name in first._tensors() if name != "points"
        }
        pads = [torch.nn.functional.pad(c.points, (0, 0, 0, longest - c.points.shape[2])) for c in clips]
        names = tuple(name for clip in clips for name in clip.names)
        return Clip(points=torch.cat(pads), names=names, cameras=first.cameras, **joined)

    def validate(self) -> None:
        """Check shapes, dtypes and the geometry's sanity; for readers and tests, not for the training step.

        Raises:
            ValueError: Naming the field, what was expected and what arrived.
        """
        b, t, v, _, h, w = self.images.shape if self.images.dim() == 6 else (0,) * 6
        if min(b, t, v) < 1:
            raise ValueError(f"Clip.images: needs [B, T, V, 3, H, W] with B, T, V >= 1, got {list(self.images.shape)}")
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
        for name, (shape, dtype) in expected.items():
            got = getattr(self, name)
            if tuple(got.shape) != shape or got.dtype != dtype:
                raise ValueError(f"Clip.{name}: expected {dtype} {list(shape)}, got {got.dtype} {list(got.shape)}")
        if h % 32 or w % 32:
            raise ValueError(f"Clip.images: height and width must be multiples of 32, got {h} x {w}")
        if len(self.names) != b or len(self.cameras) != v:
            raise ValueError(f"Clip: {len(self.names)} names for {b} clips, {len(self.cameras)} cameras for {v} views")
        for name in ("ego_from_camera", "current_from_ego"):
            self._check_rigid(name)
        self._check_intrinsics()
        if not self.timestamps.isfinite().all():
            raise ValueError("Clip.timestamps: NaN or infinity")
        if (self.timestamps.diff(dim=1) <= 0).any():
            raise ValueError("Clip.timestamps: must increase along the frames, oldest first")
        eye = torch.eye(4, device=self.device)
        if (self.current_from_ego[:, -1] - eye).abs().max() > 1e-4:
            raise ValueError("Clip.current_from_ego: must be the identity for the last frame, the current one")
        if (self.num_points < 0).any() or (self.num_points > p).any():
            raise ValueError(f"Clip.num_points: must lie in 0 .. {p}, got up to {int(self.num_points.max())}")
        if not self.points[self.points_valid].isfinite().all():
            raise ValueError("Clip.points: NaN or infinity among the valid points")

    def _check_intrinsics(self) -> None:
        focal = self.intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2]
        for problem, bad in (
            ("NaN or infinity", ~self.intrinsics.isfinite().all(-1).all(-1)),
            ("focal lengths must be positive", (focal <= 0).any(-1)),
            ("the last row must be 0 0 1", (self.intrinsics[..., 2, :] != focal.new_tensor([0, 0, 1])).any(-1)),
        ):
            if bad.any():
                cameras = [self.cameras[v] for v in bad.flatten(0, 1).any(0).nonzero().flatten().tolist()]
                raise ValueError(f"Clip.intrinsics: {problem} (of {', '.join(cameras)})")

    def _check_rigid(self, name: str) -> None:
        pose = getattr(self, name)
        rotation = pose[..., :3, :3]
        off = _off_orthonormal(rotation)
        if not torch.isfinite(pose).all() or off > 1e-3 or (torch.linalg.det(rotation) < 0).any():
            raise ValueError(f"Clip.{name}: not a rigid transform (rotation off orthonormal by {float(off):.2g})")
        if (pose[..., 3, :] != pose.new_tensor([0, 0, 0, 1])).any():
            raise ValueError(f"Clip.{name}: not a rigid transform (the last row must be 0 0 0 1)")


@exact
def _off_orthonormal(rotation: Tensor) -> Tensor:
    return (rotation @ rotation.mT - torch.eye(3, device=rotation.device)).abs().max()

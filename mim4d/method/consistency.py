"""8b. Consistency between images: the lift's own depth maps an image onto those that saw the same place.

Depth is right where the pixels that it leads to, in an image of another time or another camera, look like the pixel
itself (Monodepth2, arXiv 1806.01260). Nothing is rendered and nothing is decoded, so the gradient reaches the depth
network and the encoder undiluted, and cameras alone suffice. Where there is LiDAR, it supervises the same depth.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..clip import Clip
from ..geometry import constant, exact, invert, project, transform, unproject
from ..geometry.pinhole import resize_intrinsics

SCALES = (2, 4)
"""Sizes of the images that are compared, as fractions of the whole size: a coarse one widens the basin of the loss."""
SSIM_SHARE = 0.85
"""Share of structural dissimilarity in the photometric error; the rest is the absolute difference (Monodepth2)."""
SMOOTHNESS = 0.02
"""Weight of the smoothness of log depth."""
NEIGHBOURS = 2
"""Cameras of the same moment that an image is compared with: those whose optical axes are nearest to its own."""
BASELINE = 0.2
"""Smallest distance between a camera and its source, metres. Where a car stands, any depth fits, and a near one best,
because with the noise of the poses it blurs the noise of the pixels. Such pairs drew all depth to a few metres."""
NEAREST = 0.1
"""Points nearer than this to a source camera's plane do not project, metres."""


ALL = slice(None)
"""All frames of a clip."""


def consistency(log_depth: Tensor, clip: Clip, frames: slice = ALL) -> Tensor:
    """Compute the photometric consistency loss of dense depth, and its smoothness.

    Every image with a depth is compared with the same camera at all other frames and with the :data:`NEIGHBOURS`
    nearest cameras of its own frame. With e_s(pixel) the photometric error against source s where the depth leads into
    its image, e0 the error against the same pixel of other frames, as if nothing had moved, and I the image::

        loss = mean over scales and pixels of min(min over s of e_s, min over other frames of e0)
             + SMOOTHNESS * mean over pixels of |d log depth| exp(-|dI|)

    The minimum over sources leaves out what a source does not see; e0 leaves out what moves along with the car. Sources
    nearer than :data:`BASELINE` do not count, so that a car that stands learns from its other cameras alone. Pixels
    count where a window of 3 x 3 lies in the image and leads into a source.

    Args:
        log_depth: [B, K, V, h, w], logarithm of the depth along the optical axis in metres.
        clip: For images, calibration and poses of all T frames.
        frames: The K frames whose depth is given.

    Returns:
        The loss of each clip [B].
    """
    sources = source_images(clip)[:, frames]  # [B, K, V, S, 2]
    poses = source_poses(clip, sources, frames)  # [B, K, V, S, 4, 4]
    losses = [_compare(log_depth, clip, frames, sources, poses, scale) for scale in SCALES]
    return torch.stack(losses).mean(0) + SMOOTHNESS * roughness(log_depth, clip.images[:, frames])


def source_images(clip: Clip) -> Tensor:
    """List the images that every image is compared with.

    Returns:
        [B, T, V, S, 2] int64, frame and camera: first the T - 1 other frames of the same camera, then the nearest
        cameras of the same frame, by the angle between optical axes.
    """
    b, t, v = clip.batch_size, clip.num_frames, clip.num_cameras
    frame = torch.arange(t, device=clip.device).view(1, t, 1, 1)
    camera = torch.arange(v, device=clip.device).view(1, 1, v, 1)
    other = torch.arange(t - 1, device=clip.device).expand(b, t, v, -1)  # [B, T, V, T-1]
    other = other + (other >= frame).long()
    axes = clip.ego_from_camera[..., :3, 2]  # [B, T, V, 3]
    cosine = (axes[..., :, None, :] * axes[..., None, :, :]).sum(-1)  # [B, T, V, V]
    cosine = cosine - 4 * torch.eye(v, device=clip.device)  # a camera is no neighbour of its own
    nearest = cosine.topk(min(NEIGHBOURS, v - 1), dim=-1).indices  # [B, T, V, 2]
    over_time = torch.stack([other, camera.expand_as(other)], dim=-1)
    over_space = torch.stack([frame.expand_as(nearest), nearest], dim=-1)
    return torch.cat([over_time, over_space], dim=3)


@exact
def source_poses(clip: Clip, sources: Tensor, frames: slice = ALL) -> Tensor:
    """Compute the transforms from cameras to those of their source images, each at its own exposure time.

    Args:
        clip: For the poses.
        sources: [B, K, V, S, 2] int64, frame and camera.
        frames: The K frames of the cameras.

    Returns:
        ``source_from_target`` [B, K, V, S, 4, 4].
    """
    current_from_camera = clip.current_from_ego[:, :, None] @ clip.ego_from_camera  # [B, T, V, 4, 4]
    current_from_source = at_sources(current_from_camera, sources)  # [B, K, V, S, 4, 4]
    return invert(current_from_source) @ current_from_camera[:, frames, :, None]


def at_sources(per_image: Tensor, sources: Tensor) -> Tensor:
    """Look up values per image [B, T, V, ...] at sources [B, K, V, S, 2]: [B, K, V, S, ...]."""
    clip = torch.arange(len(sources), device=sources.device).view(-1, 1, 1, 1)
    frame, camera = sources.unbind(-1)
    return per_image[clip, frame, camera]


def _compare(log_depth: Tensor, clip: Clip, frames: slice, sources: Tensor, poses: Tensor, scale: int) -> Tensor:
    """Return the photometric part of the loss at one scale, [B]."""
    t = clip.num_frames
    images, depth, intrinsics = at_scale(log_depth, clip, scale)
    own = images[:, frames]  # [B, K, V, 3, H, W]
    points = pixel_points(depth, intrinsics[:, frames])  # [B, K, V, H*W, 3]
    apart = (poses[..., :3, 3].norm(dim=-1) >= BASELINE)[..., None, None]  # [B, K, V, S, 1, 1]
    errors = source_errors(own, points[..., None, :, :], images, intrinsics, sources, poses)  # [B, K, V, S, H-2, W-2]
    error = errors.where(apart, torch.inf).amin(3)  # [B, K, V, H-2, W-2]
    seen = error.isfinite()
    if t > 1:
        over_time = (slice(None), slice(None), slice(None), slice(t - 1))
        others = at_sources(images, sources[over_time])  # [B, K, V, T-1, 3, H, W]
        still = photometric_error(others, own[:, :, :, None]).where(apart[over_time], torch.inf).amin(3)
        error = torch.minimum(error, still)
    return mean_over(error, seen)


def at_scale(log_depth: Tensor, clip: Clip, scale: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, their depth and their intrinsics at a fraction of their size.

    Args:
        log_depth: [B, K, V, h, w], of any frames.
        clip: For images and intrinsics.
        scale: The divisor of the size.

    Returns:
        Colours [B, T, V, 3, H, W], 0 to 1; depth [B, K, V, H, W], metres; intrinsics [B, T, V, 3, 3], pixels.
    """
    shape = clip.images.shape[:3]
    images = F.avg_pool2d(clip.images.flatten(0, 2).float() / 255, scale).unflatten(0, shape)  # [B, T, V, 3, H, W]
    size = images.shape[-2:]
    depth = F.interpolate(log_depth.flatten(0, 1), size=size, mode="bilinear").exp()
    depth = depth.view(*log_depth.shape[:3], *size)
    return images, depth, resize_intrinsics(clip.intrinsics, 1 / scale, 1 / scale)


def source_errors(
    own: Tensor, points: Tensor, images: Tensor, intrinsics: Tensor, sources: Tensor, poses: Tensor
) -> Tensor:
    """Compare images with what their source images show where given points appear.

    Args:
        own: [B, K, V, 3, H, W], 0 to 1: the images that are compared.
        points: The point that each of their pixels shows, [B, K, V, S, H*W, 3], metres; S may be 1 where the points are
            the same for all sources.
        images: [B, T, V, 3, H, W], 0 to 1: the images among which their sources are.
        intrinsics: [B, T, V, 3, 3] of ``images``, pixels.
        sources: [B, K, V, S, 2] int64, frame and camera.
        poses: [B, K, V, S, 4, 4], from the frame of the points to those of the source cameras.

    Returns:
        The photometric error of each pixel, [B, K, V, S, H-2, W-2]; infinity where its window of 3 x 3 does not lead
        into the source.
    """
    size = images.shape[-2:]
    pixels, inside = source_pixels(points, at_sources(intrinsics, sources), poses, size)  # [B, K, V, S, H, W, 2]
    others = at_sources(images, sources)  # [B, K, V, S, 3, H, W]
    warped = sample(others.flatten(0, 3), pixels.flatten(0, 3)).view_as(others)
    error = photometric_error(warped, own[:, :, :, None])  # [B, K, V, S, H-2, W-2]
    return error.where(windows(inside, torch.logical_and), torch.inf)


def mean_over(error: Tensor, counted: Tensor) -> Tensor:
    """Average [B, ...] over the pixels that count, per clip: [B], 0 for a clip without any."""
    return error.where(counted, 0).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)


def pixel_points(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Return the points that the pixels of images show.

    Args:
        depth: [..., H, W], metres along the optical axis.
        intrinsics: [..., 3, 3], pixels.

    Returns:
        [..., H*W, 3] in the frame of the camera, metres.

    >>> intrinsics = torch.tensor([[100.0, 0.0, 1.0], [0.0, 100.0, 0.5], [0.0, 0.0, 1.0]])
    >>> pixel_points(torch.full((1, 2), 4.0), intrinsics)
    tensor([[-0.0200,  0.0000,  4.0000],
            [ 0.0200,  0.0000,  4.0000]])
    """
    height, width = depth.shape[-2:]
    rows = torch.arange(height, device=depth.device) + 0.5
    columns = torch.arange(width, device=depth.device) + 0.5
    v, u = torch.meshgrid(rows, columns, indexing="ij")  # [H, W]
    return unproject(intrinsics, torch.stack([u, v], dim=-1).flatten(0, 1), depth.flatten(-2))


@exact
def source_pixels(
    points: Tensor, source_intrinsics: Tensor, poses: Tensor, size: tuple[int, ...] | torch.Size
) -> tuple[Tensor, Tensor]:
    """Find where the points that the pixels of images show appear in their source images.

    Args:
        points: [..., S, H*W, 3], metres; S may be 1.
        source_intrinsics: [..., S, 3, 3], pixels.
        poses: [..., S, 4, 4], from the frame of the points to those of the source cameras.
        size: (H, W) of the images and of their sources.

    Returns:
        Pixels in the sources [..., S, H, W, 2], and whether they lie in the source image, in front of its camera.

    A camera that is moved 1 m to the right sees a point 4 m ahead 25 pixels farther left:

    >>> intrinsics = torch.tensor([[100.0, 0.0, 1.0], [0.0, 100.0, 0.5], [0.0, 0.0, 1.0]])
    >>> pose = torch.eye(4)[None]
    >>> pose[0, 0, 3] = -1
    >>> points = pixel_points(torch.full((1, 2), 4.0), intrinsics)[None]
    >>> source_pixels(points, intrinsics[None], pose, (1, 2))
    (tensor([[[[-24.5000,   0.5000],
              [-23.5000,   0.5000]]]]), tensor([[[False, False]]]))
    """
    height, width = size
    pixels, source_depth = project(source_intrinsics, transform(poses, points))  # [..., S, H*W, 2]
    u, v = pixels.unbind(-1)
    inside = (source_depth > NEAREST) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return pixels.unflatten(-2, (height, width)), inside.unflatten(-1, (height, width))


def sample(images: Tensor, pixels: Tensor) -> Tensor:
    """Interpolate images at pixels; beyond the border the nearest pixel counts.

    Args:
        images: [N, C, H, W].
        pixels: [N, h, w, 2], continuous.

    Returns:
        [N, C, h, w].
    """
    height, width = images.shape[-2:]
    grid = pixels * constant([2 / width, 2 / height], pixels) - 1
    # A point in the camera plane is at an infinite pixel: keep it finite, or its gradient is NaN.
    grid = grid.clamp(-2, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def photometric_error(a: Tensor, b: Tensor) -> Tensor:
    """Compute the photometric error of images: structural similarity (SSIM) and absolute difference (Monodepth2).

    With means, variances and covariance over windows of 3 x 3 pixels::

        SSIM  = (2 mean_a mean_b + c1) (2 cov_ab + c2) / ((mean_a^2 + mean_b^2 + c1) (var_a + var_b + c2))
        error = mean over channels of SSIM_SHARE * clamp((1 - SSIM) / 2, 0, 1) + (1 - SSIM_SHARE) * |a - b|

    Args:
        a: [..., C, H, W], 0 to 1.
        b: The same; leading dimensions broadcast.

    Returns:
        [..., H-2, W-2], 0 to 1: the pixels around which a window lies in the image.

    >>> dark, bright = torch.zeros(3, 3, 3), torch.ones(3, 3, 3)
    >>> photometric_error(dark, bright), photometric_error(dark, dark)
    (tensor([[0.5750]]), tensor([[0.]]))
    """

    def mean(x: Tensor) -> Tensor:
        return windows(x, torch.add) / 9

    mean_a, mean_b = mean(a), mean(b)  # [..., C, H-2, W-2]
    square_a, square_b, product = mean_a * mean_a, mean_b * mean_b, mean_a * mean_b
    var_a, var_b, covariance = mean(a * a) - square_a, mean(b * b) - square_b, mean(a * b) - product
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * product + c1) * (2 * covariance + c2) / ((square_a + square_b + c1) * (var_a + var_b + c2))
    difference = (a - b)[..., 1:-1, 1:-1].abs()
    return (SSIM_SHARE * ((1 - similarity) / 2).clamp(0, 1) + (1 - SSIM_SHARE) * difference).mean(-3)


def windows(x: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Join the values of every window of 3 x 3 pixels: [..., H, W] to [..., H-2, W-2].

    Slices are several times as fast as pooling on a CPU.

    >>> windows(torch.ones(3, 4), torch.add)
    tensor([[9., 9.]])
    """
    rows = join(join(x[..., :-2, :], x[..., 1:-1, :]), x[..., 2:, :])
    return join(join(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])


def roughness(log_depth: Tensor, images: Tensor) -> Tensor:
    """Compute how much log depth changes where the image does not.

    With differences between neighbouring pixels, along rows and along columns, and I the image at the same size::

        roughness = mean of |d log depth| exp(-mean over channels of |dI|), rows + columns

    Args:
        log_depth: [B, K, V, h, w].
        images: [B, K, V, 3, H, W], 0 to 255.

    Returns:
        [B].
    """
    b, _, _, h, w = log_depth.shape
    images = F.adaptive_avg_pool2d(images.flatten(0, 2).float() / 255, (h, w))  # [N, 3, h, w]
    maps = rearrange(log_depth, "b t v h w -> (b t v) 1 h w")
    total = torch.zeros(b, device=log_depth.device)
    for axis in (2, 3):
        edge = images.diff(dim=axis).abs().mean(1, keepdim=True)
        total = total + (maps.diff(dim=axis).abs() * torch.exp(-edge)).view(b, -1).mean(1)
    return total


def against_lidar(log_depth: Tensor, clip: Clip, depth_range: tuple[float, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Compare dense depth with LiDAR.

    Every point that projects into an image within the depth range counts, those that something nearer hides from the
    camera too: the sensors stand close together, so they are few.

    Args:
        log_depth: [B, T, V, h, w].
        clip: For points, calibration and image size.
        depth_range: Nearest and farthest depth that counts, metres.

    Returns:
        The mean absolute error of log depth over the points of each clip [B], 0 for a clip without any; and, by
        name, values per clip [B] without gradient, NaN for a clip without any: ``depth`` (mean absolute error,
        metres), ``abs_rel`` (error / depth) and ``delta`` (fraction within a factor of 1.25).
    """
    b, t, v, h, w = log_depth.shape
    points = transform(invert(clip.ego_from_camera), clip.points[:, :, None])  # [B, T, V, P, 3]
    pixels, depth = project(clip.intrinsics, points)  # [B, T, V, P, 2]
    height, width = clip.image_size
    x, y = pixels.unbind(-1)
    counted = clip.points_valid[:, :, None] & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    counted = counted & (depth >= depth_range[0]) & (depth < depth_range[1])  # [B, T, V, P]
    on_map = torch.where(counted[..., None], pixels * constant([w / width, h / height], pixels), 0)
    predicted = sample(log_depth.reshape(b * t * v, 1, h, w), on_map.flatten(0, 2)[:, None])  # [N, 1, 1, P]
    predicted = predicted.view(b, t, v, -1)
    depth = torch.where(counted, depth, 1.0)
    error = (predicted - depth.log()).abs()
    count = counted.flatten(1).sum(1)  # [B]

    def mean(value: Tensor) -> Tensor:
        return torch.where(counted, value, 0).flatten(1).sum(1) / count.clamp(min=1)

    with torch.no_grad():
        metres = (predicted.exp() - depth).abs()
        close = error < math.log(1.25)
        measures = {"depth": metres, "abs_rel": metres / depth, "delta": close.float()}
        measures = {name: torch.where(count > 0, mean(value), torch.nan) for name, value in measures.items()}
    return mean(error), measures

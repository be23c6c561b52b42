"""Pictures of a model: input, mask, rendered colour and depth beside observations, and BEV flow."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from ..clip import Clip
from ..geometry import VoxelGrid, invert, pixel_rays, project, transform
from ..io.files import write_file
from ..method.model import MIM4D, pick

MAX_DEPTH = 50.0
"""Depth at the far end of the colour scale, metres."""
FRONT = "CAM_FRONT"
"""Camera of an animation; the first one if the clip has none of this name."""
PANEL_WIDTH = 480
"""Largest width of one panel of an animation, pixels."""
TITLE_HEIGHT = 14
PAUSE = 1.0
"""Seconds for which an animation shows its last frame, and the last frame of a scene."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """The current frame of one clip, rendered at every ``stride``-th pixel; all on the CPU."""

    stride: int
    rgb: dict[str, Tensor]
    """``direct`` and, if the model is temporal, ``temporal``: [V, h, w, 3], 0 to 1."""
    depth: dict[str, Tensor]
    """The same: [V, h, w] distance along the ray, metres; NaN where the opacity is at most 0.5 (sky). Also
    ``lift``, the lift's own depth, if a loss supervises it."""
    flow: Tensor | None
    """[2, Y, X] velocity in m/s in the ego frame, if a loss trains it."""


@torch.no_grad()
def render_views(model: MIM4D, clip: Clip, stride: int = 4, cameras: slice = slice(None)) -> Views:
    """Render whole images of the current frame of the first clip, from masked input, in eval mode.

    Args:
        model: The model; its training mode is restored afterwards.
        clip: On the model's device.
        stride: Pixels between rays.
        cameras: Cameras to render, V of them; the model receives all.

    Returns:
        The rendered views.
    """
    training = model.training
    model.eval()
    target = torch.full((1, 1), clip.num_frames - 1, device=clip.device)
    clip = clip.first()
    features = model.images(clip)
    probability = model.lift.depth(features, clip)
    flow = None if model.flow is None else model.velocities(features, probability, clip)[0, -1]  # [2, Y, X]
    shown = {}
    if model.config.loss.renders:
        volumes = model.lift(features, probability, clip)
        shown["direct"] = pick(volumes, target)
        if model.temporal is not None:
            shown["temporal"] = model.temporal(*model.warp_others(volumes, clip, target))

    height, width = (side // stride for side in clip.image_size)
    v, u = torch.meshgrid(
        torch.arange(height, device=clip.device), torch.arange(width, device=clip.device), indexing="ij"
    )
    pixels = (torch.stack([u, v], dim=-1).flatten(0, 1) + 0.5) * stride
    origins, directions = pixel_rays(pixels, clip.intrinsics[:, -1, cameras], clip.ego_from_camera[:, -1, cameras])
    # origins and directions: [1, V, h*w, 3]
    depth = {}
    if model.config.loss.supervises_lift:
        log_depth = model.lift.log_depth(probability)[:, -1, cameras]  # [1, V, h', w']
        along_axis = F.interpolate(log_depth, size=(height, width), mode="bilinear").exp()
        axes = clip.ego_from_camera[:, -1, cameras, None, :3, 2]  # [1, V, 1, 3]
        depth["lift"] = along_axis[0] / (directions * axes).sum(-1).view(-1, height, width)
    rendered = {k: model.renderer(x, origins.flatten(1, 2), directions.flatten(1, 2)) for k, x in shown.items()}
    model.train(training)
    size = (origins.shape[1], height, width)
    return Views(
        stride=stride,
        rgb={k: x.rgb.view(*size, 3).float().cpu() for k, x in rendered.items()},
        depth={k: x.cpu() for k, x in depth.items()}
        | {k: x.depth.where(x.opacity > 0.5, torch.nan).view(*size).cpu() for k, x in rendered.items()},
        flow=None if flow is None else flow.cpu(),
    )


def lidar_pixels(clip: Clip, camera: int) -> tuple[np.ndarray, np.ndarray]:
    """Project the current frame's LiDAR into a camera of the first clip: pixels [N, 2], distances [N] in metres."""
    points = clip.points[0, -1, : int(clip.num_points[0, -1])]
    ego_from_camera = clip.ego_from_camera[0, -1, camera]
    pixels, depth = project(clip.intrinsics[0, -1, camera], transform(invert(ego_from_camera), points))
    height, width = clip.image_size
    u, v = pixels.unbind(-1)
    seen = (depth > 0.5) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    distance = (points - ego_from_camera[:3, 3]).norm(dim=-1)
    return pixels[seen].numpy(), distance[seen].numpy()


def save_picture(model: MIM4D, clip: Clip, path: Path, stride: int = 4) -> None:
    """Draw the current frame of the first clip, one row per camera, and write a PNG atomically.

    Args:
        model: The model.
        clip: On the model's device.
        path: The file to write.
        stride: Pixels between rendered rays.
    """
    views = render_views(model, clip, stride)
    visible = model.visible(clip)[0, -1].cpu()
    clip = clip.first().to("cpu")
    patches = visible.repeat_interleave(model.patch, 1).repeat_interleave(model.patch, 2)
    images = clip.images[0, -1].permute(0, 2, 3, 1)  # [V, H, W, 3]
    kinds, depths = list(views.rgb), list(views.depth)
    lidar = ["LiDAR depth"] if int(clip.num_points[0, -1]) else []
    titles = ["input", "visible", *[f"{k} colour" for k in kinds], *lidar, *[f"{k} depth" for k in depths]]
    cameras, columns = len(clip.cameras), len(titles)

    aspect = images.shape[1] / images.shape[2]
    cell = 2.6
    bev = 0.0 if views.flow is None else max(cell * aspect * cameras, cell)
    figure = Figure(figsize=(cell * columns + bev * 1.15, cell * aspect * cameras + 0.5), dpi=120, layout="constrained")
    sheet = figure.add_gridspec(cameras, columns + 1, width_ratios=[cell] * columns + [max(bev * 1.15, 0.01)])
    for row in range(cameras):
        panels = [images[row], torch.where(patches[row, ..., None], images[row], 96)]
        panels += [views.rgb[k][row] for k in kinds]
        axes = [figure.add_subplot(sheet[row, column]) for column in range(columns)]
        for axis, panel in zip(axes, panels, strict=False):
            axis.imshow(panel.numpy(), interpolation="nearest", aspect="auto")
        if lidar:
            _draw_lidar(axes[len(panels)], clip, row)
        for axis, kind in zip(axes[len(panels) + len(lidar) :], depths, strict=True):
            axis.set_facecolor("black")
            axis.imshow(views.depth[kind][row].numpy(), cmap="turbo_r", vmin=0, vmax=MAX_DEPTH, aspect="auto")
        for axis, title in zip(axes, titles, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(title, fontsize=9)
        axes[0].set_ylabel(clip.cameras[row].removeprefix("CAM_"), fontsize=7)
    if views.flow is not None:
        _draw_flow(figure.add_subplot(sheet[:, columns]), views.flow, clip, model.config.grid)
    figure.suptitle(f"{clip.names[0]}   (depth colours: 0 to {MAX_DEPTH:g} m, red is near)", fontsize=9)
    write_file(path, lambda partial: figure.savefig(partial, format="png"))


def save_animation(model: MIM4D, clips: Iterable[Clip], path: Path, stride: int = 4) -> None:
    """Render one camera in the current frames of successive clips, and write a WebP loop at the recorded speed.

    Args:
        model: The model.
        clips: At least one, in temporal order, each on the model's device.
        path: The file to write, atomically.
        stride: Pixels between rendered rays.
    """
    frames, times = [], []
    for clip in clips:
        frames.append(_animation_frame(model, clip.first(), stride))
        times.append(float(clip.timestamps[0, -1]))
    gaps = np.diff(times)
    pauses = [*np.where((gaps > 0) & (gaps < PAUSE), gaps, PAUSE), PAUSE]
    durations = [round(1000 * pause) for pause in pauses]  # milliseconds
    write_file(
        path,
        lambda partial: frames[0].save(
            partial, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=80
        ),
    )


def _animation_frame(model: MIM4D, clip: Clip, stride: int) -> Image.Image:
    """Join the camera image and the visible patches, above rendered colour (left) and depth (right)."""
    camera = clip.cameras.index(FRONT) if FRONT in clip.cameras else 0
    views = render_views(model, clip, stride, slice(camera, camera + 1))
    image = clip.images[0, -1, camera].permute(1, 2, 0).cpu().numpy()  # [H, W, 3]
    patches = model.visible(clip)[0, -1, camera].cpu().numpy().repeat(model.patch, 0).repeat(model.patch, 1)
    panels = {"camera": image, "visible to the model": np.where(patches[..., None], image, 96).astype(np.uint8)}
    sources = {"direct": "from the visible patches", "temporal": "from the other frames alone"}
    for kind, rgb in views.rgb.items():
        panels[f"colour, {sources[kind]}"] = (rgb[0].clamp(0, 1) * 255).byte().numpy()
        panels[f"depth, {sources[kind]}"] = _depth_colours(views.depth[kind][0].numpy())
    if "lift" in views.depth:
        panels["depth of the lift"] = _depth_colours(views.depth["lift"][0].numpy())

    height, width = clip.image_size
    scale = min(1.0, PANEL_WIDTH / width)
    height, width = round(height * scale), round(width * scale)
    frame = Image.new("RGB", (2 * width, -(-len(panels) // 2) * (height + TITLE_HEIGHT)), "black")
    draw = ImageDraw.Draw(frame)
    for place, (title, panel) in enumerate(panels.items()):
        row, column = divmod(place, 2)
        left, top = column * width, row * (height + TITLE_HEIGHT)
        draw.text((left + 3, top + 1), title, fill="white")
        frame.paste(Image.fromarray(panel).resize((width, height)), (left, top + TITLE_HEIGHT))
    return frame


def _depth_colours(depth: np.ndarray) -> np.ndarray:
    """Colour a depth map [h, w] in metres as [h, w, 3]: near is red, NaN is black."""
    colours = matplotlib.colormaps["turbo_r"](np.nan_to_num(depth / MAX_DEPTH), bytes=True)[..., :3]
    return np.where(np.isnan(depth)[..., None], 0, colours).astype(np.uint8)


def _draw_lidar(axis: Axes, clip: Clip, camera: int) -> None:
    height, width = clip.image_size
    pixels, distance = lidar_pixels(clip, camera)
    far_first = np.argsort(-distance)
    axis.set_facecolor("black")
    u, v = pixels[far_first].T
    axis.scatter(u, v, c=distance[far_first], s=1.2, cmap="turbo_r", vmin=0, vmax=MAX_DEPTH, linewidths=0)
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)


def _draw_flow(axis: Axes, flow: Tensor, clip: Clip, grid: VoxelGrid) -> None:
    """Draw speed as colour and direction as arrows under LiDAR points in BEV; forward is up, left is left."""
    speed = flow.norm(dim=0)
    # Ego x (forward) goes up the page and ego y (left) to the left, so transpose and turn both axes.
    extent = (grid.y[1], grid.y[0], grid.x[0], grid.x[1])
    top = max(1.0, float(speed.quantile(0.99)))
    image = axis.imshow(speed.T.flip(1).numpy(), origin="lower", extent=extent, cmap="magma", vmin=0, vmax=top)
    points = clip.points[0, -1, : int(clip.num_points[0, -1])]
    points = points[grid.contains(points) & (points[:, 2] > 0.3)]
    axis.scatter(points[:, 1].numpy(), points[:, 0].numpy(), s=0.3, c="white", alpha=0.5, linewidths=0)
    step = max(1, flow.shape[1] // 20)
    centers = grid.centers(flow)[0, ::step, ::step]
    vx, vy = flow[:, ::step, ::step]
    arrows = (centers[..., 1], centers[..., 0], vy, vx)
    axis.quiver(*(a.numpy() for a in arrows), color="cyan", angles="xy", scale_units="xy", scale=0.5, width=0.003)
    axis.set_xlim(grid.y[1], grid.y[0])
    axis.set_ylim(grid.x[0], grid.x[1])
    axis.set_title("BEV flow, m/s (arrows: 2 s of motion)", fontsize=9)
    axis.set_xlabel("left  <-  y, m", fontsize=8)
    axis.set_ylabel("x forward, m", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.figure.colorbar(image, ax=axis, shrink=0.7)

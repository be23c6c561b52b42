"""Draw the pictures of "The method in pictures" from the exact geometry of a synthetic street, without a network.

python docs/pictures.py docs/pictures
"""

from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mim4d.backbones.encoder import PATCH
from mim4d.clip import Clip
from mim4d.data import DataConfig, NuScenesClips
from mim4d.data.index import cache_folder
from mim4d.geometry import VoxelGrid, transform, unproject
from mim4d.io.files import make_folder, write_file
from mim4d.method.lift import Lift, LiftConfig, splat
from mim4d.method.mask import visible_patches
from mim4d.method.model import MethodConfig
from mim4d.method.rays import choose_rays
from mim4d.method.render import IMPORTANCE_INV_S, NEAR, section_weights
from mim4d.method.sampling import importance, stratified, surface_weights
from mim4d.method.warp import warp
from mim4d.world import WorldConfig, make_world
from mim4d.world.capture import Moment, SceneJob, pose_matrix, stage_of
from mim4d.world.config import PERIOD, scene_names
from mim4d.world.make import scene_job
from mim4d.world.raycast import cast
from mim4d.world.views import Pinhole

Shown = NDArray[np.floating]
VERSION = "v1.0-mini"
FRONT = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT")
CAMERAS = (*FRONT, "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
METHOD = MethodConfig()
GRID = VoxelGrid(x=(-40, 40), y=(-40, 40), z=(-2, 6), voxel=(0.5, 0.5, 1.0))
STRIDE = 2
"""Pixels between lifted image features."""
REACH = 30.0
"""Metres around the car in views from above."""
FILLED = 0.01
"""Weight from which a voxel is drawn."""
SCENE_UNIT = 40.0
"""Metres per unit of the renderer: the grid's farthest edge."""
SHARPNESS = {20.0: "tab:orange", 200.0: "tab:red"}
"""Of the surface: at the start of training, and later; with their colours."""
MAX_DEPTH = 50.0
"""Depth at the far end of the colour scale, metres."""
HIDDEN_GREY = 110


@dataclass(frozen=True)
class Scene:
    """A clip with the truth about its world."""

    clip: Clip
    depth: Shown
    """[T, V, H, W] metres along the optical axis, infinite for the sky."""
    volumes: Tensor
    """[1, T, 4, Z, Y, X], each frame's colours and their weight, lifted with the true depth into its own ego frame."""
    corners: Shown
    """[N, 4, 2] boxes of vehicles and pedestrians in the current ego frame, metres."""
    velocity: Shown
    """[N, 2] their velocity over ground, m/s."""

    @property
    def now(self) -> int:
        """Number of the current frame."""
        return self.clip.num_frames - 1

    def points(self, frame: int) -> Tensor:
        """A frame's LiDAR [N, 3] in its own ego frame: what lies in the grid and above the ground."""
        points = self.clip.points[0, frame, : int(self.clip.num_points[0, frame])]
        return points[GRID.contains(points) & (points[:, 2] > 0.4)]


def main(out: tyro.conf.Positional[Path], clip: int | None = None, scale: float = 0.5, scenes: int = 6) -> None:
    """Draw a small world and save the pictures as JPEG files.

    Args:
        out: Folder for the pictures.
        clip: Number of the clip to show, counted from 0; by default the one in which the most vehicles move nearby.
        scale: Size of the world's images relative to 1600 x 900 pixels.
        scenes: Number of scenes to draw.
    """
    world = WorldConfig(scenes=scenes, keyframes=5, scale=scale)
    root = make_world(cache_folder() / f"method-world-{scenes}-{scale:g}", VERSION, world)
    width = int(1600 * scale * 0.9) // PATCH * PATCH
    config = DataConfig(
        dataroot=str(root),
        version=VERSION,
        split="mini_train",
        frames=3,
        cameras=CAMERAS,
        image_size=(round(width * 0.36 / PATCH) * PATCH, width),
    )
    clips = NuScenesClips(config)
    number = max(range(len(clips)), key=lambda n: motion_nearby(clips[n], world)) if clip is None else clip
    scene = with_truth(clips[number], world)
    make_folder(out)
    for draw in PICTURES:
        path = out / f"{draw.__name__}.jpg"
        save(draw(scene), path)
        print(path)


# --- the truth about a clip ------------------------------------------------------------------------------------------


def job_of(clip: Clip, world: WorldConfig) -> tuple[SceneJob, list[float]]:
    """Return the recipe of a clip's scene, and the times [T] of its frames in seconds from the scene's start."""
    name = clip.names[0].partition("@")[0]
    place = dict(scene_names(VERSION, world.scenes))[name]
    job = scene_job(world, name, place, (0.0, 0.0))
    times = (clip.timestamps[0] - job.start * 1e-6).tolist()
    return job, [round(time / PERIOD) * PERIOD for time in times]


def with_truth(clip: Clip, world: WorldConfig) -> Scene:
    """Add exact depth, lifted volumes, boxes and velocities to a clip."""
    job, times = job_of(clip, world)
    mounted = {calibration.sensor.channel: calibration for calibration in job.calibrations()}
    depth = np.zeros((clip.num_frames, clip.num_cameras, *clip.image_size), np.float32)
    for t, time in enumerate(times):
        for v, channel in enumerate(clip.cameras):
            calibration = mounted[channel]
            moment = Moment(stage_of(job), job, calibration, time + calibration.sensor.delay)
            view = Pinhole(clip.image_size, clip.intrinsics[0, t, v].double().numpy(), moment.world_from_sensor)
            depth[t, v] = cast(view, moment.shapes).t
    volumes = torch.stack([lift(clip, depth[t], t) for t in range(clip.num_frames)], dim=1)
    corners, velocity = actors(job, times[-1])
    return Scene(clip, depth, volumes, corners, velocity)


def lift(clip: Clip, depth: Shown, frame: int) -> Tensor:
    """Lift a frame's colours with depth [V, H, W]: a volume [1, 4, Z, Y, X] of summed colours and their weight."""
    lifter = Lift(LiftConfig(depth_range=(1, 41), depth_channels=4, channels=4), 1, STRIDE, GRID)
    near, step, bins = lifter.config.depth_range[0], lifter.config.depth_step, lifter.config.num_bins
    middle = slice(STRIDE // 2, None, STRIDE)
    colours = clip.images[0, frame, :, :, middle, middle].float() / 255  # [V, 3, h, w]
    known = torch.from_numpy(depth[:, middle, middle])  # [V, h, w]
    number = torch.where(known.isfinite(), (known - near) / step, -1).floor().long()
    shares = (number[:, None] == torch.arange(bins)[:, None, None]).float()  # [V, D, h, w], 1 in the right bin
    context = torch.cat([colours, torch.ones_like(colours[:, :1])], dim=1)  # [V, 4, h, w]
    one = replace(
        clip,
        intrinsics=clip.intrinsics[:, frame : frame + 1],
        ego_from_camera=clip.ego_from_camera[:, frame : frame + 1],
    )
    volume = splat(shares, context, lifter.voxels(one, known.shape[1:]), 1, GRID)
    return F.avg_pool3d(volume, 3, stride=1, padding=1)  # in place of the lift's 3D convolution


def actors(job: SceneJob, time: float) -> tuple[Shown, Shown]:
    """Return the corners [N, 4, 2] and velocities [N, 2] of all actors, in the ego frame of that time."""
    stage = stage_of(job)
    scene = stage.scene
    ego_from_world = np.linalg.inv(pose_matrix(*scene.ego.pose(time)))
    found = stage.boxes(time)
    half = 0.05  # s
    ends = [stage.boxes(time + sign * half)["center"] for sign in (-1, 1)]
    velocity = (ends[1] - ends[0]) / (2 * half) @ ego_from_world[:3, :3].T
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
    flat = found["half"][:, None, :2] * signs  # [N, 4, 2]
    cos, sin = np.cos(found["yaw"])[:, None], np.sin(found["yaw"])[:, None]
    turned = np.stack([cos * flat[..., 0] - sin * flat[..., 1], sin * flat[..., 0] + cos * flat[..., 1]], axis=-1)
    corners = found["center"][:, None, :2] + turned
    return corners @ ego_from_world[:2, :2].T + ego_from_world[:2, 3], velocity[:, :2]


def motion_nearby(clip: Clip, world: WorldConfig) -> float:
    """Return how much moves within 25 m, for a clip in which the car itself moves."""
    job, times = job_of(clip, world)
    corners, velocity = actors(job, times[-1])
    near = np.abs(corners).max((1, 2)) < 25
    driven = float(clip.current_from_ego[0, 0, :2, 3].norm())
    return min(driven, 8.0) * float(np.linalg.norm(velocity[near], axis=1).clip(max=8).sum())


# --- the pictures ----------------------------------------------------------------------------------------------------


def masks(scene: Scene) -> Figure:
    """Draw every image of the clip with its hidden patches grey, one row per frame."""
    images = visible_images(scene.clip)
    frames, cameras = images.shape[:2]
    figure, axes = grid_of_images(frames, cameras, scene.clip.image_size, wide=15)
    for t in range(frames):
        for v in range(cameras):
            show(axes[t, v], images[t, v].numpy())
            if t == 0:
                axes[t, v].set_title(camera_name(scene.clip.cameras[v]), fontsize=10)
        axes[t, 0].set_ylabel("now" if t == scene.now else f"{float(scene.clip.times[0, t]):.1f} s", fontsize=10)
    return figure


def lifted(scene: Scene) -> Figure:
    """Draw images, their true depth, and the volume that the lift makes of both."""
    figure = Figure(figsize=(13.5, 5.4), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.5, 1], squeeze=False)[0]
    axes = left.subplots(4, 3, squeeze=False)
    for row, part in enumerate((CAMERAS[:3], CAMERAS[3:])):
        for column, name in enumerate(part):
            v = scene.clip.cameras.index(name)
            show(axes[2 * row, column], scene.clip.images[0, -1, v].permute(1, 2, 0).numpy())
            show(axes[2 * row + 1, column], scene.depth[-1, v], cmap="turbo_r", vmin=0, vmax=MAX_DEPTH)
            axes[2 * row, column].set_title(camera_name(name), fontsize=10)
    axis = right.subplots()
    from_above(axis, colours(scene.volumes[:, -1]))
    axis.set_title("the volume from above, forward is up", fontsize=10)
    return figure


def warped(scene: Scene) -> Figure:
    """Draw a past frame over the current one, as recorded and after the ego-motion warp: LiDAR, then volumes."""
    past = 0
    now_from_past = scene.clip.current_from_ego[0, past]
    ago = f"{-float(scene.clip.times[0, past]):.1f} s ago"
    figure = Figure(figsize=(10.5, 10.8), dpi=100, layout="constrained")
    axes = figure.subplots(2, 2)
    for axis, points, title in (
        (axes[0, 0], scene.points(past), f"LiDAR {ago} (red) and now (blue), as recorded"),
        (axes[0, 1], transform(now_from_past, scene.points(past)), "after the warp"),
    ):
        frame_from_above(axis)
        dots(axis, scene.points(scene.now), "tab:blue", 1.0)
        dots(axis, points, "tab:red", 1.0)
        axis.set_title(title, fontsize=11)
    for axis, volume, title in (
        (axes[1, 0], scene.volumes[:, past], f"volume of {ago}, in its own frame"),
        (axes[1, 1], warp_to_now(scene)[:, past], "after the warp"),
    ):
        from_above(axis, colours(volume))
        dots(axis, scene.points(scene.now), "tab:blue", 1.0)
        axis.set_title(f"{title}; LiDAR of now in blue", fontsize=11)
    return figure


def motion(scene: Scene) -> Figure:
    """Draw what the temporal decoder gets, and what it must make of it: the same street with everything moved on."""
    figure = Figure(figsize=(11.5, 6.0), dpi=100, layout="constrained")
    axes = figure.subplots(1, 2)
    others = warp_to_now(scene)[:, : scene.now].sum(1)
    for axis, volume, title in (
        (axes[0], others, "given: the other frames, warped"),
        (axes[1], scene.volumes[:, -1], "dropped: the current frame"),
    ):
        from_above(axis, colours(volume), reach=25)
        moving = np.linalg.norm(scene.velocity, axis=1) > 0.5
        for corners in scene.corners[moving]:
            outline = np.concatenate([corners, corners[:1]])
            axis.plot(outline[:, 1], outline[:, 0], color="red", linewidth=1.2)
        x, y = scene.corners[moving].mean(1).T
        along = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.005}
        axis.quiver(y, x, scene.velocity[moving, 1], scene.velocity[moving, 0], color="red", **along)
        axis.set_title(title, fontsize=11)
    return figure


def ray(scene: Scene) -> Figure:
    """Draw one ray's samples, the true signed distance along it, and the rendering weights that follow from it."""
    near = torch.tensor([NEAR])
    origin, direction, surface, depth = ray_to_a_wall(scene)
    far = torch.tensor([depth + 6.0])

    def distance(along: Tensor) -> Tensor:
        """Signed distance [S] in metres at distances [S] along the ray: negative behind the surface that it meets."""
        unsigned = torch.cdist(origin + along[:, None] * direction, surface).amin(1)
        return torch.where(along < depth, unsigned, -unsigned)

    # The renderer's own steps, with the true distance in place of the decoder's.
    even = stratified(near, far, torch.full((1, METHOD.render.uniform_samples), 0.5))
    coarse = surface_weights(even / SCENE_UNIT, distance(even[0])[None] / SCENE_UNIT, IMPORTANCE_INV_S)
    samples = importance(even, coarse, METHOD.render.importance_samples)
    edges = torch.cat([samples[0], far])
    steps = edges.diff()[None]
    sdf = distance(samples[0] + steps[0] / 2)[None]
    slopes = (distance(edges).diff() / steps[0])[None]

    figure = Figure(figsize=(9.5, 4.6), dpi=100, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    fine = torch.linspace(float(near), float(far), 600)
    top.plot(fine, distance(fine), color="tab:blue")
    top.axhline(0, color="grey", linewidth=0.8)
    top.set_ylabel("signed distance, m")
    for sharpness, colour in SHARPNESS.items():
        weights, _ = section_weights(sdf / SCENE_UNIT, slopes, steps / SCENE_UNIT, torch.tensor(sharpness))
        shown = float((weights * (samples + steps / 2)).sum() / weights.sum())
        label = f"sharpness {sharpness:g}: rendered depth {shown:.1f} m"
        bottom.stairs((weights / steps)[0], edges, fill=True, alpha=0.6, color=colour, label=label)
    bottom.plot(samples[0], torch.full_like(samples[0], -0.06), "|", color="black", markersize=7, label="samples")
    bottom.set(ylabel="weight per metre", xlabel="distance along the ray, m")
    for axis in (top, bottom):
        axis.axvline(depth, color="black", linestyle="--", linewidth=1, label=f"LiDAR: {depth:.1f} m")
    bottom.legend(fontsize=9, loc="upper left")
    return figure


def targets(scene: Scene) -> Figure:
    """Draw all that a step's loss compares with in three images: colour and depth at the rays' pixels."""
    clip = scene.clip
    per_view = METHOD.render.rays_per_view
    rays = choose_rays(clip, torch.full((1, 1), scene.now), per_view, GRID, "rgbd")
    figure, axes = grid_of_images(3, 3, clip.image_size, wide=11)
    for column, name in enumerate(FRONT):
        v = clip.cameras.index(name)
        mine = slice(v * per_view, (v + 1) * per_view)
        valid = rays.valid[0, mine]
        x, y = rays.pixels[0, mine][valid].T
        show(axes[0, column], clip.images[0, -1, v].permute(1, 2, 0).numpy())
        scatter(axes[1, column], clip, x, y, rays.rgb[0, mine][valid])
        depth = {"cmap": "turbo_r", "vmin": 0, "vmax": MAX_DEPTH}
        scatter(axes[2, column], clip, x, y, rays.depth[0, mine][valid], **depth)
        axes[0, column].set_title(camera_name(name), fontsize=10)
    for row, label in enumerate(("image", f"colour, {per_view} rays", "depth")):
        axes[row, 0].set_ylabel(label, fontsize=10)
    return figure


PICTURES = (masks, lifted, warped, motion, ray, targets)


# --- parts of them ---------------------------------------------------------------------------------------------------


def camera_name(channel: str) -> str:
    """Return a channel's name in words, such as ``front left``."""
    return channel.removeprefix("CAM_").replace("_", " ").lower()


def visible_images(clip: Clip) -> Tensor:
    """Return the clip's images [T, V, H, W, 3] with hidden patches grey."""
    visible = visible_patches(clip.seeds, clip.num_frames, clip.num_cameras, clip.image_size, METHOD.mask_ratio)[0]
    pixels = visible.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)  # [T, V, H, W]
    return torch.where(pixels[..., None], clip.images[0].movedim(2, -1), HIDDEN_GREY)


def ray_to_a_wall(scene: Scene) -> tuple[Tensor, Tensor, Tensor, float]:
    """Choose a ray that passes far from everything before it meets a surface.

    Returns:
        Its origin [3] and direction [3], the visible surfaces as points [N, 3], all in the current ego frame, and the
        LiDAR's distance along the ray in metres.
    """
    surfaces = []
    for v in range(scene.clip.num_cameras):
        camera = unproject(scene.clip.intrinsics[0, -1, v], *pixels_with_depth(scene.depth[-1, v]))
        surfaces.append(transform(scene.clip.ego_from_camera[0, -1, v], camera))
    surface = torch.cat(surfaces)
    rays = choose_rays(scene.clip, torch.full((1, 1), scene.now), 64, GRID, "rgbd")
    candidates = torch.nonzero(rays.valid[0] & (rays.depth[0] > 12) & (rays.depth[0] < 22))[:, 0]

    def clearance(number: Tensor) -> float:
        shares = torch.tensor([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0])
        points = rays.origins[0, number] + shares[:, None] * rays.depth[0, number] * rays.directions[0, number]
        to_surface = torch.cdist(points, surface).amin(1)
        return float(to_surface[:-1].min() - 10 * to_surface[-1])  # it ends on a surface

    best = max(candidates, key=clearance)
    return rays.origins[0, best], rays.directions[0, best], surface, float(rays.depth[0, best])


def pixels_with_depth(depth: Shown) -> tuple[Tensor, Tensor]:
    """Return every second pixel [N, 2] of an image with a finite depth, and the depths [N]."""
    rows, columns = np.nonzero(np.isfinite(depth[::2, ::2]))
    pixels = torch.from_numpy(np.stack([2 * columns, 2 * rows], axis=1)) + 0.5
    return pixels.float(), torch.from_numpy(depth[2 * rows, 2 * columns])


def warp_to_now(scene: Scene) -> Tensor:
    """Return all volumes [1, T, 4, Z, Y, X] in the current ego frame."""
    target, sources = torch.full((1, 1), scene.now), torch.arange(scene.now + 1).view(1, 1, -1)
    return warp(scene.volumes, scene.clip.source_from_target(target, sources)[:, 0], GRID)


def colours(volume: Tensor) -> Shown:
    """Return the colour [3, Y, X] of the highest filled voxel per column of [1, 4, Z, Y, X]; white if none."""
    rgb, weight = volume[0, :3], volume[0, 3]  # [3, Z, Y, X], [Z, Y, X]
    filled = weight > FILLED
    top = (filled * torch.arange(1, len(filled) + 1)[:, None, None]).argmax(0)  # [Y, X]
    mean = rgb / weight.clamp(min=1e-6)
    picked = mean.gather(1, top.expand(3, 1, -1, -1))[:, 0]
    return torch.where(filled.any(0), picked, 1.0).clamp(0, 1).numpy()


def grid_of_images(rows: int, columns: int, size: tuple[int, int], wide: float) -> tuple[Figure, NDArray[np.object_]]:
    """Return a figure for rows of images without axes."""
    high = wide / columns * size[0] / size[1] * rows
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure = Figure(figsize=(wide, high + 0.35), dpi=100, layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False)


def show(axis: Axes, image: Shown, **style: Any) -> None:
    """Fill axes with an image."""
    axis.imshow(image, aspect="auto", interpolation="nearest", **style)
    axis.set(xticks=[], yticks=[])


def scatter(axis: Axes, clip: Clip, x: Tensor, y: Tensor, values: Tensor, **style: Any) -> None:
    """Draw values at pixels on a black image."""
    height, width = clip.image_size
    axis.set_facecolor("black")
    axis.scatter(x, y, s=5.0, c=values.numpy(), linewidths=0, **style)
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def frame_from_above(axis: Axes, reach: float = REACH) -> None:
    """Set up axes for a view from above: ego x (forward) up the page, ego y to the left."""
    axis.set(xlim=(reach, -reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    axis.plot(0, 0, marker="^", color="black", markeredgecolor="white", markersize=9)


def from_above(axis: Axes, bev: Shown, reach: float = REACH) -> AxesImage:
    """Draw a map [3, Y, X] from above."""
    shown = np.moveaxis(np.swapaxes(bev, -1, -2)[..., ::-1], 0, -1)  # rows: x forward; columns: from +y to -y
    extent = (GRID.y[1], GRID.y[0], GRID.x[0], GRID.x[1])
    image = axis.imshow(shown, origin="lower", extent=extent, interpolation="nearest")
    frame_from_above(axis, reach)
    return image


def dots(axis: Axes, points: Tensor, colour: str, size: float) -> None:
    """Draw points from above."""
    axis.scatter(points[:, 1], points[:, 0], s=size, c=colour, linewidths=0, alpha=0.8)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a JPEG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    image = Image.open(buffer).convert("RGB")
    write_file(path, lambda partial: image.save(partial, format="JPEG", quality=85, optimize=True))


if __name__ == "__main__":
    tyro.cli(main)

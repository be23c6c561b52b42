"""The pictures of "The method in pictures", from a run and its own held-out clips: every one by the shipped code.

python docs/pictures.py runs/demo docs/pictures
"""

import io
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.path import Path as MplPath
from numpy.typing import NDArray
from nuscenes.nuscenes import NuScenes
from PIL import Image
from torch import Tensor

from mim4d.backbones.masked import masked_maps
from mim4d.clip import Clip
from mim4d.data import NuScenesClips
from mim4d.errors import UserError
from mim4d.geometry import VoxelGrid, box_interval, invert, make_pose, rotation_from_quaternion, transform
from mim4d.method.model import MIM4D, pick
from mim4d.method.rays import choose_rays
from mim4d.method.render import IMPORTANCE_INV_S, NEAR, section_weights
from mim4d.method.sampling import importance, stratified, surface_weights
from mim4d.method.warp import warp
from mim4d.pretrain.config import complete
from mim4d.pretrain.datasets import open_data
from mim4d.pretrain.folder import RunFolder
from mim4d.pretrain.pictures import MAX_DEPTH, lidar_pixels, render_views
from mim4d.pretrain.trainer import trained_model

Shown = NDArray[np.floating]
FRONT = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT")


@dataclass(frozen=True)
class Scene:
    """One held-out clip on its way through a model, the current frame taken as the dropped one."""

    model: MIM4D
    clip: Clip
    volumes: Tensor
    """[1, T, C, Z, Y, X], each frame's own."""
    targets: Tensor
    """[1, 1], the current frame."""
    warped: Tensor
    """[1, T-1, C, Z, Y, X], the others as the current frame's car would see them."""
    rebuilt: Tensor
    """[1, C, Z, Y, X], by the temporal decoder."""
    flow: Tensor
    """[1, 2, Y, X] m/s."""

    @property
    def grid(self) -> VoxelGrid:
        """Of the volumes."""
        return self.model.config.grid

    def points(self, frame: int) -> Tensor:
        """A frame's LiDAR [N, 3] in its ego frame, what is inside the grid and above the ground."""
        points = self.clip.points[0, frame, : int(self.clip.num_points[0, frame])]
        return points[self.grid.contains(points) & (points[:, 2] > 0.4)]


def main(run: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path], clip: int | None = None) -> None:
    """Draw the pictures.

    Args:
        run: A run of mim4d-pretrain with the temporal path and LiDAR; its newest checkpoint is used.
        out: The folder for the pictures.
        clip: Which of the held-out clips; left out, the one in which the car and others move most.
    """
    torch.set_grad_enabled(False)
    folder = RunFolder(run)
    config = complete(folder.read_config())
    model = trained_model(folder)
    assert isinstance(model, MIM4D)
    learnt, held_out = open_data(replace(config, out=str(out)), Accelerator(cpu=True))
    data = held_out or learnt
    number = liveliest(data) if clip is None else clip
    scene = encode(model.eval(), data[number, 0])
    out.mkdir(parents=True, exist_ok=True)
    boxes = movers(data, scene.clip)
    for draw in PICTURES:
        path = out / f"{draw.__name__}.jpg"
        save(draw(scene, boxes), path)
        print(path)


def encode(model: MIM4D, clip: Clip) -> Scene:
    """Steps 1 to 6, in eval mode."""
    targets = torch.full((1, 1), clip.num_frames - 1)
    volumes = model.encode(clip)
    assert model.temporal is not None
    warped, gaps = model.warp_others(volumes, clip, targets)
    decoded = model.temporal(warped, gaps)
    return Scene(model, clip, volumes, targets, warped, decoded.volume, model.temporal.flow(decoded))


# What moves, from the annotations of a nuScenes root; nothing of it is used in training.


@dataclass(frozen=True)
class Mover:
    """An annotated box of the current frame, from above."""

    corners: Shown
    """[4, 2] metres, ego frame, the front two first."""
    velocity: Shown
    """[2] m/s, ego frame's axes."""

    @property
    def middle(self) -> Shown:
        """[2] metres."""
        return self.corners.mean(0)


def movers(data: NuScenesClips, clip: Clip) -> list[Mover]:
    """Boxes of the clip's current frame."""
    nusc = open_tables(data)
    name, _, time = clip.names[0].partition("@")
    scene = next(scene for scene in nusc.scene if scene["name"] == name)
    samples = [sample for sample in nusc.sample if sample["scene_token"] == scene["token"]]
    sample = min(samples, key=lambda sample: abs(sample["timestamp"] / 1e6 - float(time)))
    pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
    ego_from_global = invert(_pose(pose["rotation"], pose["translation"]))
    found = []
    for token in sample["anns"]:
        box = nusc.get("sample_annotation", token)
        width, length, _ = box["size"]
        flat = torch.tensor([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * torch.tensor([length, width]) / 2
        corners = torch.cat([flat, torch.zeros(4, 1)], dim=1).double()
        ego_from_box = ego_from_global @ _pose(box["rotation"], box["translation"])
        velocity = ego_from_global[:3, :3] @ torch.as_tensor(nusc.box_velocity(token))
        found.append(Mover(transform(ego_from_box, corners)[:, :2].numpy(), velocity.nan_to_num()[:2].numpy()))
    return found


def liveliest(data: NuScenesClips) -> int:
    """The clip whose current frame has the most motion near the car, among those in which the car drives too."""
    return max(range(len(data)), key=lambda number: _liveliness(data, data[number, 0]))


def _liveliness(data: NuScenesClips, clip: Clip) -> float:
    driven = float(clip.current_from_ego[0, -2, :2, 3].norm())
    near = [m for m in movers(data, clip) if np.abs(m.corners).max() < 25]
    return min(driven, 4.0) * sum(min(float(np.linalg.norm(m.velocity)), 8.0) for m in near)


_tables: dict[Path, NuScenes] = {}


def open_tables(data: NuScenesClips) -> NuScenes:
    """The devkit's view of the root that clips are from."""
    if data.root not in _tables:
        _tables[data.root] = NuScenes(data.config.version, str(data.root), verbose=False)
    return _tables[data.root]


def _pose(rotation: list[float], translation: list[float]) -> Tensor:
    return make_pose(
        rotation_from_quaternion(torch.tensor(rotation, dtype=torch.float64)),
        torch.tensor(translation, dtype=torch.float64),
    )


# The pictures.


def masks(scene: Scene, _: list[Mover]) -> Figure:
    """Every image of the clip, hidden patches grey; a row a frame."""
    clip = scene.clip
    images = visible_images(scene)
    frames, cameras = images.shape[:2]
    figure, axes = grid_of(frames, cameras, clip.image_size, wide=15)
    for t in range(frames):
        for v in range(cameras):
            picture(axes[t, v], images[t, v].numpy())
            if t == 0:
                axes[t, v].set_title(camera_name(clip.cameras[v]), fontsize=10)
        axes[t, 0].set_ylabel("now" if t == frames - 1 else f"{float(clip.times[0, t]):.1f} s", fontsize=10)
    return figure


def lifted(scene: Scene, _: list[Mover]) -> Figure:
    """What is seen, its features, the depth that the lift gives them, LiDAR; and the volume from above."""
    clip = scene.clip
    seen = visible_images(scene)[-1]
    features, depth = image_features(scene)
    figure = Figure(figsize=(13.5, 5.4), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.5, 1], squeeze=False)[0]
    axes = left.subplots(4, 3, squeeze=False)
    for column, name in enumerate(FRONT):
        v = clip.cameras.index(name)
        picture(axes[0, column], seen[v].numpy())
        picture(axes[1, column], features[v])
        picture(axes[2, column], depth[v].numpy(), cmap="turbo_r", vmin=0, vmax=MAX_DEPTH)
        draw_lidar(axes[3, column], clip, v)
        axes[0, column].set_title(camera_name(name), fontsize=10)
    for row, label in enumerate(("visible", "features", "lift's depth", "LiDAR")):
        axes[row, 0].set_ylabel(label, fontsize=10)
    (bev,) = colours_of(scene.volumes[:, -1])
    axis = right.subplots()
    from_above(axis, scene.grid, bev)
    dots(axis, scene.points(-1), "white", 0.6)
    axis.set_title("the volume from above, LiDAR in white", fontsize=10)
    return figure


def warped(scene: Scene, _: list[Mover]) -> Figure:
    """A past frame beside the current one, as it was and after the ego-motion warp: points, then features."""
    past, now = 0, scene.clip.num_frames - 1
    grid = scene.grid
    now_from_past = scene.clip.current_from_ego[0, past]
    ago = f"{-float(scene.clip.times[0, past]):.1f} s ago"
    figure = Figure(figsize=(13.5, 9.2), dpi=100, layout="constrained")
    axes = figure.subplots(2, 3)

    before, after, target = scene.points(past), transform(now_from_past, scene.points(past)), scene.points(now)
    for axis, points, title in (
        (axes[0, 0], before, f"LiDAR {ago} (red) over now (blue), as it came"),
        (axes[0, 1], after, "the same, warped by the car's own motion"),
    ):
        empty(axis, grid)
        dots(axis, target, "tab:blue", 0.8)
        dots(axis, points, "tab:red", 0.8)
        axis.set_title(title, fontsize=10)
    then = warp(counts(before, grid), invert(now_from_past)[None, None], grid)[0, 0, 0].amax(0)
    there = counts(target, grid)[0, 0, 0].amax(0)
    from_above(axes[0, 2], grid, torch.stack([1 - there, (1 - there - then).clamp(0), 1 - then]).numpy())
    axes[0, 2].set_title("the same by voxels: warped red, now blue, both black", fontsize=10)

    maps = colours_of(scene.volumes[:, past], scene.warped[:, past], scene.volumes[:, now])
    titles = (f"features {ago}, own frame", "the same, warped to now", "features now, the target's own")
    for axis, bev, title in zip(axes[1], maps, titles, strict=True):
        from_above(axis, grid, bev)
        axis.set_title(title, fontsize=10)
    return figure


def temporal(scene: Scene, _: list[Mover]) -> Figure:
    """What the decoder is given, what it makes of it, and what it never saw."""
    figure = Figure(figsize=(13.5, 4.9), dpi=100, layout="constrained")
    axes = figure.subplots(1, 3)
    given, dropped = colours_of(scene.warped.mean(1), scene.volumes[:, -1])
    (rebuilt,) = colours_of(scene.rebuilt)
    titles = (
        "given: the other frames, warped (their mean)",
        "rebuilt (own colours)",
        "dropped: the frame's own",
    )
    for axis, bev, title in zip(axes, (given, rebuilt, dropped), titles, strict=True):
        from_above(axis, scene.grid, bev)
        axis.set_title(title, fontsize=10)
    return figure


def flow(scene: Scene, boxes: list[Mover]) -> Figure:
    """The flow that the decoder's offsets mean, beside the motion of the annotated boxes."""
    grid = scene.grid
    figure = Figure(figsize=(11, 4.9), dpi=100, layout="constrained")
    axes = figure.subplots(1, 2)
    annotated = annotated_flow(boxes, grid)
    top = max(2.0, float(annotated.norm(dim=0).max()))
    for axis, shown, title in zip(axes, (scene.flow[0], annotated), ("found", "annotated"), strict=True):
        image = from_above(axis, grid, shown.norm(dim=0).numpy(), cmap="magma", vmin=0, vmax=top)
        dots(axis, scene.points(-1), "white", 0.5)
        axis.set_title(f"BEV flow: {title} (arrows: one second)", fontsize=10)
    # Every third cell that moves faster than walking; every box that does.
    found = scene.flow[0].permute(1, 2, 0)[::3, ::3]
    moves = found.norm(dim=-1) > 1
    draw_arrows(axes[0], grid.centers(found)[0, ::3, ::3, :2][moves].numpy(), found[moves].numpy())
    moving = [box for box in boxes if np.linalg.norm(box.velocity) > 1]
    draw_arrows(axes[1], np.array([box.middle for box in moving]), np.array([box.velocity for box in moving]))
    figure.colorbar(image, ax=axes, shrink=0.8, label="m/s")
    return figure


def ray(scene: Scene, _: list[Mover]) -> Figure:
    """One ray: where it is sampled, the signed distance there, and the weights, beside the LiDAR's distance."""
    model = scene.model
    renderer, field = model.renderer, model.renderer.field
    rays = choose_rays(scene.clip, scene.targets, 64, scene.grid, "rgbd")
    own = pick(scene.volumes, scene.targets)
    depth = renderer(own, rays.origins, rays.directions).depth
    # An ordinary ray: its error is the median of those that end at middle distance.
    error = (depth - rays.depth).abs().where(rays.valid & (rays.depth > 10) & (rays.depth < 30), torch.nan)
    number = int((error - error.nanmedian()).abs().nan_to_num(torch.inf).argmin())
    lidar, found = float(rays.depth[0, number]), float(depth[0, number])

    # The renderer's own steps, for this ray alone.
    origin, direction = rays.origins[0, number, None], rays.directions[0, number, None]
    near, far = box_interval(origin, direction, scene.grid.low(origin), scene.grid.high(origin))
    near = near.clamp(min=NEAR)
    table = own.permute(0, 2, 3, 4, 1).reshape(-1, own.shape[1])
    even = stratified(near, far, torch.full((1, renderer.config.uniform_samples), 0.5))

    def at(distances: Tensor) -> tuple[Tensor, ...]:
        points = origin + distances[0, :, None] * direction
        return field(points, direction.expand_as(points), table, torch.zeros(len(points)).long())

    coarse = surface_weights(even / field.scale, at(even)[0][None], IMPORTANCE_INV_S)
    distances = importance(even, coarse, renderer.config.importance_samples)
    steps = torch.cat([distances, far[:, None]], dim=1).diff(dim=1)
    middles = distances + steps / 2
    sdf, normals, _colour = at(middles)
    weights = section_weights(sdf[None], (normals @ direction[0])[None], steps / field.scale, field.inv_s)[0]

    figure = Figure(figsize=(9.5, 4.2), dpi=100, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    fine = torch.linspace(float(near), float(far), 500)[None]
    top.plot(fine[0], at(fine)[0] * field.scale, color="tab:blue")
    top.axhline(0, color="grey", linewidth=0.8)
    top.set_ylabel("signed distance, m")
    bottom.bar(distances[0], weights[0], width=steps[0], align="edge", color="tab:orange", edgecolor="white", lw=0.3)
    bottom.set_ylabel("weight")
    bottom.set_xlabel("distance along the ray, m")
    low = -0.1 * float(weights.max())
    added = distances[0][~torch.isin(distances[0], even[0])]
    bottom.plot(even[0], torch.full_like(even[0], low), "|", color="grey", markersize=8, label="even")
    bottom.plot(added, torch.full_like(added, 2.2 * low), "|", color="tab:red", markersize=8, label="importance")
    for axis in (top, bottom):
        axis.axvline(lidar, color="black", linestyle="--", linewidth=1, label="LiDAR")
        axis.axvline(found, color="tab:green", linewidth=1.2, label="rendered depth")
    bottom.legend(fontsize=9, loc="upper left")
    return figure


def rendered(scene: Scene, _: list[Mover]) -> Figure:
    """Colour and depth of the front cameras: seen, from the frame's own volume, from the rebuilt one."""
    clip = scene.clip
    views = render_views(scene.model, clip, stride=2)
    figure, axes = grid_of(6, 3, clip.image_size, wide=11)
    for column, name in enumerate(FRONT):
        v = clip.cameras.index(name)
        picture(axes[0, column], clip.images[0, -1, v].permute(1, 2, 0).numpy())
        draw_lidar(axes[3, column], clip, v)
        for row, kind in enumerate(("direct", "temporal"), start=1):
            picture(axes[row, column], views.rgb[kind][v].clamp(0, 1).numpy())
            axes[row + 3, column].set_facecolor("black")
            picture(axes[row + 3, column], views.depth[kind][v].numpy(), cmap="turbo_r", vmin=0, vmax=MAX_DEPTH)
        axes[0, column].set_title(camera_name(name), fontsize=10)
    for row, label in enumerate(("seen", "direct", "temporal", "LiDAR", "direct", "temporal")):
        axes[row, 0].set_ylabel(label, fontsize=10)
    return figure


PICTURES = (masks, lifted, warped, temporal, flow, ray, rendered)


# Parts of them.


def camera_name(channel: str) -> str:
    """As a reader says it."""
    return channel.removeprefix("CAM_").replace("_", " ").lower()


def visible_images(scene: Scene) -> Tensor:
    """[T, V, H, W, 3], hidden patches grey."""
    visible = (
        scene.model.visible(scene.clip)[0]
        .repeat_interleave(scene.model.patch, 2)
        .repeat_interleave(scene.model.patch, 3)
    )
    return torch.where(visible[..., None], scene.clip.images[0].permute(0, 1, 3, 4, 2), 110)


def image_features(scene: Scene) -> tuple[Shown, Tensor]:
    """The current frame after the neck as colours [V, h, w, 3], and the lift's mean depth there [V, h, w], metres."""
    model, clip = scene.model, scene.clip
    visible = model.visible(clip).flatten(0, 2)
    images = (clip.images.flatten(0, 2).float() - model.mean) / model.std
    maps = masked_maps(model.encoder, images, visible, indices=model.pyramid.indices)
    features = model.neck(maps, visible)[-clip.num_cameras :]
    shares = model.lift.depth_net(features).softmax(1)
    config = model.config.lift
    bins = config.depth_range[0] + (torch.arange(config.num_bins) + 0.5) * config.depth_step
    depth = (shares * bins[:, None, None]).sum(1)
    (colours,) = components(features.permute(0, 2, 3, 1).flatten(0, 2))
    return colours.view(*depth.shape, 3).numpy(), depth


def counts(points: Tensor, grid: VoxelGrid) -> Tensor:
    """Which voxels hold points: [1, 1, 1, Z, Y, X], 0 or 1."""
    x, y, z = (grid.index_of(points) + 0.5).long().unbind(-1)
    occupied = torch.zeros(1, 1, 1, *grid.shape)
    occupied[0, 0, 0, z, y, x] = 1
    return occupied


def annotated_flow(boxes: list[Mover], grid: VoxelGrid) -> Tensor:
    """[2, Y, X] m/s: the velocity of the box that each BEV cell lies in, zero elsewhere."""
    found = torch.zeros(2, *grid.shape[1:])
    cells = grid.centers(found)[0, ..., :2].flatten(0, 1).numpy()
    for box in boxes:
        # Half a cell of margin: a pedestrian is smaller than a cell.
        outline = box.middle + (box.corners - box.middle) * (1 + grid.voxel[0] / np.ptp(box.corners, axis=0).max())
        inside = torch.from_numpy(MplPath(outline).contains_points(cells)).view(found.shape[1:])
        found[:, inside] = torch.from_numpy(box.velocity).float()[:, None]
    return found


def colours_of(*volumes: Tensor) -> list[Shown]:
    """Volumes [1, C, Z, Y, X] from above as [3, Y, X], with the same colours for all."""
    rows = [volume[0].flatten(0, 1).flatten(1).T for volume in volumes]  # [Y*X, C*Z]
    size = volumes[0].shape[-2:]
    return [colours.T.unflatten(1, size).numpy() for colours in components(*rows)]


def components(*rows: Tensor) -> list[Tensor]:
    """Feature rows [N, C] as colours [N, 3]: the first three principal components of their directions, 0 to 1."""
    together = torch.cat(rows)
    directions = F.normalize(together - together.mean(0), dim=1)
    torch.manual_seed(0)  # pca_lowrank draws
    _, _, basis = torch.pca_lowrank(directions, q=3, niter=8)
    seen = (directions - directions.mean(0)) @ basis
    low, high = seen.quantile(0.02, dim=0), seen.quantile(0.98, dim=0)
    return list(((seen - low) / (high - low)).clamp(0, 1).split([len(part) for part in rows]))


def grid_of(rows: int, columns: int, image_size: tuple[int, int], wide: float) -> tuple[Figure, NDArray[np.object_]]:
    """A figure of images without axes."""
    high = wide / columns * image_size[0] / image_size[1] * rows
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure = Figure(figsize=(wide, high + 0.35), dpi=100, layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False)


def picture(axis: Axes, image: Shown, **colours: Any) -> None:
    """An image that fills its axes."""
    axis.imshow(image, aspect="auto", interpolation="nearest", **colours)
    axis.set_xticks([])
    axis.set_yticks([])


def draw_lidar(axis: Axes, clip: Clip, camera: int) -> None:
    """The current frame's LiDAR in one camera, colour by distance."""
    pixels, distance = lidar_pixels(clip, camera)
    order = np.argsort(-distance)
    axis.set_facecolor("black")
    u, v = pixels[order].T
    axis.scatter(u, v, c=distance[order], s=1.5, cmap="turbo_r", vmin=0, vmax=MAX_DEPTH, linewidths=0)
    height, width = clip.image_size
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def empty(axis: Axes, grid: VoxelGrid) -> None:
    """Axes of a view from above: ego x (forward) up the page, ego y to the left."""
    axis.set(xlim=(grid.y[1], grid.y[0]), ylim=(grid.x[0], grid.x[1]), aspect="equal", xticks=[], yticks=[])
    axis.plot(0, 0, marker="^", color="black", markeredgecolor="white", markersize=8)


def from_above(axis: Axes, grid: VoxelGrid, bev: Shown, **colours: Any) -> AxesImage:
    """A map [Y, X] or [3, Y, X] from above."""
    shown = np.swapaxes(bev, -1, -2)[..., ::-1]  # rows x forward, columns from +y to -y
    shown = np.moveaxis(shown, 0, -1) if shown.ndim == 3 else shown
    extent = (grid.y[1], grid.y[0], grid.x[0], grid.x[1])
    image = axis.imshow(shown, origin="lower", extent=extent, interpolation="nearest", **colours)
    empty(axis, grid)
    return image


def dots(axis: Axes, points: Tensor, colour: str, size: float) -> None:
    """Points from above."""
    axis.scatter(points[:, 1], points[:, 0], s=size, c=colour, linewidths=0, alpha=0.8)


def draw_arrows(axis: Axes, start: Shown, along: Shown) -> None:
    """Arrows [N, 2] from points [N, 2], metres, seen from above."""
    (x, y), (dx, dy) = start.reshape(-1, 2).T, along.reshape(-1, 2).T
    axis.quiver(y, x, dy, dx, color="cyan", angles="xy", scale_units="xy", scale=1, width=0.004)


def save(figure: Figure, path: Path) -> None:
    """As a JPEG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").save(path, quality=85, optimize=True)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except UserError as error:
        sys.exit(f"error: {error}")

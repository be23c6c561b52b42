"""Measure time and memory of each stage at the published sizes, forward and backward, for one frame of one clip.

    python benchmarks/stages.py                 # one CPU thread
    python benchmarks/stages.py --device cuda --repeats 20

Each stage runs in its own process, so that peak memory is measured per stage.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mim4d.clip import Clip
from mim4d.geometry import VoxelGrid, make_pose
from mim4d.method.lift import Lift, LiftConfig, splat
from mim4d.method.render import RenderConfig, Renderer
from mim4d.method.temporal import TemporalConfig, TemporalDecoder
from mim4d.method.warp import warp

GRID = VoxelGrid()
CHANNELS = LiftConfig().channels


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the stages of the method."""

    device: str = "cpu"
    """Torch device."""
    threads: int = 1
    """CPU threads."""
    repeats: int = 5
    """Timed runs of each stage after one warm-up run; median, minimum and maximum are printed."""
    stage: str | None = None
    """Run only this stage and print its figures as JSON."""


def rig(device: str) -> Clip:
    """Return one frame of six cameras at 448 x 800, 1.5 m above the ground, facing all around; images are noise."""
    camera_axes = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # ego_from_camera, looking ahead
    poses = []
    for yaw in torch.arange(6) * torch.pi / 3:
        turn = torch.tensor([[yaw.cos(), -yaw.sin(), 0], [yaw.sin(), yaw.cos(), 0], [0, 0, 1]])
        poses.append(make_pose(turn @ camera_axes, torch.tensor([0.0, 0.0, 1.5])))
    intrinsics = torch.tensor([[632.0, 0.0, 400.0], [0.0, 632.0, 224.0], [0.0, 0.0, 1.0]])
    clip = Clip(
        images=torch.randint(0, 256, (1, 1, 6, 3, 448, 800), dtype=torch.uint8),
        intrinsics=intrinsics.expand(1, 1, 6, 3, 3).contiguous(),
        ego_from_camera=torch.stack(poses)[None, None],
        current_from_ego=torch.eye(4).expand(1, 1, 4, 4).contiguous(),
        timestamps=torch.zeros(1, 1, dtype=torch.float64),
        points=torch.zeros(1, 1, 0, 3),
        num_points=torch.zeros(1, 1, dtype=torch.int64),
        seeds=torch.zeros(1, dtype=torch.int64),
        names=("benchmark",),
        cameras=tuple(f"CAM_{i}" for i in range(6)),
    )
    clip.validate()
    return clip.to(device)


def volumes(count: int, device: str) -> Tensor:
    """Return random volumes [count, C, Z, Y, X] with gradient, channels last in memory like those of the lift."""
    return torch.randn(count, *GRID.shape, CHANNELS, device=device).permute(0, 4, 1, 2, 3).requires_grad_()


def lift_stage(device: str) -> Callable[[], Tensor]:
    """Splat only: 6 x 14 x 25 pixels x 118 bins into 180 x 180 x 5 voxels, 32 channels."""
    clip = rig(device)
    lift = Lift(LiftConfig(), 256, 32, GRID).to(device)
    depth = torch.rand(6, LiftConfig().num_bins, 14, 25, device=device).softmax(1).requires_grad_()
    context = torch.randn(6, CHANNELS, 14, 25, device=device, requires_grad=True)
    return lambda: splat(depth, context, lift.voxels(clip, (14, 25)), 1, GRID)


def warp_stage(device: str) -> Callable[[], Tensor]:
    """Warp three volumes of 180 x 180 x 5 x 32 to a target 5 m and 3 degrees away."""
    angle = torch.tensor(3.0).deg2rad()
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])
    pose = make_pose(turn, torch.tensor([5.0, 0.3, 0.0])).expand(1, 3, 4, 4).to(device)
    sources = volumes(3, device)
    return lambda: warp(sources[None], pose, GRID)


def temporal_stage(device: str) -> Callable[[], Tensor]:
    """Decode three warped frames of 180 x 180 cells with both branches."""
    decoder = TemporalDecoder(TemporalConfig(), CHANNELS, GRID, frames=4).to(device)
    warped = volumes(3, device)
    gaps = torch.tensor([[-0.5, -1.0, -1.5]], device=device)
    return lambda: decoder(warped[None], gaps)


def render_stage(device: str) -> Callable[[], Tensor]:
    """Render 3,072 rays x (72 + 24) samples through one volume."""
    renderer = Renderer(RenderConfig(), CHANNELS, GRID, sky=False).to(device)
    volume = volumes(1, device)
    flat = torch.tensor([1, 1, 0.1], device=device)
    directions = torch.nn.functional.normalize(torch.randn(1, 3072, 3, device=device) * flat, dim=-1)
    origins = torch.tensor([0.0, 0.0, 1.5], device=device).expand_as(directions).contiguous()
    jitter = torch.rand(1, 3072, RenderConfig().uniform_samples, device=device)

    def run() -> Tensor:
        rendered = renderer(volume, origins, directions, jitter)
        return rendered.rgb.mean() + rendered.depth.mean()

    return run


STAGES = {"lift": lift_stage, "warp": warp_stage, "temporal": temporal_stage, "render": render_stage}


def measure(options: Options) -> dict[str, list[float]]:
    """Return the seconds of each forward pass and of each forward and backward pass of a stage, and peak memory."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    assert options.stage is not None
    run = STAGES[options.stage](options.device)
    synchronise = torch.cuda.synchronize if options.device.startswith("cuda") else lambda: None
    forward, both = [], []
    for _ in range(options.repeats + 1):
        start = time.perf_counter()
        out = run()
        synchronise()
        middle = time.perf_counter()
        out.sum().backward()
        synchronise()
        forward.append(middle - start)
        both.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    if options.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 1024**3
    return {"forward": forward[1:], "both": both[1:], "peak_gib": [peak]}


def main() -> None:
    """Run every stage in its own process and print a table."""
    options = tyro.cli(Options)
    if options.stage:
        print(json.dumps(measure(options)))
        return
    table = Table("stage", "forward, ms", "forward + backward, ms (min to max)", "peak memory of the process, GiB")
    for stage in STAGES:
        command = [sys.executable, __file__, "--stage", stage, "--device", options.device]
        command += ["--threads", str(options.threads), "--repeats", str(options.repeats)]
        figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        forward, both = (statistics.median(figures[k]) * 1e3 for k in ("forward", "both"))
        spread = f"{min(figures['both']) * 1e3:.0f} to {max(figures['both']) * 1e3:.0f}"
        table.add_row(stage, f"{forward:.0f}", f"{both:.0f}  ({spread})", f"{figures['peak_gib'][0]:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()

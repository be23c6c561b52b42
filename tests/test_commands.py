"""Every command that README, docs and examples show, run in the order of its page, at toy size.

A line runs as it stands but for what makes it small: a tiny drawn world for the data, random weights for those of the
Hub, two steps, two processes on this machine for many on several. ``test_docs_site.py`` parses the lines themselves.
"""

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import tyro
import yaml
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.state import AcceleratorState, GradientState

from benchmarks import memory
from mim4d.data import cli as check_data
from mim4d.eval.cli import main as evaluate
from mim4d.pretrain import cli as pretrain
from mim4d.settings import flatten
from mim4d.show import cli as show
from mim4d.world import WorldConfig
from mim4d.world import cli as world
from tests.docs.test_docs_site import PAGES, ROOT, blocks
from tests.eval import runs as evaluation
from tests.hub import calls, checkpoints
from tests.hub.conftest import _online, cache, client, environment, hub, one_thread, server
from tests.pretrain import runs

__all__ = ["_online", "cache", "client", "environment", "hub", "one_thread", "server"]

NOT_RUN = {
    "pip": "would install; the extras that it names are those of pyproject.toml, by test_docs_site.py",
    "docker": "needs a container engine; docs/test_cluster.py reads the Dockerfile",
    "srun": "needs Slurm; the launch line within is the one above it",
    "make test": "is what runs this",
    "make docs": "is run by test_docs_site.py",
    "python -m benchmarks.evidence": "is run by benchmarks/test_evidence.py",
    "python -m benchmarks.gpu": "is run by test_gpu_benchmark.py",
}
"""Commands by how they begin, and why they are only parsed."""

TOY = {
    **flatten(runs.TINY),
    "init": "scratch",
    "cameras": ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"],  # docs/pictures.py shows these
    "frame_gap": 0.5,
    "method.frozen": 0,  # random weights are not to be kept
    "steps": 2,
    "method.grid.x": [-28, 28],  # every preset's, so that the voxels fit
    "method.grid.y": [-28, 28],
    "method.grid.z": [-2, 6],
    "method.grid.voxel": [4, 4, 4],
}
WORLD = WorldConfig(scenes=3, scale=0.125, keyframes=4)
"""What ``tiny_world`` is."""
EVAL = ["--data", "nuscenes", "--labels", "1"]  # the tiny world as it is


def commands(page: Path) -> list[list[str]]:
    """A page's lines, as words."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def reason(words: list[str]) -> str | None:
    """Why a command is not run here."""
    return next((why for start, why in NOT_RUN.items() if words[: start.count(" ") + 1] == start.split()), None)


def test_what_is_not_run_is_still_told_of():
    told = [words for page in PAGES for words in commands(page)]
    for start in NOT_RUN:
        if start != "make docs":  # told of in a sentence
            assert any(words[: start.count(" ") + 1] == start.split() for words in told), start
    (slurm,) = [words for words in told if words[0] == "srun"]
    assert slurm[slurm.index("torchrun") :] in told


def plan() -> dict[Path, list[list[str]]]:
    """What to run of each page: what no page before it has."""
    found: dict[Path, list[list[str]]] = {}
    for page in PAGES:
        before = [words for lines in found.values() for words in lines]
        found[page] = [words for words in commands(page) if reason(words) is None and words not in before]
    return {page: lines for page, lines in found.items() if lines}


@pytest.mark.parametrize(("page", "lines"), plan().items(), ids=[str(page.relative_to(ROOT)) for page in plan()])
def test_commands_run(page, lines, toy):
    for words in lines:
        toy.run(words, page)


@pytest.fixture(scope="session")
def made(tiny_world, tmp_path_factory) -> Path:
    """A run of two steps."""
    out = tmp_path_factory.mktemp("made") / "run"
    train([*flags(tiny_world), "--out", str(out)])
    return out


@pytest.fixture
def toy(tiny_world, made, client, tmp_path, monkeypatch):
    """A folder with what the pages speak of: runs, settings, the authors' checkpoint."""
    for name in ("demo", "base", "pretrain"):
        shutil.copytree(made, tmp_path / "runs" / name)
    checkpoints.save(checkpoints.detector("atto"), tmp_path / "uvtrs_mim4d_vs0.075_pretrain.pth")
    for name in ("examples", "docs", "benchmarks", "Makefile", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    client(os.chdir, tmp_path)
    yield Toy(tiny_world, client, monkeypatch)
    client(os.chdir, ROOT)
    client(calls.set_hub, "")


def flags(root: Path, **changes) -> list[str]:
    """What makes a run small, after its own flags: later ones win."""
    world = {f"world.{name}": getattr(WORLD, name) for name in ("scenes", "scale", "keyframes")}  # of drawn ones
    settings = {**TOY, **world, "dataroot": str(root), "split": "mini_train", "val_split": "mini_val", **changes}
    return [
        word
        for name, value in settings.items()
        for word in ("--" + name.replace("_", "-"), *map(str, value if isinstance(value, list) else [value]))
    ]


def train(words: list[str]) -> None:
    """``mim4d-pretrain`` in this process, which may have trained before."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    pretrain.main(words)


class Toy:
    """Runs commands."""

    def __init__(self, root, client, monkeypatch):
        self.root, self.client, self.monkeypatch = root, client, monkeypatch

    def run(self, words: list[str], page: Path) -> None:
        """One command; what it leaves is looked for."""
        program, rest = words[0], words[1:]
        if program == "mim4d-pretrain":
            if "--config" in rest:
                Path(rest[rest.index("--config") + 1]).write_text(blocks(page, "yaml")[-1])
            self.pretrain(rest)
        elif program in ("torchrun", "accelerate"):
            start = rest.index("-m")
            if page.name == "scale.md" and "--nnodes" not in rest:
                self.launch(program, rest[:start], rest[start + 2 :])
            else:  # what the launcher would start, once
                self.pretrain(rest[start + 2 :])
        elif program == "make":
            printed = subprocess.run(["make", "--dry-run", *rest], capture_output=True, text=True, check=True).stdout
            (line,) = re.findall(r"^\S*mim4d-pretrain (.*)$", printed, re.MULTILINE)
            self.pretrain([word for word in shlex.split(line) if word != "--resume"])
        elif program == "export":
            self.client(calls.set_hub, rest[0].removeprefix("MIM4D_HUB="))
        elif program == "mim4d-hub":
            data = ["--dataroot", str(self.root), "--version", "v1.0-mini", "--preset", "demo", "--seeds", "1"]
            code, out, err = self.client(calls.run, *rest, *(data if rest[0] == "release" else []))
            assert code == 0, err
            assert out
        elif words[:2] == ["mim4d-eval", "compare"]:
            count = next(place for place, word in enumerate(rest) if word.startswith("--"))
            backbones = [name if Path(name).exists() else f"{name}=random" for name in rest[1:count]]
            small = ["--seeds", "1", *evaluation.SIZES, "--data", "nuscenes", "--dataroot", str(self.root)]
            evaluate(["compare", *backbones, *rest[count:], *small, "--out", "runs/compare"])
            assert Path("runs/compare/plot.png").is_file()
        elif program == "mim4d-eval":
            named = not Path(rest[rest.index("--backbone") + 1]).exists()
            offline = ["--init", "random"] if named else []
            small = [*EVAL, *offline, "--version", "v1.0-mini", "--dataroot", str(self.root)]
            evaluate(evaluation.arguments(self.root, Path("runs/eval"), *rest, *small))
            assert (Path(rest[rest.index("--out") + 1]) / "metrics.json").is_file()
        elif program == "mim4d-show":
            show.main([rest[0], str(self.root), *rest[2:]])
            assert (Path(rest[rest.index("--out") + 1]) / "index.html").is_file()
        elif program == "mim4d-data":
            rest[rest.index("check") + 1] = str(self.root)
            with pytest.raises(SystemExit, match="0"):
                check_data.main(rest)
            assert Path(rest[rest.index("--picture") + 1]).is_file()
        elif program == "mim4d-world":
            small = ["--scenes", "1", "--keyframes", "2", "--scale", "0.1", "--workers", "1"]
            self.monkeypatch.setattr(sys, "argv", [*words, *small])
            world.main()
            assert (Path(rest[rest.index("--out") + 1]) / "v1.0-mini/scene.json").is_file()
        elif words[:3] == ["python", "-m", "benchmarks.memory"]:
            memory.main(
                tyro.cli(memory.Options, args=[*rest[2:], "--preset", "demo", "--model", "mim4d_convnext_atto"])
            )
        elif program == "python":
            self.script(*rest)
        elif program == "tensorboard":
            inspect = [sys.executable, "-m", "tensorboard.main", "--inspect", *rest]
            assert "loss" in subprocess.run(inspect, capture_output=True, text=True, check=True).stdout
        else:
            pytest.fail(f"say here how to run {program}, or in NOT_RUN why not")

    def pretrain(self, rest: list[str]) -> None:
        """``mim4d-pretrain`` in this process."""
        out = self.renew(rest)
        resumed = dict(steps=3, batch_size=2) if "--resume" in rest else {}  # two processes began it
        train([*rest, *flags(self.root, **resumed)])
        finished(out)

    def launch(self, program: str, before: list[str], after: list[str]) -> None:
        """A launcher with its own flags: two processes of torchrun's, one of accelerate's."""
        out = self.renew(after)
        after += flags(self.root)
        if program == "torchrun":
            before[before.index("--nproc-per-node") + 1] = "2"
            done = runs.run(*after, launcher=("-m", "torch.distributed.run", *before, "--standalone"))
            assert done.returncode == 0, done.stderr
            assert "2 x cpu" in done.stderr
        else:
            one = ["--num_machines", "1", "--num_processes", "1", "--main_process_ip", "localhost"]
            before = [word for word in before[1:] if word != "--multi_gpu"] + one
            launch_command(launch_command_parser().parse_args([*before, "--cpu", "-m", "mim4d.pretrain", *after]))
        finished(out)

    def renew(self, rest: list[str]) -> Path:
        """The folder of a run, made free if it is to be a new one."""
        place = rest.index("--out") + 1
        rest[place] = rest[place].removeprefix("/")  # /shared/runs
        out = Path(rest[place])
        if "--resume" not in rest:
            shutil.rmtree(out, ignore_errors=True)
        return out

    def script(self, path: str, *rest: str) -> None:
        """A script of the repository, in this process or in the one that has a Hub."""
        name = Path(path).name
        small: list[str] = []
        if name == "hub_round_trip.py":
            assert "same features as before the push" in self.client(printed_by, path, *rest)
            return
        if name == "lidar_on_images.py":
            small = ["--dataroot", str(self.root), "--version", "v1.0-mini", "--split", "mini_train"]
            small += ["--image-size", "96", "192", "--cameras", "CAM_FRONT", "CAM_BACK"]
        elif name == "lift_splat.py":
            small = ["--dataroot", str(self.root), "--image-size", "64", "128", "--steps", "1"]
        elif name == "pictures.py":
            Path("docs").unlink()  # the repository's own pictures stay
            Path("docs").mkdir()
            path, small = str(ROOT / path), ["--scale", "0.125", "--scenes", "3"]
        with torch.enable_grad():  # scripts may set it for themselves
            printed_by(path, *rest, *small)
        if name == "lidar_on_images.py":
            assert Path("lidar_on_images.png").is_file()
        if name == "pictures.py":
            assert {p.name for p in Path("docs/pictures").iterdir()} == {
                p.name for p in (ROOT / "docs/pictures").iterdir()
            }


def printed_by(path: str, *rest: str) -> str:
    """Run a script in this process; what it prints."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", [path, *rest])
        runpy.run_path(path, run_name="__main__")
    return out.getvalue()


def finished(out: Path) -> None:
    """See that a run left an encoder that plain timm loads."""
    assert yaml.safe_load((out / "config.yaml").read_text())["out"] == str(out)
    assert runs.metrics(out)[-1]["step"] >= 2
    timm.create_model(f"local-dir:{out / 'encoder'}", pretrained=True, features_only=True)

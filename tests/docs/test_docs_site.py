"""The documentation builds, and its commands, settings and code work."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import timm
import tyro
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from benchmarks import backbones, memory
from benchmarks.evidence import __main__ as evidence
from benchmarks.gpu import __main__ as gpu
from mim4d.commands import HUB
from mim4d.data import cli as data
from mim4d.eval import cli as evaluation
from mim4d.hub import cli as hub
from mim4d.hub.folder import save_encoder
from mim4d.pretrain import cli as pretrain
from mim4d.pretrain.config import PretrainConfig, complete, flatten, save_config, to_dict
from mim4d.show import cli as show
from mim4d.world import cli as world
from tests.test_house import LAYERS, MODULES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "MODEL_CARD.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
OURS = ("quickstart.md", "data.md", "scale.md", "weights.md", "migrating.md", "method.md")
"""Pages that show commands of this project only; others also show those of other codebases."""
PROJECT = (ROOT / "pyproject.toml").read_text()


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request) -> Path:
    return request.param


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    built = (tmp_path / "html/method.html").read_text()
    for picture in (DOCS / "pictures").glob("*.jpg"):
        assert f"_images/{picture.name}" in built, f"{picture.name} is not shown"
    assert "submanifold" in (tmp_path / "html/api/encoder.html").read_text()  # docstrings are included


def test_the_reference_has_every_module():
    documented = set(re.findall(r":: (mim4d[\w.]*)", "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))))
    assert documented <= MODULES.keys()
    for module in MODULES.keys() - documented:
        package, _, name = module.rpartition(".")
        plumbing = name in ("cli", "__main__", "version")
        assert plumbing or package in ("mim4d.world", "mim4d.geometry"), module  # documented by their package


def test_the_house_shows_every_part_in_its_layer():
    (tree,) = blocks(DOCS / "house.md", "text")
    layers = [re.findall(r"^├── (\w+)|^└── (\w+)", layer, re.MULTILINE) for layer in tree.split("\n│\n")]
    assert [{"".join(name) for name in layer} for layer in layers] == [set(layer) for layer in reversed(LAYERS)]
    shown = re.findall(r"^│   [├└]── (\w+)\.py|; (\w+)\.py", tree, re.MULTILINE)
    assert {f"mim4d.method.{a or b}" for a, b in shown} == {m for m in MODULES if m.startswith("mim4d.method.")}


def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!http|#)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link


def test_commands_are_right(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = complete(PretrainConfig(dataroot="/data/nuscenes"))
    (tmp_path / "runs/base").mkdir(parents=True)
    save_config(started, tmp_path / "runs/base/config.yaml")  # for --resume
    (tmp_path / "my.yaml").write_text("steps: 5\n")  # for --config
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                check(words, strict=page.name in OURS)


def check(words: list[str], strict: bool) -> None:
    """Check that a command exists and accepts these arguments."""
    program, rest = words[0], words[1:]
    if program == "mim4d-pretrain":
        complete(pretrain.parse(rest)[0])
    elif program == "mim4d-hub":
        hub.make_parser(HUB).parse_args(rest)
    elif program == "export":
        assert rest[0].startswith("MIM4D_HUB="), words
    elif program == "mim4d-show":
        show.make_parser().parse_args(rest)
    elif program == "mim4d-data":
        data.make_parser().parse_args(rest)
    elif program == "mim4d-world":
        tyro.cli(world.Options, args=rest)
    elif words[:2] == ["mim4d-eval", "compare"]:
        evaluation.parse_comparison(rest[1:])
    elif program == "mim4d-eval":
        evaluation.parse(rest)
    elif program.startswith("mim4d-"):
        assert f"\n{program} = " in PROJECT, program
    elif program in ("torchrun", "accelerate"):
        launched = (get_args_parser() if program == "torchrun" else launch_command_parser()).parse_args(
            rest[program == "accelerate" :]
        )
        assert launched.module
        assert launched.training_script == "mim4d.pretrain"
        complete(pretrain.parse(launched.training_script_args)[0])
    elif program == "srun":
        check(words[words.index("torchrun") :], strict)
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), rest
    elif rest[:2] == ["-m", "benchmarks.backbones"]:
        backbones._parser().parse_args(rest[2:])
    elif rest[:2] == ["-m", "benchmarks.evidence"]:
        tyro.cli(evidence.Options, args=rest[2:])
    elif rest[:2] == ["-m", "benchmarks.gpu"]:
        tyro.cli(gpu.Options, args=rest[2:])
    elif rest[:2] == ["-m", "benchmarks.memory"]:
        tyro.cli(memory.Options, args=rest[2:])
    elif program == "python" and rest[0] != "-m":
        check_script(ROOT / rest[0], rest[1:], strict)
    elif program == "pip" and (extra := re.search(r"\[(\w+)\]", words[-1])):
        assert f"\n{extra[1]} = [" in PROJECT, words
    elif strict:
        assert program == "tensorboard", words


def check_script(script: Path, arguments: list[str], strict: bool) -> None:
    assert script.is_file(), script
    if not strict:
        return
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    options = getattr(module, "Options", None) or module.main
    tyro.extras.get_parser(options).parse_args(arguments)


def test_settings_files_are_right(page, tmp_path):
    for block in blocks(page, "yaml"):
        if page.name not in OURS:  # settings of another codebase
            assert yaml.safe_load(block)
            continue
        (tmp_path / "settings.yaml").write_text(block)
        config, _ = pretrain.parse(["--config", str(tmp_path / "settings.yaml"), "--dataroot", "/data/nuscenes"])
        complete(config)
    for block in blocks(page, "json"):
        json.loads(block)


def test_settings_named_in_the_text_exist():
    settings = flatten(to_dict(PretrainConfig()))
    groups = {name.rpartition(".")[0] for name in settings}
    flags = {"--" + name.replace("_", "-") for name in settings} | {"--config", "--resume", "--help"}
    for name in OURS:
        code = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", (DOCS / name).read_text(), flags=re.S | re.M))
        for setting in {word for c in code for word in re.findall(r"^(?:method|optim|world)\.[\w.]+", c)}:
            assert setting in settings or setting in groups, f"{name}: {setting}"
        shown = [c for c in code if c.startswith(("--", "mim4d-pretrain"))]
        for flag in {word for c in shown for word in c.split() if word.startswith("--")}:
            assert flag in flags, f"{name}: {flag}"


def test_python_is_python(page):
    for block in blocks(page, "python"):
        if page.name not in OURS:  # it may belong into a function of another codebase
            block = "def function():\n" + textwrap.indent(block, "    ")
        compile(block, str(page), "exec")


WITH_CODE = [
    ROOT / "MODEL_CARD.md",
    DOCS / "index.md",
    *(DOCS / name for name in OURS if "```python" in (DOCS / name).read_text()),
]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_python_runs(page, tiny_world, tmp_path, monkeypatch):
    """Run all code of a page in order, in a folder with a run and a synthetic world."""
    monkeypatch.chdir(tmp_path)
    encoder = timm.create_model("mim4d_convnext_atto", num_classes=0).eval()
    save_encoder(encoder, tmp_path / "runs/demo/encoder", image_size=(64, 64))
    (tmp_path / "world").symlink_to(tiny_world)
    names: dict = {}
    for block in blocks(page, "python"):
        exec(block, names)

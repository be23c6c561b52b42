"""Whatever a YAML file or a command line says, it makes settings, or is refused in one line."""

import shutil
import time

import numpy as np
import pytest
import yaml

from mim4d.data import NuScenesClips
from mim4d.data.cli import main as check
from mim4d.eval import cli as evaluation
from mim4d.eval import config as evaluation_config
from mim4d.eval.config import EvalConfig
from mim4d.pretrain import cli as pretraining
from mim4d.pretrain import config as pretraining_config
from mim4d.pretrain.config import PretrainConfig, flatten, to_dict
from tests.data.roots import write_root
from tests.fuzz.roots import NUMBERS, OTHERS, TEXTS, pick, value
from tests.fuzz.test_roots import outcome
from tests.pretrain.runs import TINY

LONGEST = 20.0
"""Seconds that one command line may take, on a busy machine."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("base") / "root", samples=3)


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
    """What would be trained is settled and its data opened, and no more."""

    def train(config, *, resume=False):
        config = pretraining_config.complete(config)
        if config.data == "nuscenes":
            NuScenesClips(config.data_config(config.split))

    monkeypatch.setattr("mim4d.pretrain.trainer.train", train)

    def evaluate(config):
        evaluation_config.complete(config)
        return {"settings": {"task": config.task, "init": "random"}}

    monkeypatch.setattr("mim4d.eval.run.evaluate", evaluate)


def yaml_file(rng, path):
    """Tiny settings with accidents; or no settings at all."""
    settings = yaml.safe_load(yaml.safe_dump(TINY))
    for _ in range(rng.integers(0, 3)):
        where = settings
        name = pick(rng, sorted(flatten(to_dict(PretrainConfig())))).split(".")
        for part in name[:-1]:
            where = where.setdefault(part, {})
            if not isinstance(where, dict):
                break
        else:
            where[name[-1]] = value(rng)
    if rng.random() < 0.2:
        settings[pick(rng, ["model", "steps", "optim", "method", "cameras", "stepz", 5, None])] = value(rng)
    try:
        text = yaml.safe_dump(settings, allow_unicode=True).encode("utf-8", "surrogatepass")
    except yaml.YAMLError:
        text = b"steps: 1"
    if rng.random() < 0.15:
        place = int(rng.integers(len(text)))
        accidents = (
            text[:place],
            text[:place] + rng.bytes(4),
            b"",
            b"- a",
            b"[" * 3000,
            b"&a [*a]",
            b"a: !!python/object:os.system x",
        )
        text = pick(rng, accidents)
    path.write_bytes(text)


def words(rng, names):
    """Flags, most of them of the command, with values that may be wrong."""
    said = []
    for _ in range(rng.integers(0, 4)):
        flag = "--" + pick(rng, names).replace("_", "-")
        flag = flag if rng.random() < 0.9 else flag + pick(rng, ("x", "=", "=3", ""))
        said.append(flag)
        plain = [word for word in TEXTS if word.isprintable()]
        said += [str(pick(rng, pick(rng, (plain, NUMBERS, OTHERS)))) for _ in range(rng.integers(0, 3))]
    return said


def test_any_settings_are_taken_or_refused(root, tmp_path, capsys, fuzz_size, monkeypatch):
    kinds = {"taken": 0, "refused": 0}
    pretrain_names = sorted(flatten(to_dict(PretrainConfig())))
    eval_names = sorted(EvalConfig.__dataclass_fields__)
    for seed in range(fuzz_size):
        rng = np.random.default_rng((seed, 7))
        home = tmp_path / "case"
        home.mkdir()
        monkeypatch.chdir(home)
        kind = pick(rng, ("pretrain", "pretrain", "eval", "data"))
        if kind == "pretrain":
            yaml_file(rng, home / "settings.yaml")
            line = ["--config", "settings.yaml", "--dataroot", str(root), "--split", "scene-0061", "--out", "out"]
            line += words(rng, pretrain_names)
            command = pretraining.main
        elif kind == "eval":
            line = ["--task", "bev-seg", "--dataroot", str(root), "--version", "v1.0-mini", "--out", "out"]
            line += words(rng, eval_names)
            command = evaluation.main
        else:
            line = [
                *pick(rng, (["check", str(root)], ["check"], [], ["chek", str(root)])),
                *words(rng, ["version", "full"]),
            ]
            command = check
        before, began = sorted(home.iterdir()), time.monotonic()
        try:
            printed = outcome(lambda command=command, line=line: command(line), capsys)
        except BaseException as error:
            print(f"seed {seed}: {line}")
            if (home / "settings.yaml").exists():
                print((home / "settings.yaml").read_bytes()[:3000])
            raise error
        kinds["refused" if "error" in printed.lower() or "usage" in printed else "taken"] += 1
        assert time.monotonic() - began < LONGEST, line
        assert sorted(home.iterdir()) == before, line
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(home)
    print(kinds)
    assert min(kinds.values()) > 0, kinds


def test_settings_nested_deeply_are_refused(tmp_path, capsys):
    (tmp_path / "deep.yaml").write_text("[" * 3000)
    assert "deep.yaml is not YAML" in outcome(
        lambda: pretraining.main(["--config", str(tmp_path / "deep.yaml")]), capsys
    )

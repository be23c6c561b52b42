"""What using a backbone costs: imports of the base install, and little time."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
BASE = ("torch", "timm", "torchvision", "huggingface_hub", "safetensors", "numpy")
"""The base install; torchvision is timm's own."""

PROBE = """
import json, sys, time
import timm
before, start = set(sys.modules), time.perf_counter()
import mim4d
seconds = time.perf_counter() - start
trainer = [name for name in sys.modules if name.startswith(("mim4d.pretrain", "mim4d.data", "mim4d.world"))]
assert not trainer, trainer
import mim4d.hub.card, mim4d.hub.cli, mim4d.hub.pull, mim4d.hub.push
print(json.dumps([seconds, sorted(set(sys.modules) - before)]))
"""


def probe() -> tuple[float, list[str]]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return json.loads(subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, check=True).stdout)


def test_importing_mim4d_adds_little_time_and_nothing_beyond_the_base_install():
    runs = [probe() for _ in range(3)]
    assert statistics.median(seconds for seconds, _ in runs) < 0.3
    added = {name.partition(".")[0] for name in runs[0][1]}
    standard = sys.stdlib_module_names
    allowed = {"mim4d", *BASE, *standard}
    others = {name for name in added - allowed if not name.startswith("_")}
    # Card metadata is YAML, which huggingface_hub brings along.
    assert others <= {"yaml"}, others
    assert not {"accelerate", "nuscenes", "tyro", "dacite", "rich", "matplotlib", "tensorboard"} & added


def test_the_command_says_what_it_can():
    command = [sys.executable, "-m", "mim4d.hub", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("push", "pull", "card", "convert", "export"))

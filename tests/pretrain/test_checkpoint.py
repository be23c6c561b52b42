"""Checkpoints: exact, strict, whole or not at all."""

import copy
import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mim4d.errors import UserError
from mim4d.optim import OptimConfig, make_optimizer, set_lr
from mim4d.pretrain.checkpoint import (
    check_checkpoint,
    first_not_finite,
    list_checkpoints,
    load_checkpoint,
    newest_whole,
    save_checkpoint,
)
from mim4d.pretrain.cli import main
from tests.pretrain.runs import arguments, losses, older

IDENTITY = {"encoder": "small", "grid.x": [-1.0, 1.0]}


class Toy(nn.Module):
    """An encoder, the rest, a query, and something frozen."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.queries = nn.Parameter(torch.randn(5, width))
        self.rest = nn.Conv2d(1, 2, 3)

    def forward(self) -> torch.Tensor:
        return (self.encoder(torch.ones(1, 3)) @ self.queries.T).sum() + self.rest(
            torch.ones(1, 1, 3, 3)
        ).square().sum()


def trained(steps: int = 3, seed: int = 0) -> tuple[Toy, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = Toy()
    optimizer = make_optimizer(model, OptimConfig())
    step(model, optimizer, steps)
    return model, optimizer


def step(model: Toy, optimizer: torch.optim.AdamW, times: int) -> None:
    for _ in range(times):
        model().backward()
        optimizer.step()
        optimizer.zero_grad()


def save(folder: Path, number: int, model: Toy, optimizer: torch.optim.AdamW, **more: object) -> Path:
    settings = {"ema": None, "identity": IDENTITY, "keep": 2} | more
    return save_checkpoint(folder, number, model=model, optimizer=optimizer, **settings)


def load(path: Path, model: Toy, optimizer: torch.optim.AdamW, **more: object) -> int:
    return load_checkpoint(path, model=model, optimizer=optimizer, **({"ema": None, "identity": IDENTITY} | more))


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 3, model, optimizer)
    other, other_optimizer = trained(steps=1, seed=1)
    assert load(path, other, other_optimizer) == 3
    step(model, optimizer, 2)
    step(other, other_optimizer, 2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_it_holds_tensors_and_json_and_no_pickle(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 3, model, optimizer, ema=copy.deepcopy(model))
    assert path.name == "step_00000003"
    files = {"model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"}
    assert {file.name for file in path.iterdir()} == files
    state = json.loads((path / "state.json").read_text())
    assert state["step"] == 3
    assert state["identity"] == IDENTITY
    assert "queries.exp_avg_sq" in load_file(path / "optimizer.safetensors")
    assert not any(name.startswith("frozen") for name in load_file(path / "optimizer.safetensors"))


def test_the_average_is_restored(tmp_path):
    model, optimizer = trained()
    average = trained(seed=5)[0]
    path = save(tmp_path, 3, model, optimizer, ema=average)
    other, other_optimizer = trained(seed=1)
    restored = Toy()
    load(path, other, other_optimizer, ema=restored)
    assert torch.equal(restored.queries, average.queries)


def poison(tensor: torch.Tensor, value: float) -> None:
    with torch.no_grad():
        tensor.view(-1)[-1] = value


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (lambda model, optimizer, average: poison(model.rest.bias, torch.nan), "the weight rest.bias"),
        (lambda model, optimizer, average: poison(model.frozen.weight, torch.inf), "the weight frozen.weight"),
        (lambda model, optimizer, average: poison(average.queries, -torch.inf), "the average of the weight queries"),
        (
            lambda model, optimizer, average: poison(optimizer.state[model.queries]["exp_avg_sq"], torch.inf),
            "the optimiser's queries.exp_avg_sq",
        ),
        (lambda model, optimizer, average: poison(model.rest.bias, 3e38), None),
    ],
    ids=["weight", "frozen", "average", "moment", "none"],
)
def test_what_is_not_finite_is_found_and_named(broken, found):
    model, optimizer = trained()
    average = copy.deepcopy(model)
    broken(model, optimizer, average)
    assert first_not_finite(model, optimizer, average) == found


def test_the_newest_stay(tmp_path):
    model, optimizer = trained()
    for number in (5, 10, 15):
        save(tmp_path, number, model, optimizer, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000010", "step_00000015"]


def test_what_was_cut_off_in_writing_is_no_checkpoint(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 5, model, optimizer)
    shutil.copytree(tmp_path / "step_00000005", tmp_path / ".step_00000010.partial")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000005"]


def test_another_model_is_refused_by_what_differs(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 3, model, optimizer)
    with pytest.raises(UserError, match="encoder was small, now it is base"):
        load(path, model, optimizer, identity=IDENTITY | {"encoder": "base"})


def edit(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def flip(file: Path) -> None:
    """Turn one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


FILES = ("model.safetensors", "optimizer.safetensors", "ema.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed_and_the_one_before_is_taken(name, tmp_path, caplog):
    model, optimizer = trained()
    first, second = (save(tmp_path, number, model, optimizer, ema=model) for number in (5, 10))
    assert newest_whole(tmp_path) == second
    flip(second / name)
    assert newest_whole(tmp_path) == first
    (line,) = caplog.messages
    assert f"{name} is damaged" in line
    assert "renamed to step_00000010.damaged, resuming from step_00000005" in line
    assert list_checkpoints(tmp_path) == [first]
    flip(first / name)
    with pytest.raises(UserError, match=r"is damaged.*there is no other checkpoint in"):
        newest_whole(tmp_path)
    assert list_checkpoints(tmp_path) == [first]


@pytest.mark.parametrize("change", [{"step": 4}, {"identity": {"encoder": "base"}}])
def test_what_the_state_says_is_checked_too(change, tmp_path):
    path = save(tmp_path, 3, *trained())
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | change))
    with pytest.raises(UserError, match=r"state.json is damaged"):
        check_checkpoint(path)


def test_one_without_checksums_is_resumed_from_if_its_files_open(tmp_path):
    first, second = (older(save(tmp_path, number, *trained())) for number in (5, 10))
    assert newest_whole(tmp_path) == second
    assert load(second, *trained(seed=1)) == 10
    (second / "optimizer.safetensors").write_bytes((second / "optimizer.safetensors").read_bytes()[:-20])
    assert newest_whole(tmp_path) == first


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model", lambda t: t.pop("queries"), "queries is missing"),
        ("model", lambda t: t.update(more=torch.ones(1)), "more is unknown"),
        ("model", lambda t: t.update(queries=torch.ones(1)), r"queries has shape \[1\], expected \[5, 4\]"),
        ("optimizer", lambda t: t.pop("queries.exp_avg"), "queries.exp_avg is missing"),
        ("optimizer", lambda t: t.update({"queries.exp_avg": torch.ones(2)}), "queries.exp_avg is missing or of"),
        ("optimizer", lambda t: t.update({"gone.step": torch.ones(1)}), "gone.step is unknown"),
    ],
)
def test_every_tensor_must_be_there_and_fit(file, change, message, tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 3, model, optimizer)
    edit(path / f"{file}.safetensors", change)
    with pytest.raises(UserError, match=message):
        load(path, model, optimizer)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_broken_file_is_named(name, tmp_path):
    path = save(tmp_path, 3, *trained())
    (path / name).write_bytes((path / name).read_bytes()[:20])
    with pytest.raises(UserError, match=r"step_00000003.*there is no other checkpoint in .*: start a new run"):
        newest_whole(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"step": 3}'])
def test_a_state_without_what_it_should_hold_is_named(content, tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 3, model, optimizer)
    (path / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*step_00000003"):
        load(path, model, optimizer)


def test_a_setting_that_is_newer_than_the_checkpoint_must_be_off(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 3, model, optimizer)
    assert load(path, model, optimizer, identity=IDENTITY | {"loss.flow": 0.0}) == 3
    with pytest.raises(UserError, match=r"belongs to another run: loss\.flow was None, now it is 1\.0"):
        load(path, model, optimizer, identity=IDENTITY | {"loss.flow": 1.0})


def test_another_batch_is_refused_with_what_it_must_be(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 3, model, optimizer, identity={"clips_per_step": 4})
    with pytest.raises(UserError, match="was 4, now it is 8; keep batch-size x accumulate x processes at 4"):
        load(path, model, optimizer, identity={"clips_per_step": 8})


def test_norms_biases_and_queries_do_not_decay_and_encoder_and_offsets_learn_slower():
    model = Toy()
    model.attention = nn.ModuleDict({"offsets": nn.Linear(2, 2)})
    optimizer = make_optimizer(model, OptimConfig(lr=1.0, backbone_scale=0.1, weight_decay=0.5))
    set_lr(optimizer, 0.5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert seen == {
        "encoder.0.weight": (0.05, 0.5),
        "encoder.0.bias": (0.05, 0),
        "encoder.1.weight": (0.05, 0),
        "encoder.1.bias": (0.05, 0),
        "queries": (0.5, 0),
        "rest.weight": (0.5, 0.5),
        "rest.bias": (0.5, 0),
        "attention.offsets.weight": (0.05, 0.5),
        "attention.offsets.bias": (0.05, 0),
    }


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(root, tmp_path, caplog, fresh_accelerate):
    out = tmp_path / "run"
    main(arguments(root, out))
    before = losses(out)
    flip(out / "checkpoints/step_00000004/optimizer.safetensors")
    main(["--resume", "--out", str(out)])
    assert "optimizer.safetensors is damaged" in caplog.text
    assert losses(out) == before
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        *("step_00000002", "step_00000004", "step_00000004.damaged"),
    ]


@contextmanager
def nearly_full_disk(largest_file: int) -> Iterator[None]:
    """Writing fails beyond so many bytes a file, as it does where no space is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_the_new_checkpoint_alone(root, tmp_path, capsys, fresh_accelerate):
    out = tmp_path / "run"
    main(arguments(root, out, "--steps", "2"))
    before = {path: path.read_bytes() for path in (out / "checkpoints").rglob("*") if path.is_file()}
    go_on = ["--resume", "--out", str(out), "--steps", "4"]
    capsys.readouterr()
    with nearly_full_disk(5_000_000), pytest.raises(SystemExit) as stop:  # the model needs 14 MB
        main(go_on)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "cannot write a checkpoint" in line
    assert "File too large" in line
    assert "step_00000002 is complete" in line
    after = {path: path.read_bytes() for path in (out / "checkpoints").rglob("*") if path.is_file()}
    assert after == before
    main(go_on)
    assert [row["step"] for row in losses(out)] == [1, 2, 3, 4]

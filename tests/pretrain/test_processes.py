"""What is done on the main process alone, seen from the others."""

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from mim4d.errors import UserError
from mim4d.pretrain import processes
from mim4d.pretrain.config import complete
from mim4d.pretrain.datasets import open_data
from tests.pretrain.runs import tiny


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the main process has broadcast; the others receive it."""
    messages: list[Any] = []

    def broadcast(values: list[Any]) -> list[Any]:
        messages[:] = messages or values
        return messages

    monkeypatch.setattr(processes, "broadcast_object_list", broadcast)
    return messages


MAIN, OTHER = SimpleNamespace(is_main_process=True), SimpleNamespace(is_main_process=False)


@pytest.mark.parametrize("error", [UserError("full"), OSError(28, "full"), ValueError("bug"), KeyboardInterrupt()])
def test_whatever_fails_on_the_main_process_ends_the_others(error, sent):
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        processes.on_main(MAIN, fail)
    with pytest.raises(SystemExit) as stop:
        processes.on_main(OTHER, fail)
    assert stop.value.code == 2


def test_its_result_is_everybodys(sent):
    assert processes.on_main(MAIN, lambda: "step_00000004") == "step_00000004"
    assert processes.on_main(OTHER, lambda: "not called") == "step_00000004"


def test_any_number_of_sigterms_is_one_request():
    with processes.StopSignal() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, though the tests may run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_forwarded_ctrl_c_is_the_same_one_and_a_later_one_interrupts(ctrl_c, monkeypatch):
    with processes.StopSignal() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        monkeypatch.setattr(processes, "FORWARDED", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_processes_agree_every_few_seconds_whatever_a_step_takes(monkeypatch):
    """Steps of 1 s: asked after step 1, after twice as many, and so on up to every 5 s."""
    now = [0.0]
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    others = 0
    asked = []

    def gather(mine):
        asked.append(step)
        return [*mine, (others, 1.0)]

    monkeypatch.setattr(processes, "gather_object", gather)
    agreement = processes.StopAgreement(SimpleNamespace(num_processes=2), 0)
    for step in range(1, 21):
        now[0] += 1.0
        others = signal.SIGTERM if step > 14 else 0
        assert agreement.after(step, 0) == (signal.SIGTERM if step == 17 else 0)
        if step == 17:
            break
    assert asked == [1, 3, 7, 12, 17]


def test_one_process_stops_at_once():
    agreement = processes.StopAgreement(SimpleNamespace(num_processes=1), 0)
    assert [agreement.after(step, step == 2) for step in (1, 2)] == [0, 1]


def test_a_root_is_opened_without_the_process_group(root, tmp_path):
    """An index or a world may take longer than the time-out of its collectives; here there are none to call."""
    data, held_out = open_data(complete(tiny(root, tmp_path / "run")), SimpleNamespace(is_main_process=True))
    assert len(data) > len(held_out) > 0


OWN = {
    "ACCELERATE_MIXED_PRECISION": ("no", "--precision fp32"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("2", "--optim.accumulate 2"),
}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        (
            "ACCELERATE_MIXED_PRECISION",
            "fp16",
            "ACCELERATE_MIXED_PRECISION=fp16 is ignored; the run uses --precision fp32",
        ),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "is ignored; the run uses --optim.accumulate 2"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1", ""),  # launchers set it unasked
        ("ACCELERATE_MIXED_PRECISION", "no", ""),
    ],
)
def test_a_run_has_its_own_settings_whatever_the_environment_says(name, value, told, monkeypatch, caplog):
    monkeypatch.setenv(name, value)
    with processes.own_settings(OWN):
        assert name not in os.environ
    assert os.environ[name] == value
    assert caplog.messages == ([] if not told else caplog.messages)
    assert told in caplog.text


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP=true is not supported: unset it"),
        ({"ACCELERATE_USE_DEEPSPEED": "1"}, "ACCELERATE_USE_DEEPSPEED=1 is not supported"),
        ({"ACCELERATE_DYNAMO_BACKEND": "EAGER"}, "ACCELERATE_DYNAMO_BACKEND=EAGER is not supported"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 in the environment, but no RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 in the environment, but no RANK, WORLD_SIZE"),
    ],
)
def test_an_environment_for_another_training_is_refused_by_name(environment, told, monkeypatch):
    for name in processes.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told):
        processes.own_settings(OWN).__enter__()


def test_what_accelerate_launch_sets_unasked_is_no_obstacle(monkeypatch):
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(name, "False")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with processes.own_settings(OWN):
        pass

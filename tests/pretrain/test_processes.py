"""What is done on the main process alone, seen from the others."""

from types import SimpleNamespace
from typing import Any

import pytest

from mim4d.errors import UserError
from mim4d.pretrain import processes


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

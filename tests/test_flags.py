"""Help pages and errors of the commands that tyro reads."""

import dataclasses
import re
import shlex

import pytest

from mim4d import commands
from mim4d.data import cli as checking
from mim4d.eval import cli as evaluation
from mim4d.eval.config import EvalConfig
from mim4d.flags import field_docs, name_flags, parse_flags
from mim4d.hub.cli import make_parser
from mim4d.pretrain import cli as pretraining
from mim4d.pretrain.config import PretrainConfig
from mim4d.world import cli as world


@pytest.mark.parametrize("width", [60, 120])
@pytest.mark.parametrize("command", [pretraining, evaluation])
def test_help_lists_what_matters_first_and_fits_the_terminal(command, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as stop:
        command.parse(["--help"])
    assert stop.value.code == 0
    page = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, page.splitlines())) <= width
    assert "Example: mim4d-" in page
    options, expert = page.index(" options "), page.index(" expert options ")
    assert options < expert < page.index(" optim options ")
    listed = re.findall(r"--([\w-]+)", page[options:expert])
    assert {name.replace("_", "-") for name in command.FIRST} <= set(listed)
    assert "--precision" in page[expert:]


COMMANDS = {
    "mim4d-data": checking.main,
    "mim4d-eval": evaluation.main,
    "mim4d-hub": commands.hub,
    "mim4d-world": world.main,
}
PARSE = {
    "mim4d-data": lambda argv: checking.make_parser().parse_args(argv),
    "mim4d-eval": lambda argv: evaluation.parse_comparison(argv[1:]),
    "mim4d-hub": lambda argv: make_parser(commands.HUB).parse_args(argv),
    "mim4d-world": lambda argv: parse_flags(world.Options, argv, prog="mim4d-world"),
}


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize(
    "command",
    ["mim4d-world", "mim4d-data", "mim4d-data check", "mim4d-eval compare", "mim4d-hub"]
    + [f"mim4d-hub {name}" for name in ("push", "list", "pull", "card", "convert", "export", "release")],
)
def test_help_shows_an_example_that_the_command_accepts(command, width, capsys, monkeypatch):
    name, *subcommand = command.split()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.argv", [name, *subcommand, "--help"])
    with pytest.raises(SystemExit) as stop:
        COMMANDS[name]()
    assert stop.value.code == 0
    page = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, page.splitlines())) <= width
    example = " ".join(page.split("Example: ")[1].split("\n\n")[0].split())
    assert example.startswith(command)
    PARSE[name](shlex.split(example)[1:])


@pytest.mark.parametrize("kind", [PretrainConfig, EvalConfig])
def test_every_setting_has_a_line_of_help(kind):
    sections = {"optim", "method", "model", "world"} & {field.name for field in dataclasses.fields(kind)}
    missing = {field.name for field in dataclasses.fields(kind)} - field_docs(kind).keys()
    assert missing <= sections


def test_names_of_settings_become_flags():
    assert name_flags("lift.depth_step = 0 must be more than 0", PretrainConfig) == (
        "--method.lift.depth-step 0 must be more than 0"
    )
    assert name_flags("lower `batch_size` or `workers`", PretrainConfig) == "lower --batch-size or --workers"
    assert name_flags("version = v2: not in /data") == "--version v2: not in /data"
    assert name_flags("world.seed = -1 must be at least 0", PretrainConfig).startswith("--world.seed -1")

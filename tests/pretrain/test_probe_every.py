"""--probe-every: ridge probes of the encoder while it trains."""

import dataclasses

import pytest
import torch

from mim4d.data import DataConfig
from mim4d.eval.online import OnlineProbe
from mim4d.eval.probe import FIGURES
from mim4d.pretrain.cli import main
from tests.pretrain.runs import TINY, arguments, metrics
from tests.toy import toy_model

NAMES = {f"probe_{name}" for name in FIGURES}


def test_a_run_logs_the_probes_of_its_encoder(root, tmp_path, fresh_accelerate):
    out = tmp_path / "run"
    main(arguments(root, out, "--probe-every", "3", "--log-every", "100"))
    rows = metrics(out)
    assert {row["step"]: {name for name in row if name.startswith("probe_")} for row in rows} == {
        1: set(),
        3: NAMES,
        4: NAMES,
    }
    assert all(0 <= row[name] <= 1 for row in rows[1:] for name in NAMES)
    assert "Ridge probes of the encoder" in (out / "report.html").read_text()


def test_probes_need_held_out_scenes(root, tmp_path, capsys, fresh_accelerate):
    with pytest.raises(SystemExit) as stop:
        main(arguments(root, tmp_path / "run", "--probe-every", "3", "--val-split", "none"))
    assert stop.value.code == 2
    assert "--probe-every 3 needs held-out scenes: name them by --val-split" in capsys.readouterr().err


def test_probes_leave_the_model_as_it_was_and_repeat(root):
    model = toy_model().train()
    data = DataConfig(dataroot=str(root), version="v1.0-mini", image_size=(64, 128), cameras=tuple(TINY["cameras"]))
    probe = OnlineProbe(dataclasses.replace(data, frames=3), "mini_train", "mini_val")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = probe(model), probe(model)
    assert first == second
    assert first.keys() == NAMES
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

"""The notebook runs from top to bottom, on a smaller world and for fewer steps than readers see."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples/tour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
SMALLER = {"scale=0.25": "scale=0.125", "workers=2": "workers=1", '"96", "192"': '"64", "128"', '"8"': '"2"'}


def test_the_notebook_is_stored_without_outputs():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert NOTEBOOK.stat().st_size < 20_000


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    plt.close("all")  # other tests may have left some open
    code = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
    for readers, ours in SMALLER.items():
        assert readers in code
        code = code.replace(readers, ours)
    exec(compile(code, str(NOTEBOOK), "exec"), {})
    assert len(plt.get_fignums()) == 3
    plt.close("all")
    printed = capsys.readouterr().out.split()
    assert printed[::2] == ["depth_r2", "depth_abs_rel", "vehicle_ap", "drivable_ap"]
    assert all(-10 < float(value) <= 1 for value in printed[1::2])
    assert (tmp_path / "runs/tour/run/encoder/model.safetensors").is_file()

"""The notebook runs from top to bottom, at the size that readers run it."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples/tour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def test_the_notebook_is_stored_without_outputs():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert NOTEBOOK.stat().st_size < 20_000


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    plt.switch_backend("agg")
    plt.close("all")  # other tests may have left some open
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    assert len(plt.get_fignums()) == 3
    plt.close("all")
    printed = capsys.readouterr().out.split()
    assert printed[::2] == ["depth_r2", "depth_abs_rel", "vehicle_ap", "drivable_ap"]
    assert all(-10 < float(value) <= 1 for value in printed[1::2])
    assert (tmp_path / "runs/tour/run/encoder/model.safetensors").is_file()

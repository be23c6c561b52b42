"""mim4d-hub release: scores, card, tag and the table of models."""

import json
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard

from mim4d.commands import hub as command
from mim4d.hub import team as setting
from mim4d.hub import use
from mim4d.hub.catalog import register_names
from mim4d.hub.folder import save_encoder
from mim4d.hub.scores import ReleaseScores, Result
from tests.hub import calls
from tests.hub.conftest import _online, cache, client, environment, hub, one_thread, server

__all__ = ["_online", "cache", "client", "environment", "hub", "one_thread", "server"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a pretraining leaves."""
    folder = tmp_path / "runs/base"
    torch.manual_seed(1)
    save_encoder(timm.create_model("test_resnet"), folder / "encoder", license="mit", provenance={"steps": 9})
    (folder / "report.html").write_text("<p>A report</p>")
    return folder


@pytest.fixture
def zoo(tmp_path: Path):
    """A team's folder."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    use(folder)
    yield folder
    setting._used.clear()
    register_names()


def test_a_release_is_scored_published_and_listed(run, zoo, tiny_world, capsys):
    (zoo / "README.md").write_text("# Our models\n\nAsk Kim.\n")
    small = ["--dataroot", str(tiny_world), "--version", "v1.0-mini", "--preset", "demo", "--seeds", "1"]
    command(["release", str(run), *small])
    assert sorted(path.name for path in (zoo / "test_resnet.v1").iterdir()) == [
        *("README.md", "config.json", "model.safetensors", "report.html", "scores.json", "scores.png")
    ]
    text = (zoo / "test_resnet.v1/README.md").read_text()
    card = ModelCard(text)
    assert [part.splitlines()[0] for part in card.text.split("\n## ")[1:]][:3] == ["Use", "Scores", "Training"]
    assert "| scratch" in card.text
    assert str(run) not in text
    scores = json.loads((zoo / "test_resnet.v1/scores.json").read_text())["results"]
    shown = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert shown == {score["name"]: round(score["mean"], 1) for score in scores}
    assert set(shown) == {"depth R2", "vehicle AP", "drivable AP", "BEV vehicle AP", "BEV vehicle IoU"}
    table = (zoo / "README.md").read_text()
    assert table.startswith("# Our models\n\nAsk Kim.\n\n<!-- begin: models -->\n| model |")
    assert f"`test_resnet.v1` | unknown | depth R2 {shown['depth R2']} % (v1.0-mini, 50 % of the labels)" in table

    capsys.readouterr()
    command(["release", str(run), *small])
    again = capsys.readouterr()
    assert "2 of 2 cells are finished already" in again.err
    assert "nothing to write" in again.out
    assert (zoo / "README.md").read_text() == table


def test_every_push_publishes_the_scores_of_these_weights(client, hub, tmp_path):
    folder = tmp_path / "run/encoder"
    save_encoder(calls.small(), folder, provenance={"steps": 9})
    assert client(calls.run, "push", str(tmp_path / "run"), "--repo", "org/name")[0] == 0
    sha256 = json.loads((folder / "config.json").read_text())["mim4d"]["sha256"]
    result = Result("probe", "our streets", "depth R2", 0.5, 83.94, 0.2)
    ReleaseScores(sha256, ("| probe | depth R2 |",), (result,)).write(folder)
    assert client(calls.run, "push", str(tmp_path / "run"), "--repo", "org/name", "--tag", "v2")[0] == 0
    card = ModelCard(hub.read("org/name", "README.md").decode())
    assert "## Scores\n\n| probe | depth R2 |" in card.text
    assert [each.metric_value for each in card.data.eval_results] == [83.9]
    assert "scores.json" in hub.files("org/name")
    # Scores of other weights are not published.
    ReleaseScores("0" * 64, ("| stale |",), (result,)).write(folder)
    assert client(calls.run, "push", str(tmp_path / "run"), "--repo", "org/other")[0] == 0
    assert hub.files("org/other") == [".gitattributes", "README.md", "config.json", "model.safetensors"]


def test_the_readme_of_an_organisation_gets_the_table_where_it_asks_for_it(client, hub, tmp_path):
    run, team = str(tmp_path / "run"), ("org", str(tmp_path / "cache"))
    save_encoder(calls.small(), tmp_path / "run/encoder", license="mit", provenance={"steps": 9})
    assert client(calls.run, "push", run, "--repo", "org/mim4d_convnext_atto", "--tag", "v1")[0] == 0
    assert client(calls.run, "push", run, "--repo", "org/test_resnet", "--private")[0] == 0
    assert "no table of models: paste `mim4d-hub list --markdown`" in client(calls.publish_table, *team)
    hub.add("spaces/org/README", {"README.md": b"---\nsdk: static\n---\n# Us\n"})
    assert "no table of models" in client(calls.publish_table, *team)
    assert hub.repos["spaces/org/README"].history() == ["files"]

    pasted = "---\nsdk: static\n---\n# Us\n\n<!-- begin: models -->\nsoon\n<!-- end: models -->\n\nAsk Kim.\n"
    hub.add("spaces/org/README", {"README.md": pasted.encode()})
    assert client(calls.publish_table, *team) == f"table of models: {hub.endpoint}/org\n"
    before, _, after = pasted.partition("soon")
    text = hub.read("spaces/org/README", "README.md").decode()
    table = text.removeprefix(before).removesuffix(after).splitlines()
    name = f"[`mim4d_convnext_atto.v1`]({hub.endpoint}/org/mim4d_convnext_atto)"
    assert table[2:] == [f"| {name} | unknown | none | mit |"]  # none of the private model
    client(calls.publish_table, *team)
    assert len(hub.repos["spaces/org/README"].history()) == 3  # nothing has changed

    hub.repos["spaces/org/README"].private = True
    client(calls.publish_table, *team)
    assert "test_resnet" in hub.read("spaces/org/README", "README.md").decode()


def test_a_release_needs_a_hub_and_an_encoder(zoo, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command(["release", str(tmp_path / "no-run")])
    assert capsys.readouterr().err == f"error: no such folder: {tmp_path / 'no-run'}\n"
    use(None)
    with pytest.raises(SystemExit, match="2"):
        command(["release", str(tmp_path)])
    assert "release needs your team's hub: set MIM4D_HUB" in capsys.readouterr().err

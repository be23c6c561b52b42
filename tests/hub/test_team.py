"""The team's hub: names that load for everybody who names it, and for nobody else; each user is a fresh process."""

import json
import os
import shutil
from pathlib import Path

import pytest
import timm

from mim4d.errors import UserError
from mim4d.hub import team as setting
from mim4d.hub import use
from mim4d.hub.catalog import register_names
from mim4d.hub.folder import save_encoder
from mim4d.pretrain.cli import parse
from tests.hub import calls
from tests.hub.calls import digest
from tests.hub.conftest import Client
from tests.hub.fresh import Fresh
from tests.hub.server import Fault, HubServer

ROOT = Path(__file__).parents[2]
NAME = "mim4d_convnext_pico"
"""A model without weights in the package."""

CREATE = """
import json, sys
import mim4d, timm
from tests.hub import calls
model = timm.create_model(sys.argv[1], pretrained=True).eval()
cfg = model.pretrained_cfg
print(json.dumps([calls.digest(calls.features(model)), cfg.get("tag"), cfg.get("license")]))
"""
NAMES = "import mim4d, timm; print(timm.list_pretrained('mim4d_*'))"


def encoder(seed: int):
    return calls.shaken(timm.create_model(NAME, **calls.SMALL), seed)


def expected(seed: int) -> str:
    return digest(calls.features(encoder(seed)))


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run, whose encoder :func:`retrain` replaces."""
    retrain(tmp_path / "run", seed=0)
    return tmp_path / "run"


def retrain(run: Path, seed: int) -> None:
    measured = {"first": {"step": 1}, "last": {"step": 9, "val_temporal_abs_rel": 0.25, "val_temporal_psnr": 18.0}}
    made = {"data": "nuscenes", "dataset": "v1.0-trainval", "steps": 9, "measured": measured}
    save_encoder(encoder(seed), run / "encoder", license="cc-by-nc-sa-4.0", provenance=made)


@pytest.fixture(scope="module")
def own(environment, tmp_path_factory) -> dict[str, str]:
    """The environment of a user without any setting of a hub."""
    home = tmp_path_factory.mktemp("home")
    return {**environment, "XDG_CONFIG_HOME": f"{home}/config", "MIM4D_CACHE": f"{home}/cache", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def plain(own) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name != "MIM4D_HUB"}, **own}


@pytest.fixture(scope="module")
def _fresh(plain, tmp_path_factory):
    fresh = Fresh(plain, tmp_path_factory.mktemp("printed"))
    yield fresh
    fresh.close()


@pytest.fixture
def user(plain, hub, cache, _fresh):
    """Starts a process in which code runs; returns (code, output, errors)."""
    shutil.rmtree(plain["MIM4D_CACHE"], ignore_errors=True)
    return lambda code, *argv, **extra: _fresh.run(code, *argv, environment={**plain, **extra})


@pytest.fixture(scope="module")
def _team(own):
    client = Client(**own, MIM4D_HUB="org")
    yield client
    client.close()


@pytest.fixture
def team(user, _team):
    """``mim4d-hub`` of a user whose hub is ``org``; one process for all tests."""
    return lambda *argv: _team(calls.run, *argv)


COMMAND = "import sys; from mim4d.commands import hub; hub(sys.argv[1:])"


def created(result: tuple[int, str, str]) -> list:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def refusal(result: tuple[int, str, str]) -> str:
    """The last line of an error."""
    code, _, err = result
    assert code == 1, err
    return err.strip().splitlines()[-1]


def test_a_team_publishes_and_the_name_loads_for_everybody_in_it(user, team, hub, run_folder, tmp_path):
    org = {"MIM4D_HUB": "org"}
    code, out, err = team("push", str(run_folder))
    assert code == 0, err
    assert out.splitlines()[0] == f"create the public repository org/{NAME}"
    assert "create the tag v1" in out
    retrain(run_folder, seed=1)
    assert "create the tag v2" in team("push", str(run_folder))[1]
    assert "create the tag" not in team("push", str(run_folder))[1]  # nothing has changed
    assert set(hub.repos[f"org/{NAME}"].tags) == {"v1", "v2"}

    assert created(user(CREATE, NAME, **org)) == [expected(1), None, "cc-by-nc-sa-4.0"]
    assert created(user(CREATE, f"{NAME}.v1", **org)) == [expected(0), "v1", "cc-by-nc-sa-4.0"]
    assert created(user(CREATE, NAME, **org, HF_HUB_OFFLINE="1"))[0] == expected(1)  # from the cache
    missing = refusal(user(CREATE, f"{NAME}.v3", **org))
    assert f"org/{NAME} has no branch, tag or commit v3 (MIM4D_HUB=org)" in missing

    hub.seen.clear()
    assert "mim4d_convnext_pico" not in user(NAMES, **org)[1]  # importing uses no network
    assert not hub.seen
    code, out, err = team("list")
    assert code == 0, err
    assert [line.split() for line in out.splitlines()] == [
        ["name", "data", "held-out", "scores", "licence"],
        *(
            f"{name} {default} nuscenes v1.0-trainval depth error 0.250, PSNR 18.0 dB cc-by-nc-sa-4.0".split()
            for name, default in ((f"{NAME}.v1", ""), (f"{NAME}.v2", "default"))
        ),
    ]
    hub.seen.clear()
    listed = user(NAMES, **org)[1]
    assert all(f"'{name}'" in listed for name in (NAME, f"{NAME}.v1", f"{NAME}.v2", "mim4d_convnext_atto.demo"))
    assert not hub.seen
    assert user(COMMAND, "list", **org, HF_HUB_OFFLINE="1")[1] == out
    assert created(user(CREATE, f"{NAME}.v2", **org))[:2] == [expected(1), "v2"]  # a listed name
    assert NAME not in user(NAMES, MIM4D_HUB="another")[1]


def test_plain_timm_loads_what_was_pushed_bit_for_bit(client, team, run_folder, tmp_path):
    assert team("push", str(run_folder))[0] == 0
    assert digest(client(calls.plain_timm, f"hf-hub:org/{NAME}", str(tmp_path))) == expected(0)


def test_a_stranger_who_registers_a_likely_name_gets_nothing(user, team, hub, run_folder):
    files = {file: (run_folder / "encoder" / file).read_bytes() for file in ("config.json", "model.safetensors")}
    for stranger in ("stranger", "mim4d", "timm", "hustvl"):
        hub.add(f"{stranger}/{NAME}", files)
    for name in (NAME, f"{NAME}.v1"):
        message = refusal(user(CREATE, name))
        assert message.startswith(f"mim4d.errors.WeightsError: there are no weights for {NAME}")
        assert message.endswith("or set MIM4D_HUB to the organisation or folder where your team publishes")
    assert not hub.seen
    message = refusal(user(CREATE, NAME, MIM4D_HUB="org"))
    assert f"has no repository org/{NAME}" in message
    team("list")
    asked = {path for _, path, _ in hub.seen}
    assert asked
    assert all(path.startswith((f"/org/{NAME}/", f"/api/models/org/{NAME}")) or path == "/api/models" for path in asked)


def test_private_weights_need_a_token_that_may_read_them(user, team, hub, run_folder):
    assert team("push", str(run_folder), "--private")[0] == 0
    assert hub.repos[f"org/{NAME}"].private
    assert created(user(CREATE, NAME, MIM4D_HUB="org"))[0] == expected(0)
    message = refusal(user(CREATE, NAME, MIM4D_HUB="org", HF_TOKEN="hf_reader", HF_HUB_CACHE=f"{run_folder}/cache"))
    assert f"has no repository org/{NAME}, or it is private" in message
    assert NAME not in user(COMMAND, "list", MIM4D_HUB="org", HF_TOKEN="hf_reader")[1]


def test_packaged_names_stay(user, team, hub, run_folder):
    save_encoder(calls.small(seed=3), run_folder / "encoder")
    assert team("push", str(run_folder))[0] == 0
    hub.seen.clear()
    assert created(user(CREATE, "mim4d_convnext_atto", MIM4D_HUB="org"))[1] == "demo"
    assert not hub.seen
    assert created(user(CREATE, "mim4d_convnext_atto.v1", MIM4D_HUB="org"))[0] == digest(
        calls.features(calls.small(seed=3))
    )


def test_weights_damaged_on_the_way_or_of_another_model_are_refused(user, team, hub, run_folder):
    assert team("push", str(run_folder))[0] == 0
    hub.faults = [Fault("GET /cdn/", "flip")]
    assert f"model.safetensors of org/{NAME} arrived damaged" in refusal(user(CREATE, NAME, MIM4D_HUB="org"))
    other = {file: (run_folder / "encoder" / file).read_bytes() for file in ("config.json", "model.safetensors")}
    hub.add("org/mim4d_convnext_nano", other)
    message = refusal(user(CREATE, "mim4d_convnext_nano", MIM4D_HUB="org"))
    assert "org/mim4d_convnext_nano holds a mim4d_convnext_pico, expected a mim4d_convnext_nano" in message


def test_a_mirror_is_named_by_its_endpoint(user, team, hub, run_folder, tmp_path):
    with HubServer() as mirror:
        extra = {"MIM4D_HUB": "org", "HF_ENDPOINT": mirror.endpoint, "HF_HUB_CACHE": str(tmp_path / "mirrored")}
        assert user(COMMAND, "push", str(run_folder), **extra)[0] == 0
        assert created(user(CREATE, NAME, **extra))[0] == expected(0)
        assert NAME in user(COMMAND, "list", **extra)[1]
    assert not hub.seen
    assert NAME not in user(NAMES, MIM4D_HUB="org")[1]  # what the mirror has is not what the Hub has


def test_a_folder_is_a_hub_without_a_network(user, team, hub, run_folder, tmp_path):
    zoo = tmp_path / "zoo"
    folder = {"MIM4D_HUB": str(zoo), "HF_HUB_OFFLINE": "1"}
    code, _, err = user(COMMAND, "push", str(run_folder), **folder)
    assert (code, err) == (
        2,
        f"error: no such folder: {zoo}; make it first, or correct the setting of the hub\n",
    )
    zoo.mkdir()
    user(COMMAND, "push", str(run_folder), "--dry-run", **folder)
    assert not list(zoo.iterdir())
    assert user(COMMAND, "push", str(run_folder), **folder)[0] == 0
    retrain(run_folder, seed=1)
    assert user(COMMAND, "push", str(run_folder), **folder)[0] == 0
    assert user(COMMAND, "push", str(run_folder), **folder)[1].startswith("nothing to write: ")
    assert sorted(each.name for each in zoo.iterdir()) == [NAME, f"{NAME}.v1", f"{NAME}.v2"]
    code, _, err = user(COMMAND, "push", str(run_folder), "--tag", "v1", **folder)
    assert (code, f"{NAME}.v1 is there already: choose another --tag" in err) == (2, True)

    assert created(user(CREATE, NAME, **folder)) == [expected(1), None, "cc-by-nc-sa-4.0"]
    assert created(user(CREATE, f"{NAME}.v1", **folder))[:2] == [expected(0), "v1"]
    assert f"'{NAME}.v1'" in user(NAMES, **folder)[1]
    assert "default  nuscenes v1.0-trainval" in user(COMMAND, "list", **folder)[1]
    weights = zoo / NAME / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert "was damaged or changed" in refusal(user(CREATE, NAME, **folder))
    assert not hub.seen


# --- the setting ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """No setting at all, and none afterwards."""
    monkeypatch.delenv("MIM4D_HUB", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield tmp_path / "config/mim4d/config.yaml"
    setting._used.clear()
    monkeypatch.undo()
    register_names()


def test_use_comes_before_the_variable_and_the_variable_before_the_file(no_hub, monkeypatch):
    assert setting.team_hub() is None
    no_hub.parent.mkdir(parents=True)
    no_hub.write_text("hub: filed\n")
    assert setting.team_hub() == setting.TeamHub("filed", f"hub: filed in {no_hub}")
    monkeypatch.setenv("MIM4D_HUB", "exported")
    assert setting.team_hub().place == "exported"
    use("used")
    assert setting.team_hub().place == "used"
    use(None)
    assert setting.team_hub() is None


@pytest.mark.parametrize("place", ["a b", "-org", "org:tag", "https://huggingface.co/acme"])
def test_what_is_neither_an_organisation_nor_a_folder_is_refused(place, no_hub, monkeypatch):
    monkeypatch.setenv("MIM4D_HUB", place)
    with pytest.raises(UserError, match=r"^MIM4D_HUB=.*: expected an organisation on the Hub, or a folder"):
        setting.team_hub()


@pytest.mark.parametrize("text", ["hub: [", "hub: a\nother: b\n", "- a\n"])
def test_a_config_file_with_mistakes_is_named(text, no_hub):
    no_hub.parent.mkdir(parents=True)
    no_hub.write_text(text)
    with pytest.raises(UserError, match=f"{no_hub}") as refused:
        setting.team_hub()
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_called_like_an_organisation_is_not_it(no_hub, tmp_path, monkeypatch):
    (tmp_path / "acme").mkdir()
    monkeypatch.chdir(tmp_path)
    use("acme")
    assert setting.team_hub().folder is None
    use(Path("acme"))
    assert setting.team_hub().folder == Path("./acme")


def test_names_of_a_folder_are_listed_as_soon_as_it_is_used_and_no_longer_than_that(no_hub, run_folder, tmp_path):
    save_encoder(encoder(0), tmp_path / f"zoo/{NAME}.best", license="mit")
    use(tmp_path / "zoo")
    assert timm.get_pretrained_cfg(f"{NAME}.best").license == "mit"
    assert f"{NAME}.best" in timm.list_pretrained("mim4d_*")
    assert NAME not in timm.list_pretrained()  # no weights without a tag
    use(None)
    assert f"{NAME}.best" not in timm.list_pretrained()
    assert not timm.is_model_pretrained(f"{NAME}.best")


def test_a_run_may_start_from_the_teams_weights(no_hub, run_folder, tmp_path):
    from mim4d.backbones.weights import initialise, license_of

    save_encoder(encoder(0), tmp_path / f"zoo/{NAME}.best", license="mit")
    use(tmp_path / "zoo")
    model = timm.create_model(NAME, **calls.SMALL)
    assert initialise(model, f"{NAME}.best").endswith(f"tensors from {NAME}.best, 0 missing")
    assert calls.features(model.eval()) == calls.features(encoder(0))
    assert license_of(f"{NAME}.best") is None
    assert parse(["--model", NAME, "--init", f"{NAME}.best"])

"""To the Hub and back, over the real client."""

import json
import re
import time

import pytest
from huggingface_hub import ModelCard

from mim4d.errors import UserError, WeightsError
from mim4d.hub.folder import save_encoder
from tests.hub import calls
from tests.hub.conftest import Client
from tests.hub.server import Fault


@pytest.fixture
def run_folder(tmp_path):
    """What a run leaves, as far as publishing goes."""
    made = {"init": "scratch", "data": "synthetic", "dataset": "v1.0-mini", "split": "mini_train", "steps": 300}
    folder = tmp_path / "run" / "encoder"
    save_encoder(calls.small(), folder, image_size=(96, 256), license="apache-2.0", provenance=made)
    (tmp_path / "run" / "secret.txt").write_text("not to be uploaded")
    (folder / "notes.txt").write_text("not to be uploaded")
    return tmp_path / "run"


def test_a_pushed_encoder_is_the_same_everywhere(client, hub, tmp_path):
    url = client(calls.push, "org/name")
    expected = calls.features(calls.small())
    assert client(calls.load, "org/name") == expected
    assert client(calls.load, "hf-hub:org/name") == expected
    assert client(calls.plain_timm, "hf-hub:org/name", str(tmp_path)) == expected
    assert url == f"{hub.endpoint}/org/name/commit/{hub.repos['org/name'].branches['main']}"
    assert hub.files("org/name") == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert not hub.repos["org/name"].private


def test_it_is_loaded_as_timm_would(client):
    client(calls.push, "org/name")
    assert client(calls.load, "org/name", num_classes=5, drop_path_rate=0.1) == calls.features(calls.small())
    assert len(client(calls.load, "org/name", in_chans=3)) == 4


def test_a_run_is_published_with_what_is_known_of_it(client, hub, run_folder):
    code, out, err = client(calls.run, "push", str(run_folder), "--repo", "org/drawn", "--tag", "v1", "--private")
    assert code == 0, err
    assert re.search(r"^published: .*/org/drawn/commit/\w{40}$", out, re.M)
    assert hub.files("org/drawn") == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert hub.repos["org/drawn"].private
    assert hub.repos["org/drawn"].tags == {"v1": hub.repos["org/drawn"].branches["main"]}
    assert hub.repos["org/drawn"].history()[0].startswith("mim4d_convnext_atto after 300 steps")
    card = ModelCard(hub.read("org/drawn", "README.md").decode())
    assert card.data.license == "apache-2.0"
    assert '"hf-hub:org/drawn", pretrained=True' in card.text
    assert "no real images" in card.text
    assert client(calls.load, "org/drawn", revision="v1") == calls.features(calls.small())


def test_the_same_weights_again_make_no_second_commit(client, hub, run_folder):
    argv = ("push", str(run_folder), "--repo", "org/name", "--tag", "v1")
    client(calls.run, *argv)
    before = hub.repos["org/name"].history()
    hub.seen.clear()
    code, out, _ = client(calls.run, *argv)
    assert (code, hub.repos["org/name"].history()) == (0, before)
    assert out.count("unchanged") == 3
    assert "nothing to upload" in out
    assert not hub.requests("^(POST|PUT)")


def test_an_encoder_again_makes_no_second_commit(client, hub):
    assert client(calls.push, "org/name") == client(calls.push, "org/name")
    assert len(hub.repos["org/name"].history()) == 2  # the Hub's own first one, and the push


def test_other_weights_make_one_more_commit(client, hub):
    client(calls.push, "org/name", seed=0)
    client(calls.push, "org/name", seed=1)
    assert len(hub.repos["org/name"].history()) == 3
    assert client(calls.load, "org/name") == calls.features(calls.small(seed=1))


def test_a_dry_run_changes_nothing(client, hub, run_folder):
    code, out, _ = client(calls.run, "push", str(run_folder), "--repo", "org/name", "--tag", "v1", "--dry-run")
    assert code == 0
    assert "create the public repository org/name" in out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("new")] == [
        ["new", "config.json"],
        ["new", "model.safetensors"],
        ["new", "README.md"],
    ]
    assert "create the tag v1" in out
    assert "nothing was changed" in out
    assert not hub.repos
    assert not hub.requests("^(POST|PUT)")


def test_a_branch_is_made_where_it_is_missing(client, hub):
    client(calls.push, "org/name", seed=0)
    client(calls.push, "org/name", seed=1, revision="next")
    assert client(calls.load, "org/name") == calls.features(calls.small(seed=0))
    assert client(calls.load, "org/name", revision="next") == calls.features(calls.small(seed=1))
    client(calls.push, "org/new", revision="first")
    assert "model.safetensors" in hub.files("org/new", "first")


def test_a_card_edited_on_the_hub_stays_with_its_weights(client, hub, run_folder):
    client(calls.run, "push", str(run_folder), "--repo", "org/name")
    edited = hub.read("org/name", "README.md") + b"\nMeasured on our fleet.\n"
    hub.add("org/name", {"README.md": edited})
    _, out, _ = client(calls.run, "push", str(run_folder), "--repo", "org/name")
    assert "kept       README.md" in out
    assert hub.read("org/name", "README.md") == edited


def test_a_card_in_the_folder_is_the_one_that_is_pushed(client, hub, run_folder):
    code, out, _ = client(calls.run, "card", str(run_folder), "--repo", "org/name", "--write")
    card = run_folder / "encoder" / "README.md"
    assert (code, out.strip()) == (0, str(card))
    card.write_text(card.read_text() + "\nMore.\n")
    client(calls.run, "push", str(run_folder), "--repo", "org/name")
    assert hub.read("org/name", "README.md") == card.read_bytes()


def test_a_card_with_broken_metadata_is_refused_before_anything_is_sent(client, hub, run_folder):
    (run_folder / "encoder" / "README.md").write_text("---\ntags: 3\n---\n")
    code, _, err = client(calls.run, "push", str(run_folder), "--repo", "org/name")
    assert (code, err.count("\n")) == (2, 1)
    assert "metadata at the top of README.md" in err
    assert hub.files("org/name") == [".gitattributes"]


def test_another_licence_goes_into_card_and_config(client, hub, run_folder):
    client(calls.run, "push", str(run_folder), "--repo", "org/name", "--license", "cc-by-4.0")
    assert json.loads(hub.read("org/name", "config.json"))["pretrained_cfg"]["license"] == "cc-by-4.0"
    assert ModelCard(hub.read("org/name", "README.md").decode()).data.license == "cc-by-4.0"
    assert json.loads((run_folder / "encoder" / "config.json").read_text())["pretrained_cfg"]["license"] == "apache-2.0"


def test_config_and_card_never_name_different_licences(client, run_folder):
    card = run_folder / "encoder" / "README.md"
    for text in (None, "---\nlicense: [\n---\n", "Mine.\n"):
        if text is None:
            client(calls.run, "card", str(run_folder), "--repo", "org/name", "--write")
        else:
            card.write_text(text)
        code, _, error = client(calls.run, "push", str(run_folder), "--repo", "org/name", "--license", "mit")
        assert code == 2
        assert "README.md names another licence than mit" in error


def test_an_edited_card_is_not_written_over(client, run_folder):
    write = ("card", str(run_folder), "--repo", "org/name", "--write")
    for _ in range(2):  # the same again is no other card
        assert client(calls.run, *write)[0] == 0
    card = run_folder / "encoder" / "README.md"
    card.write_text(card.read_text() + "\nMore.\n")
    code, _, error = client(calls.run, *write)
    assert code == 2
    assert "differs from the new card" in error
    assert card.read_text().endswith("More.\n")


def test_private_weights_never_go_into_a_public_repository(client, hub, run_folder):
    hub.add("org/name", {".gitattributes": b""})
    code, _, err = client(calls.run, "push", str(run_folder), "--repo", "org/name", "--private")
    assert (code, err.startswith("error: org/name exists and is public")) == (2, True)
    assert hub.files("org/name") == [".gitattributes"]


def test_a_tag_is_never_moved(client, hub, run_folder):
    client(calls.push, "org/name", tag="v1")
    commit = hub.repos["org/name"].tags["v1"]
    code, _, err = client(calls.run, "push", str(run_folder), "--repo", "org/name", "--tag", "v1")
    assert (code, "has a tag v1 already" in err) == (2, True)
    assert hub.repos["org/name"].tags == {"v1": commit}
    assert len(hub.repos["org/name"].history()) == 2


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("hf_reader", "the token may not write to org/name"),
        ("hf_unknown", "the Hub rejects the login for org/name"),
        (False, "the Hub rejects the login for org/name"),
    ],
)
def test_without_the_right_to_write(token, message, client, hub):
    with pytest.raises(WeightsError, match=message) as refusal:
        client(calls.push, "org/name", token=token)
    assert "\n" not in str(refusal.value)
    assert "hf_" not in str(refusal.value).replace("`hf auth login`", "").replace("HF_TOKEN", "")
    assert not hub.repos


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_uploads_are_tried_again(fault, client, hub):
    hub.faults = [Fault("PUT /lfs/", fault)]
    client(calls.push, "org/name")
    assert len(hub.requests("PUT /lfs/")) == 2
    assert client(calls.load, "org/name") == calls.features(calls.small())


def test_a_failed_commit_leaves_nothing_and_is_repeated_without_a_second_upload(client, hub):
    hub.faults = [Fault("POST .*/commit/", "503")]
    with pytest.raises(
        UserError, match="the Hub answers 503 for org/name: try again later; uploaded files are not sent again"
    ):
        client(calls.push, "org/name")
    assert hub.files("org/name") == [".gitattributes"]
    client(calls.push, "org/name")
    assert len(hub.requests("PUT /lfs/")) == 1
    assert client(calls.load, "org/name") == calls.features(calls.small())


def test_a_commit_whose_answer_was_lost_is_not_made_twice(client, hub):
    hub.faults = [Fault("POST .*/commit/", "late cut")]
    with pytest.raises(UserError, match=r"the connection to http://.* failed for org/name"):
        client(calls.push, "org/name")
    assert len(hub.repos["org/name"].history()) == 2
    client(calls.push, "org/name")
    assert len(hub.repos["org/name"].history()) == 2


def test_someone_elses_commit_in_between_is_not_run_over(client, hub, tmp_path):
    client(calls.push, "org/name", seed=0)
    with pytest.raises(UserError, match="was changed by someone else during this push"):
        client(calls.push_while_another_does, "org/name", str(tmp_path))
    assert client(calls.load, "org/name") == calls.features(calls.small(seed=2))


# --- no network ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unreachable(environment):
    """A client whose Hub does not answer."""
    client = Client(**{**environment, "HF_ENDPOINT": "http://127.0.0.1:9"})
    yield client
    client.close()


def test_a_dry_run_needs_no_network(unreachable, run_folder):
    argv = ("push", str(run_folder), "--repo", "org/name", "--tag", "v1", "--dry-run")
    code, out, err = unreachable(calls.run, *argv)
    assert code == 0, err
    assert out.startswith("not compared with the Hub: the connection to http://127.0.0.1:9 failed for org/name")
    named = [line.split()[:2] for line in out.splitlines() if line.startswith("unknown")]
    assert named == [["unknown", name] for name in ("config.json", "model.safetensors", "README.md")]
    assert out.endswith("nothing was changed (--dry-run)\n")
    code, _, err = unreachable(calls.run, *argv[:-1])
    assert (code, err.startswith("error: the connection to http://127.0.0.1:9 failed")) == (2, True)


def test_without_a_network_both_readings_of_a_name_are_reported_soon(unreachable):
    start = time.monotonic()
    with pytest.raises(
        WeightsError, match=r"connection to .* failed for config.json of org/name.*no folder /.*/org/name\)"
    ):
        unreachable(calls.load, "org/name")
    with pytest.raises(WeightsError, match=r"^no such file or folder: runs/demo \(.*on the Hub: hf-hub:runs/demo\)$"):
        unreachable(calls.load, "runs/demo")
    with pytest.raises(WeightsError, match=r"^no such folder: demo; expected a folder, or org/name for the Hub$"):
        unreachable(calls.load, "demo")
    assert time.monotonic() - start < 10  # the Hub's client alone tries for 23 seconds

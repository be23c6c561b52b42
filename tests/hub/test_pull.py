"""From the Hub, over the real client, with everything that can go wrong on the way."""

import json
import os
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import timm
from safetensors.torch import load, save

from mim4d.errors import UserError, WeightsError
from tests.hub import calls
from tests.hub.server import Fault

WEIGHTS = "GET /cdn/"
"""The request that brings a large file."""


@pytest.fixture
def expected(client):
    """The features of org/name, which is on the Hub."""
    client(calls.push, "org/name")
    return calls.features(calls.small())


def refused(client, *args, **how) -> str:
    """What a load that cannot succeed says: one line."""
    with pytest.raises(WeightsError) as refusal:
        client(calls.load, *args, **how)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


# --- what is not there, or not for everybody -------------------------------------------------------------------------


def test_no_such_repository(client, hub):
    message = refused(client, "org/nothing")
    assert message.startswith(
        f"{hub.endpoint} has no repository org/nothing, or it is private: check the name, or log in (`hf auth login` "
        "or HF_TOKEN) with an account that may read it (and there is no folder /"
    )
    assert message.endswith("/org/nothing)")
    assert "no folder" not in refused(client, "hf-hub:org/nothing")


def test_a_private_repository(client, hub):
    client(calls.push, "org/name", private=True)
    assert client(calls.load, "org/name") == calls.features(calls.small())
    for token in (False, "hf_reader"):
        assert "or it is private" in refused(client, "org/name", token=token, cache_dir=str(hub))


def test_a_gated_repository(client, hub, expected):
    hub.repos["org/name"].gated = True
    message = refused(client, "org/name", token="hf_reader", cache_dir="elsewhere")
    assert message.startswith(f"org/name is gated: request access at {hub.endpoint}/org/name")


def test_a_token_that_is_no_longer_good(client, expected, tmp_path):
    message = refused(client, "org/name", token="hf_expired", cache_dir=str(tmp_path))
    assert "the token is missing or expired" in message
    assert "hf_expired" not in message


def test_no_such_revision(client, expected):
    assert refused(client, "org/name", revision="v9") == "org/name has no branch, tag or commit v9"


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_no_such_file(file, client, hub, expected):
    del hub.repos["org/name"].commits[hub.repos["org/name"].branches["main"]][file]
    assert re.fullmatch(rf"org/name(@\w+)? has no file {file}", refused(client, "org/name"))


@pytest.mark.parametrize("name", ["org/na me", "org//name", "-org/name"])
def test_no_name_of_a_repository(name, client):
    assert re.search("is not the name of a repository|no such file or folder", refused(client, name))


@pytest.mark.parametrize("name", ["./nothing", "/nothing", "runs/demo/encoder", Path("nothing")])
def test_no_such_folder(name, client, hub, tmp_path):
    before = client(os.getcwd)
    client(os.chdir, tmp_path)  # a clone may hold a run of the demo
    try:
        assert refused(client, name) == f"no such file or folder: {name}"
    finally:
        client(os.chdir, before)
    assert not hub.seen


# --- revisions -------------------------------------------------------------------------------------------------------


def test_branches_tags_and_commits(client, hub):
    client(calls.push, "org/name", seed=0, tag="v1")
    commit = hub.repos["org/name"].tags["v1"]
    client(calls.push, "org/name", seed=1)
    assert client(calls.load, "org/name") == calls.features(calls.small(seed=1))
    assert client(calls.load, "org/name", revision="v1") == calls.features(calls.small(seed=0))
    assert client(calls.load, "org/name", revision=commit) == calls.features(calls.small(seed=0))
    assert client(calls.load, "org/name@v1") == calls.features(calls.small(seed=0))
    assert "name two revisions" in refused(client, "org/name@v1", revision="main")


def test_a_second_load_takes_it_from_the_cache(client, hub, expected):
    client(calls.load, "org/name")
    hub.seen.clear()
    assert client(calls.load, "org/name") == expected
    assert hub.requests(".") == ["HEAD /org/name/resolve/main/config.json"]


# --- the way is bad --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(version("huggingface_hub").startswith("0."), reason="the client resumes by itself from 1.0 on")
def test_a_cut_download_goes_on_where_it_was_cut(client, hub, tmp_path):
    whole = timm.create_model("mim4d_convnext_atto")
    weights = save(whole.state_dict())
    client(calls.push, "org/name")
    config = json.loads(hub.read("org/name", "config.json"))
    del config["mim4d"]["sha256"], config["model_args"]
    hub.add("org/name", {"config.json": json.dumps(config).encode(), "model.safetensors": weights})
    hub.faults = [Fault(WEIGHTS, "cut 12000000")]  # the client keeps what it has by blocks of 10 MB
    client(calls.load, "org/name")
    ranges = [headers.get("range") for method, path, headers in hub.seen if method == "GET" and "/cdn/" in path]
    assert ranges == [None, "bytes=10485760-"]


def test_a_connection_that_is_always_cut(client, hub, expected, cache):
    hub.faults = [Fault(WEIGHTS, "cut 1000", times=99)]
    message = refused(client, "org/name")
    assert message.startswith(f"the connection to {hub.endpoint} failed for model.safetensors of org/name")
    hub.faults = []
    assert client(calls.load, "org/name") == expected


def test_a_hub_that_is_down(client, hub, expected):
    hub.faults = [Fault("HEAD /org/name/resolve/", "503", times=99)]
    assert refused(client, "org/name") == "the Hub answers 503 for config.json of org/name: try again later"


def test_a_hub_that_is_down_is_not_missed_where_the_cache_has_it(client, hub, expected):
    client(calls.load, "org/name")
    hub.faults = [Fault("HEAD", "503", times=99)]
    assert client(calls.load, "org/name") == expected


def test_a_download_that_is_too_short(client, hub, expected):
    hub.faults = [Fault(WEIGHTS, "short")]
    message = refused(client, "org/name")
    assert "failed for model.safetensors of org/name" in message
    assert "file should be of size" in message
    assert client(calls.load, "org/name") == expected


@pytest.mark.parametrize(("request_", "file"), [(WEIGHTS, "model.safetensors"), ("GET .*config.json", "config.json")])
def test_wrong_bytes_of_the_right_length(request_, file, client, hub, expected, cache):
    hub.faults = [Fault(request_, "flip")]
    message = refused(client, "org/name")
    assert re.match(rf"{file} of org/name arrived damaged: its checksum is \w{{12}}..., expected \w{{12}}...", message)
    assert not list(cache.glob(f"models--org--name/snapshots/*/{file}"))
    assert client(calls.load, "org/name") == expected


def test_wrong_bytes_are_found_without_symbolic_links_too(client, hub, expected, cache):
    """On file systems without links the cache does not keep the Hub's checksum, so the Hub is asked again."""
    client(calls.load, "org/name")
    for link in list(cache.glob("models--org--name/snapshots/*/*")):
        content = link.resolve()
        link.unlink()
        content.rename(link)
    assert client(calls.load, "org/name") == expected
    weights = next(cache.glob("models--org--name/snapshots/*/model.safetensors"))
    flip(weights)
    assert "arrived damaged" in refused(client, "org/name")
    assert not weights.exists()


def test_a_cache_that_cannot_be_written(client, expected, tmp_path):
    (tmp_path / "file").write_text("no folder")
    message = refused(client, "org/name", cache_dir=str(tmp_path / "file" / "cache"))
    assert message.startswith("cannot write config.json of org/name to the cache: ")


# --- what was published is bad ---------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_weights_that_are_not_those_of_their_config(client, hub, expected):
    other = save({name: tensor + 1 for name, tensor in load(hub.read("org/name", "model.safetensors")).items()})
    hub.add("org/name", {"model.safetensors": other})
    assert "model.safetensors of org/name was damaged or changed" in refused(client, "org/name")


def republish(hub, change, **changes) -> None:
    """Put other weights and another config on the Hub, as one who knows no checksum in it."""
    config = json.loads(hub.read("org/name", "config.json"))
    del config["mim4d"]
    tensors = change(load(hub.read("org/name", "model.safetensors")))
    weights = tensors if isinstance(tensors, bytes) else save(tensors)
    hub.add("org/name", {"config.json": json.dumps({**config, **changes}).encode(), "model.safetensors": weights})


@pytest.mark.parametrize(
    ("change", "changes", "message"),
    [
        (lambda t: t, {"model_args": {}}, r"does not fit this encoder: .* \(and \d+ more\)"),
        (lambda t: {k: v for k, v in t.items() if k != "stem.1.bias"}, {}, "stem.1.bias is missing"),
        (lambda t: {**t, "extra": t["stem.1.bias"] + 1}, {}, "extra is unknown"),
        (lambda t: {**t, "stem.1.bias": t["stem.1.bias"][:-1]}, {}, r"stem.1.bias has shape \[7\], expected \[8\]"),
        (lambda t: t, {"architecture": "vit_tiny_patch16_224"}, "cannot build a vit_tiny_patch16_224"),
        (lambda t: t, {"architecture": 3}, "does not describe a timm model"),
        (lambda t: t, {"model_args": {"depht": 3}}, "model_args has an argument 'depht'; allowed are in_chans"),
        (lambda t: b"no tensors at all", {}, "cannot read .*model.safetensors"),
        (lambda t: save(t)[:-100], {}, "cannot read .*model.safetensors"),
        (lambda t: t, {"num_classes": 10}, "head.fc.weight is missing"),
    ],
)
def test_what_does_not_fit_is_refused_whole(change, changes, message, client, hub, expected):
    republish(hub, change, **changes)
    assert re.search(message, refused(client, "org/name"))


def test_a_config_that_is_no_json(client, hub, expected):
    hub.add("org/name", {"config.json": b"{"})
    assert "cannot read config.json of org/name" in refused(client, "org/name")


def test_a_config_of_a_newer_timm(client, hub, expected):
    config = json.loads(hub.read("org/name", "config.json"))
    config["pretrained_cfg"]["a_field_of_the_future"] = 3
    hub.add("org/name", {"config.json": json.dumps(config).encode()})
    assert client(calls.load, "org/name") == expected


# --- offline ---------------------------------------------------------------------------------------------------------


def test_offline_works_from_the_cache(client, offline, hub, expected):
    client(calls.load, "org/name")
    hub.seen.clear()
    assert offline(calls.load, "org/name") == expected
    assert not hub.seen


def test_offline_says_how_to_get_what_is_not_in_the_cache(offline, hub):
    assert refused(offline, "hf-hub:org/name") == (
        "config.json of org/name is not in the cache, and HF_HUB_OFFLINE is set: unset it and download org/name once"
    )
    assert not hub.seen


def test_offline_finds_what_was_changed_in_the_cache(client, offline, expected, cache):
    client(calls.load, "org/name")
    flip(next(cache.glob("models--org--name/snapshots/*/model.safetensors")).resolve())
    assert "model.safetensors of org/name arrived damaged" in refused(offline, "org/name")
    assert client(calls.load, "org/name") == expected


def test_offline_publishes_nothing(offline):
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: unset it to publish org/name"):
        offline(calls.push, "org/name")


# --- the command -----------------------------------------------------------------------------------------------------


def test_pull_makes_a_folder_that_timm_loads(client, hub, expected, tmp_path):
    checksum = json.loads(hub.read("org/name", "config.json"))["mim4d"]["sha256"]
    code, out, err = client(calls.run, "pull", "org/name@main", "--out", str(tmp_path / "encoder"))
    assert code == 0, err
    assert out.splitlines() == [
        f"mim4d_convnext_atto, licence not stated: {tmp_path / 'encoder'}",
        f"verified: 63 tensors fit the architecture, all values finite; sha256 {checksum[:12]}... as config.json says",
    ]
    assert sorted(file.name for file in (tmp_path / "encoder").iterdir()) == ["config.json", "model.safetensors"]
    assert calls.plain_timm(f"local-dir:{tmp_path / 'encoder'}", str(tmp_path)) == expected
    assert client(calls.run, "pull", "org/name", "--out", str(tmp_path / "encoder"))[0] == 0  # as often as you like


def test_pull_fills_the_cache(client, offline, hub, expected):
    assert client(calls.run, "pull", "org/name")[0] == 0
    assert offline(calls.load, "org/name") == expected


def test_a_dry_run_fetches_nothing(client, hub, expected, cache):
    hub.seen.clear()
    code, out, _ = client(calls.run, "pull", "org/name", "--dry-run")
    assert (code, "model.safetensors" in out, "nothing was fetched" in out) == (0, True, True)
    assert not hub.requests("resolve|cdn")


def test_pull_leaves_other_folders_alone(client, expected, tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    code, _, err = client(calls.run, "pull", "org/name", "--out", str(tmp_path))
    assert (code, err.count("\n"), "holds other files than an encoder" in err) == (2, 1, True)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("argv", [("pull", "org/nothing"), ("pull", "org/nothing", "--dry-run")])
def test_errors_are_one_line_and_exit_code_2(argv, client):
    code, out, err = client(calls.run, *argv)
    assert (code, out, "has no repository org/nothing" in err, err.count("\n")) == (2, "", True, 1)


@pytest.mark.parametrize(
    ("change", "changes", "message"),
    [
        (lambda t: b"PK\3\4 a zip, as torch.save writes", {}, "it is a pickle, not safetensors"),
        (
            lambda t: t,
            {"architecture": "vit_tiny_patch16_224"},
            "cannot build a vit_tiny_patch16_224",
        ),
        (lambda t: {**t, "stem.0.bias": t["stem.0.bias"].int()}, {}, "stem.0.bias is int32, expected float16"),
    ],
)
def test_pull_verifies_nothing_that_is_not_an_encoder(change, changes, message, client, hub, expected, tmp_path):
    republish(hub, change, **changes)
    code, out, err = client(calls.run, "pull", "org/name", "--out", str(tmp_path / "encoder"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "encoder").exists()


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_tokens_are_neither_written_nor_told_nor_given_to_the_storage(client, hub, environment, tmp_path, capfd):
    token = "hf_writer"
    hub.tokens["hf_other_secret"] = {"org"}
    client(calls.push, "org/name", token="hf_other_secret", private=True)
    client(calls.load, "org/name", token="hf_other_secret")
    hub.faults = [Fault("POST .*/commit/", "403"), Fault("HEAD", "500", times=1)]
    said = [*client(calls.run, "pull", "org/name", "--out", str(tmp_path / "encoder"))]
    with pytest.raises(WeightsError) as refusal:
        client(calls.push, "org/name", seed=1)
    said += [str(refusal.value), *capfd.readouterr()]
    said += [
        file.read_bytes().decode("latin1")
        for folder in (Path(environment["HF_HOME"]), tmp_path)
        for file in folder.rglob("*")
        if file.is_file()
    ]
    assert not [text for text in said if token in str(text) or "hf_other_secret" in str(text)]
    used = [headers for _, path, headers in hub.seen if path.startswith(("/cdn/", "/lfs/")) and "verify" not in path]
    assert len(used) >= 2
    assert not [headers for headers in used if "authorization" in headers]
    assert any(headers.get("authorization") == "Bearer hf_other_secret" for _, _, headers in hub.seen)

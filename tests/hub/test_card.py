"""Model cards: valid on the Hub, true, and the same to the letter for the same encoder."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from mim4d.hub.card import PIPELINE, TAGS, make_card
from mim4d.hub.folder import check_folder, save_encoder
from mim4d.hub.licensing import hub_metadata, license_of_data, strictest
from tests.hub import calls

MADE = {
    "init": "convnext_base.dinov3_lvd1689m",
    "data": "nuscenes",
    "dataset": "v1.0-trainval",
    "split": "train",
    "steps": 30000,
    "clips_per_step": 16,
    "settings": {"frames": 3, "tolerance": None, "optim": {"lr": 0.0004, "betas": [0.9, 0.999]}},
    "measured": {
        "first": {"step": 1, "direct_rgb": 0.3},
        "last": {"step": 30000, "direct_rgb": 0.1, "val_direct_psnr": 21, "val_mean_psnr": 20},
    },
}


def card(tmp_path, license="cc-by-nc-sa-4.0", repo="org/name", **made) -> ModelCard:
    save_encoder(calls.small(), tmp_path / "encoder", image_size=(256, 704), license=license, provenance=made)
    return ModelCard(make_card(check_folder(tmp_path / "encoder"), repo))


def test_metadata_is_the_hubs(tmp_path):
    data = card(tmp_path, **MADE).data
    assert data.library_name == "timm"
    assert data.pipeline_tag == "image-feature-extraction"
    assert {"timm", "mim4d", "autonomous-driving"} <= set(data.tags)
    assert data.license == "cc-by-nc-sa-4.0"
    assert data.datasets == ["nuscenes"]
    assert data.base_model == "timm/convnext_base.dinov3_lvd1689m"


def test_it_says_how_it_was_trained_and_what_for(tmp_path):
    text = card(tmp_path, **MADE).text
    for line in (
        "- Initial weights: convnext_base.dinov3_lvd1689m",
        "- Data: driving video in nuScenes format (v1.0-trainval, train)",
        "- Steps: 30000",
        "- Clips per step: 16",
        "| direct_rgb | 0.3 | 0.1 |",
        "| val_direct_psnr |  | 21 |",
        "  lr: 0.0004",
        "256 x 704 pixels",
        '"hf-hub:org/name", pretrained=True, features_only=True, out_indices=(-4, -3, -2, -1)\n).eval()',
        'MIM4DEncoder.from_pretrained("org/name")',
        "non-commercial use only",
    ):
        assert line in text, line


def test_only_nuscenes_itself_is_called_nuscenes(tmp_path):
    assert card(tmp_path, license=None, **{**MADE, "dataset": "v1.0-fleet"}).data.datasets is None


def test_first_weights_of_a_revision_are_of_its_repository(tmp_path):
    assert card(tmp_path, **{**MADE, "init": "org/name@v1.0"}).data.base_model == "org/name"


def test_drawn_data_is_called_drawn(tmp_path):
    drawn = card(tmp_path, license="apache-2.0", **{**MADE, "data": "synthetic", "init": "scratch"})
    assert "no real images" in drawn.text
    assert "use it to try the tools, not on real images" in drawn.text
    assert drawn.data.datasets == ["mim4d-world"]
    assert drawn.data.base_model is None


def test_single_frames_are_not_called_video(tmp_path):
    video = card(tmp_path / "video", **MADE).text
    single = card(tmp_path / "single", **{**MADE, "settings": {"frames": 1}, "measured": {}}).text
    assert "multi-camera video" in video
    assert "a whole frame is dropped" in video
    assert "single frames of several cameras" in single
    assert "multi-camera video" not in single
    assert "dropped" not in single


def test_measures_are_explained_as_far_as_they_are_there(tmp_path):
    first, last = {"step": 1, "direct_depth": 3.5}, {"step": 2, "direct_rgb": 0.1, "direct_rgb_hidden": 0.2}
    text = card(tmp_path, **{**MADE, "measured": {"first": first, "last": last}}).text
    assert "| direct_depth | 3.5 |  |" in text
    assert "`rgb`: colour" in text
    assert "`depth`: depth" in text
    assert "`hidden`: " in text
    assert "`psnr`" not in text
    assert "`visible`" not in text


def test_a_depth_error_of_0_that_older_versions_wrote_without_lidar_is_not_shown(tmp_path):
    row = {"step": 1, "direct_rgb": 0.1, "direct_depth": 0.0, "direct_abs_rel": 0.0, "val_direct_delta": 0.0}
    made = {**MADE, "settings": {"supervision": "rgb"}, "measured": {"first": row, "last": row}}
    text = card(tmp_path, **made).text
    assert "| direct_rgb | 0.1 | 0.1 |" in text
    assert not [name for name in ("depth", "abs_rel", "delta") if name in text]


def test_depth_is_not_claimed_where_cameras_alone_were_seen(tmp_path):
    cameras_only = {**MADE, "settings": {"supervision": "rgb"}}
    assert "renders colour and depth of what is missing." in card(tmp_path / "lidar", **MADE).text
    assert "renders colour of what is missing." in card(tmp_path / "rgb", **cameras_only).text


def test_what_is_not_known_is_not_claimed(tmp_path):
    plain = card(tmp_path, license=None)
    assert plain.data.license == "unknown"
    assert plain.data.datasets is None
    assert "How these weights were trained is not recorded" in plain.text
    assert "MIM4D (" not in plain.text
    assert "Not stated." in plain.text


def test_held_out_scores_are_explained_where_there_are_some(tmp_path):
    ends = {"first": {"step": 1, "direct_rgb": 0.3}, "last": {"step": 9, "direct_rgb": 0.1}}
    assert "`val_mean_`" in card(tmp_path / "a", **MADE).text
    assert "`val_mean_`" not in card(tmp_path / "b", **{**MADE, "measured": ends}).text


def test_the_same_encoder_has_the_same_card(tmp_path):
    assert card(tmp_path / "a", **MADE).content == card(tmp_path / "b", **MADE).content


def test_the_repositorys_own_card_agrees():
    own = ModelCard.load(Path(__file__).parents[2] / "MODEL_CARD.md")
    assert (own.data.library_name, own.data.pipeline_tag) == ("timm", PIPELINE)
    assert own.data.tags == TAGS
    for part in ("## Use", "## Training", "## Limits", "## Licence"):
        assert part in own.text


@pytest.mark.parametrize(
    ("licenses", "whole"),
    [
        (("apache-2.0",), "apache-2.0"),
        (("apache-2.0", "mit"), "apache-2.0"),
        (("cc-by-nc-sa-4.0", "apache-2.0"), "cc-by-nc-sa-4.0"),
        (("apache-2.0", "dinov3-license"), "dinov3-license"),
        (("cc-by-nc-sa-4.0", "dinov3-license"), "cc-by-nc-sa-4.0 and dinov3-license"),
        (("cc-by-nc-sa-4.0", None), None),
        ((None, "mit"), None),
    ],
)
def test_the_strictest_licence_holds(licenses, whole):
    assert strictest(*licenses) == whole


def test_nuscenes_imposes_its_licence_and_own_recordings_none():
    assert license_of_data("nuscenes", "v1.0-mini") == "cc-by-nc-sa-4.0"
    assert license_of_data("nuscenes", "v1.0-fleet") is None
    assert license_of_data("synthetic", "v1.0-mini") == "apache-2.0"


def test_licences_that_the_hub_does_not_know_have_a_name():
    assert hub_metadata("mit") == {"license": "mit"}
    assert hub_metadata("dinov3-license")["license"] == "other"
    assert hub_metadata("dinov3-license")["license_link"].startswith("https://")
    assert hub_metadata("cc-by-nc-sa-4.0 and dinov3-license")["license_name"] == "cc-by-nc-sa-4.0-and-dinov3-license"


def test_settings_are_readable_yaml(tmp_path):
    text = card(tmp_path, **MADE).text
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == MADE["settings"]

"""The claims of README and documentation are true."""

import json
import re
from pathlib import Path

import timm
import torch

import mim4d
from benchmarks.evidence import publish
from mim4d.hub.folder import save_encoder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_changelog_begins_with_this_version():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == mim4d.__version__


def test_readme_links_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_method_page_names_files_that_exist():
    named = re.findall(r"`((?:mim4d/\S*)?\w+\.py)`", (ROOT / "docs/method.md").read_text())
    assert len(named) > 10
    for name in named:
        folders = (ROOT, ROOT / "mim4d/method", ROOT / "mim4d/pretrain")
        assert any((folder / name).exists() for folder in folders), name


def test_readme_commands_are_targets_of_the_makefile():
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_readme_modules_can_be_run():
    for module in re.findall(r"-m (mim4d[\w.]*)", README):
        assert (ROOT / module.replace(".", "/") / "__main__.py").exists(), module


def test_the_published_evidence_is_up_to_date():
    for page, text in publish.pages(json.loads(publish.RESULTS.read_text())).items():
        assert page.read_text() == text, f"{page.name}: run python -m benchmarks.evidence.publish"


def test_every_page_with_evidence_has_its_block():
    shown = {
        page: [block for _, block, _ in publish.BLOCK.findall((ROOT / page).read_text())] for page in publish.PAGES
    }
    assert shown == {
        "README.md": ["summary"],
        "MODEL_CARD.md": ["summary"],
        "docs/index.md": ["verdict"],
        "docs/does-it-help.md": ["summary"],
        "docs/evidence.md": ["verdict", "table"],
    }


def test_readme_python_loads_a_runs_encoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = timm.create_model("mim4d_convnext_atto", num_classes=0).eval()
    (tmp_path / "runs/demo").mkdir(parents=True)
    save_encoder(encoder, tmp_path / "runs/demo/encoder", image_size=(64, 64))
    names: dict = {}
    for block in blocks("python"):
        exec(block, names)
    images = torch.randn(1, 3, 64, 64)
    for got, expected in zip(
        names["backbone"].eval()(images), encoder.forward_intermediates(images, intermediates_only=True), strict=True
    ):
        assert torch.equal(got, expected)

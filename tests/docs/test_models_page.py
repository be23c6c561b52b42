"""The page of models agrees with the registry, the weights and the architectures' papers."""

import importlib.util
import re
from pathlib import Path

import pytest
import timm
import torch

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("models", ROOT / "docs/models.py")
assert SPEC is not None
assert SPEC.loader is not None
models = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(models)


def test_the_page_is_up_to_date():
    assert (ROOT / "docs/models.md").read_text() == models.page(), "run python docs/models.py"


def test_the_page_has_every_model_and_every_set_of_weights():
    text = (ROOT / "docs/models.md").read_text()
    assert sorted(re.findall(r"^\| `(mim4d_\w+)` \|", text, re.MULTILINE)) == sorted(timm.list_models("mim4d_*"))
    for name in timm.list_models("mim4d_*", pretrained=True, include_tags=True):
        assert f'"{name}"' in text or "." not in name, name


def test_the_code_for_packaged_weights_gives_the_maps_that_the_page_lists():
    text = (ROOT / "docs/models.md").read_text()
    shown = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for name in timm.list_models("mim4d_*", pretrained=True, include_tags=True):
        if "." in name and timm.get_pretrained_cfg(name).file:
            (code,) = (block for block in shown if f'"{name}"' in block)
            names: dict = {}
            exec(code, names)
            maps = names["backbone"](torch.rand(1, 3, 64, 64))
            channels = ", ".join(str(features.shape[1]) for features in maps)
            assert re.search(rf"^\| `{name.partition('.')[0]}` .* \| {channels} \|$", text, re.MULTILINE), name


@pytest.mark.parametrize(
    ("name", "published"),  # at 224 x 224: arXiv 1512.03385, table 1; 2201.03545, table 1
    [("mim4d_resnet18", 1.8), ("mim4d_resnet34", 3.6), ("mim4d_convnext_tiny", 4.5), ("mim4d_convnext_base", 15.4)],
)
def test_multiply_adds_are_those_of_the_papers(name, published):
    assert models.describe(name, (224, 224)).gmacs == pytest.approx(published, abs=0.1)

"""The measurement of masked passes: what it runs, and what its table says."""

import pytest
import torch

from benchmarks.backbones import COST, TRIED, replace_cost
from benchmarks.masked import Options, Passes, summary, table

RESULTS = {
    "vit_small_patch16_224": {
        "seconds": [4.0, 4.0, 2.2, 1.2],
        "gb": [2.0, 2.0, 1.0, 0.5],
        "visible": [1.0, 0.5, 0.25],
        "parameters": 22.0,
    },
    "regnety_008": {
        "seconds": [2.0, 3.0, 2.8, 2.6],
        "gb": [1.0, 1.5, 1.5, 1.5],
        "visible": [1.0, 0.5, 0.25],
        "parameters": 5.5,
    },
}


def test_the_summary_names_the_worst_ratio_of_each_kind():
    assert summary(RESULTS) == (
        "A ViT drops hidden tokens: a masked pass takes at most the visible fraction of the dense time plus 0.05. "
        "Other CNNs compute whole maps: up to 1.50 of the dense time."
    )
    assert "| 22.0 M | 4.00, 2.00 | 1.00, 1.00 | 0.55, 0.50 | 0.30, 0.25 |" in table(Options(), RESULTS)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "mim4d_resnet18"])
def test_each_pass_is_whole(name):
    passes = Passes(Options(images=2), name, (64, 100))
    assert passes.images.shape == (2, 3, 64, 96)  # whole patches
    assert [int(mask.sum()) for mask, _ in passes.masks] == [12, 6, 4]
    for run in passes.all():
        passes.model.zero_grad()
        run()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in passes.model.parameters())
    assert torch.get_num_threads() == 1


def test_the_page_keeps_all_but_the_section():
    assert replace_cost(f"a\n\n{COST}\n\nold\n\n{TRIED}\n\nb\n", "new") == f"a\n\n{COST}\n\nnew\n\n{TRIED}\n\nb\n"

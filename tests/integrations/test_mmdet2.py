"""``MIM4DEncoder`` in mmdet 2.x, that BEVFormer, StreamPETR, BEVDet, UniAD, VAD, MapTR and Sparse4D stand on.

mmdet 2 and 3 cannot be installed at once. Where mmcv 1.x and mmdet 2.x are, this runs with them; elsewhere with the
stand-in for them in ``mmdet2/``, in a process of its own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import timm

from mim4d.hub.folder import save_encoder
from tests.hub import calls as hub_calls

HERE = Path(__file__).parent
SCRIPT = """
import sys, types
import torch
import tests.integrations.conftest as conftest
sys.modules["mmcv._ext"] = conftest.NoOperators("mmcv._ext")
import mmcv, mmdet
from mmcv.utils import import_modules_from_strings
assert mmcv.__version__ < "2" and mmdet.__version__ < "3"

import_modules_from_strings(imports=["mim4d.integrations.openmmlab"])
from mmdet.models.builder import build_backbone
backbone = build_backbone(dict(type="MIM4DEncoder", arch="convnext_atto", out_indices=(2, 3), frozen_stages=1))
from mmcv.runner import BaseModule
assert isinstance(backbone, BaseModule) and not backbone.is_init
backbone.init_cfg = dict(type="Pretrained", checkpoint=sys.argv[1])
backbone.init_weights()
assert backbone.is_init
maps = backbone.train()(torch.ones(1, 3, 64, 64))
assert [tuple(m.shape) for m in maps] == [(1, 160, 4, 4), (1, 320, 2, 2)]
sum(m.sum() for m in maps).backward()
assert all((p.grad is None) == (not p.requires_grad) for p in backbone.parameters())
assert not backbone.stages[0].training and backbone.stages[1].training
print("weights", float(backbone.stages[3][1].gamma.detach().sum()))
"""


def test_an_old_codebase_builds_and_loads_it(tmp_path):
    encoder = hub_calls.shaken(timm.create_model("mim4d_convnext_atto"))
    save_encoder(encoder, tmp_path / "encoder")
    real = find_spec("mmcv") and find_spec("mmcv.runner")
    path = [str(HERE.parents[1]), *([] if real else [str(HERE / "mmdet2")])]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "encoder")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f"weights {float(encoder.stages[3].blocks[1].gamma.detach().sum())}" in done.stdout

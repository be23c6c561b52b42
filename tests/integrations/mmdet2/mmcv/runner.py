"""The base class of backbones, as mmcv 1.7's ``mmcv/runner/base_module.py`` has it; mmcv 2 has no such module."""

import copy

from torch import nn


class BaseModule(nn.Module):
    def __init__(self, init_cfg=None):
        super().__init__()
        self._is_init = False
        self.init_cfg = copy.deepcopy(init_cfg)

    @property
    def is_init(self):
        return self._is_init

    def init_weights(self):
        raise AssertionError("the backbone loads its weights itself")

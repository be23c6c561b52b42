"""OpenMMLab's packages without their compiled operators, and the Hub of tests/hub.

mmcv-lite is mmcv as it is on PyPI: the Python alone. mmdet's models import the operators' module, so one stands in for
it here whose operators raise when they are called; what these tests run calls none.
"""

import sys
import types

import pytest

from tests.hub.conftest import _online, cache, client, environment, hub, one_thread, server

__all__ = ["_online", "cache", "client", "environment", "hub", "one_thread", "server"]


class NoOperators(types.ModuleType):
    """``mmcv._ext`` by name only."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def operator(*args, **kwargs):
            raise NotImplementedError(f"mmcv-lite has no {name}")

        return operator


@pytest.fixture(scope="session")
def mmdet():
    """mmdet 3.x with all its models registered."""
    pytest.importorskip("mmdet", reason="mmdet is not installed: see tests/integrations/requirements.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mmcv._ext", NoOperators("mmcv._ext"))
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=True)

"""The registry, as mmcv 1.7's ``mmcv/utils/registry.py`` behaves."""

import importlib
import inspect


def import_modules_from_strings(imports):
    for name in [imports] if isinstance(imports, str) else imports:
        importlib.import_module(name)


class Registry:
    def __init__(self, name):
        self.name = name
        self.module_dict = {}

    def register_module(self, name=None, force=False, module=None):
        if not inspect.isclass(module) and not inspect.isfunction(module):
            raise TypeError(f"module must be a class or a function, but got {type(module)}")
        if not force and name in self.module_dict:
            raise KeyError(f"{name} is already registered in {self.name}")
        self.module_dict[name] = module

    def build(self, cfg):
        arguments = dict(cfg)
        return self.module_dict[arguments.pop("type")](**arguments)

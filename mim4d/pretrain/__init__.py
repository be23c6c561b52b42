"""Pretraining: :func:`train` runs :class:`mim4d.method.model.MIM4D` on clips and leaves an encoder.

``config`` and ``presets`` hold the settings, ``datasets`` opens the clips, ``trainer`` runs the steps, ``checkpoint``
saves and resumes, ``evaluate``, ``pictures``, ``logs`` and ``report`` show what has become of it. Needs
``pip install mim4d[pretrain]``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trainer import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # the trainer takes seconds to import, and --help does without it
        from .trainer import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

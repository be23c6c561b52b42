"""Run the command ``mim4d-hub`` as ``python -m mim4d.hub``."""

from ..commands import hub

hub()

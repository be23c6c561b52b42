"""Run the command ``mim4d-hub`` as ``python -m mim4d.hub``."""

from .cli import main

main()

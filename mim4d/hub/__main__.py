"""``python -m mim4d.hub`` is the command ``mim4d-hub``."""

from .cli import main

main()

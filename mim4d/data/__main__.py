"""``python -m mim4d.data`` is the command ``mim4d-data``."""

from ..commands import data

if __name__ == "__main__":
    data()

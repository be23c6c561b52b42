"""``python -m mim4d.pretrain``, which launchers can start: ``torchrun --nproc-per-node 8 -m mim4d.pretrain ...``."""

from ..commands import pretrain

if __name__ == "__main__":
    pretrain()

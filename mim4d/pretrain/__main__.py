"""``python -m mim4d.pretrain``, which launchers can start: ``torchrun --nproc-per-node 8 -m mim4d.pretrain ...``."""

from .cli import main

if __name__ == "__main__":
    main()

"""Fixtures of the trainer's tests, for what compares runs of it."""

from tests.pretrain.conftest import fresh_accelerate, root, run_cache

__all__ = ["fresh_accelerate", "root", "run_cache"]

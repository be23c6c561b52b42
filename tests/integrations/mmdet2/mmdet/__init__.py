"""As much of mmdet 2.28 as a registered backbone meets."""

__version__ = "2.28.2"

"""As much of mmcv 1.7 as a registered backbone meets, for machines with mmcv 2: both cannot be installed at once."""

__version__ = "1.7.2"

"""mmcv 2 has no such module."""

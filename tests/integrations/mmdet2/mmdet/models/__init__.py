"""As in mmdet 2."""

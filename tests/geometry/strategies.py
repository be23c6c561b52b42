"""Cameras, poses and points for property tests."""

import torch
from hypothesis import strategies as st


@st.composite
def seeds(draw):
    """A seeded generator: drawing one number instead of many keeps the search fast."""
    return torch.Generator().manual_seed(draw(st.integers(0, 2**32)))


@st.composite
def intrinsics(draw):
    """[3, 3] float32 of an image some hundreds of pixels wide."""
    fx, fy = draw(st.floats(100, 2000)), draw(st.floats(100, 2000))
    cx, cy, skew = draw(st.floats(0, 1600)), draw(st.floats(0, 900)), draw(st.floats(-5, 5))
    return torch.tensor([[fx, skew, cx], [0, fy, cy], [0, 0, 1]])


@st.composite
def quaternions(draw):
    """(w, x, y, z), not normalised and never near zero."""
    values = draw(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: sum(v * v for v in q) > 1e-2))
    return torch.tensor(values, dtype=torch.float64)

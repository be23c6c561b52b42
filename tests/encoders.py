"""What tests of encoders share: weights, images, masks, the pixels and sites under them, and how near is near."""

import torch
from hypothesis import strategies as st


def shake(model, seed=0):
    """Random values for all that a checkpoint holds, of the size that training gives them: as created, layer scale
    or the last norm of a block silences it, and every running mean is 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            values = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(values.abs() + 0.5)
            elif tensor.dim() > 1:
                tensor.copy_(values / tensor[0].numel() ** 0.5)
            elif tensor.is_floating_point():
                tensor.copy_(0.3 * values + name.endswith("weight"))
    return model


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_mask(*shape, seed=0):
    """About half of the patches."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def pixels(visible):
    """A patch mask [N, h, w] at the resolution of the image: [N, 1, H, W]."""
    return torch.kron(visible, torch.ones(1, 32, 32)).bool()[:, None]


def at_sites(visible, feature):
    """A patch mask [N, h, w] as [N, 1, H, W] of a feature map."""
    factor = feature.shape[-1] // visible.shape[-1]
    return torch.kron(visible, torch.ones(1, factor, factor)).bool()[:, None].expand_as(feature)


def masks(n, h, w):
    """Any pattern, image by image; all-visible, none-visible and one-visible images come up often."""
    one = st.integers(0, h * w - 1).map(lambda i: [k == i for k in range(h * w)])
    image = st.one_of(
        st.just([True] * (h * w)),
        st.just([False] * (h * w)),
        one,
        st.lists(st.booleans(), min_size=h * w, max_size=h * w),
    )
    return st.lists(image, min_size=n, max_size=n).map(lambda m: torch.tensor(m).view(n, h, w))


def gradient(leaf):
    """What backward left, zeros where it never came by."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def close(got, want, tolerance, what):
    """Nearer than ``tolerance`` of the largest value."""
    scale = max(1.0, float(want.detach().abs().max()))
    error = float((got.detach().double() - want.detach()).abs().max())
    assert error <= tolerance * scale, f"{what}: off by {error:.2g} at a scale of {scale:.2g}"

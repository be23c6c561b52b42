"""Masked execution of any convolutional network, such that hidden sites have no influence on visible ones.

The semantics are those of submanifold convolution (SparK, arXiv 2301.03580, section 3.1): hidden sites are zero for
every convolution; norms, pooling and pooled gates (such as squeeze-and-excitation) use visible sites alone. The model
is not modified: a torch function mode intercepts every function that it calls.

Hidden sites are set to zero only for functions that mix sites, because masking takes time and memory. For others they
hold finite values, which no visible site sees and which get no gradient.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten


class NoMaskedForwardError(ValueError):
    """Raised for a model with an operation that may let hidden sites influence visible ones."""


_POINTWISE = re.compile(
    r"(__[ir]?(add|sub|mul|(true)?div)__|__r?pow__|__neg__|neg|abs|pow|square|sqrt|rsqrt|reciprocal|exp|log|true_divide"
    r"|(add|sub|mul|div|clamp|relu|silu|sigmoid|tanh|hardtanh|hardswish|hardsigmoid|leaky_relu|elu|mish|dropout)_?"
    r"|clamp_min|clamp_max|minimum|maximum|addcmul|addcdiv|lerp|relu6|gelu|celu|selu|softplus|logsigmoid|threshold|prelu"
    r"|dropout2d|feature_dropout|alpha_dropout|contiguous|clone|to|float|half|bfloat16|double|type|type_as|detach)"
)
"""Names of functions whose result at a site depends only on that site."""
_DIVISION = re.compile(r"__i?(true)?div__|true_divide|div_?")
"""Those of them that may be infinite or NaN, or have such a gradient, if a divisor is 0."""
_MAY_BE_INFINITE = re.compile(r"__r(true)?div__|__r?pow__|pow|sqrt|rsqrt|reciprocal|exp|log|addcdiv")
"""Those of them that may be infinite or NaN, or have such a gradient, for any of their operands."""
_NO_VALUES = re.compile(
    r"size|dim|ndimension|numel|nelement|stride|element_size|get_device|is_\w+|new_(empty|zeros|ones)"
    r"|(rand|empty|zeros|ones)_like|requires_grad_|__len__|__hash__|__format__|__repr__"
)
"""Names of functions that read no values of their arguments."""
_ATTRIBUTES = re.compile(r"shape|device|dtype|ndim|requires_grad|layout|is_\w+")
"""Names of tensor attributes that do not depend on values."""


class HiddenSites(TorchFunctionMode):
    """Context in which the hidden sites of maps have no influence on other sites.

    A map is a tensor with an attribute ``_sites``: its mask, which broadcasts to it, and the two dimensions that are
    its rows and columns. Its values at hidden sites are finite; :meth:`zeroed` sets them to zero. Functions of other
    tensors (weights, pooled values) run as usual. A function of a map that is not implemented here raises
    :class:`NoMaskedForwardError`.

    Args:
        visible: [N, H/patch, W/patch] bool, True where a patch is visible.
        norm_group: Number of consecutive images that share the statistics of a BatchNorm in training mode.
    """

    def __init__(self, visible: Tensor, norm_group: int) -> None:
        super().__init__()
        self.visible, self.norm_group = visible, norm_group
        self._sites: dict[tuple[int, int], Tensor] = {}

    def spatial(self, x: Any) -> tuple[int, int] | None:
        """Return the dimensions of a map's rows and columns; None if x is not a map."""
        sites = getattr(x, "_sites", None)
        return sites[1] if sites is not None else None

    def mask(self, x: Any) -> Tensor:
        """Return the mask of a map: bool, with as many dimensions, of size 1 except for images, rows and columns."""
        return x._sites[0]

    def mark(self, x: Tensor, spatial: tuple[int, int]) -> Tensor:
        """Make a tensor a map.

        Args:
            x: Tensor whose first dimension is N.
            spatial: Its dimensions that are rows and columns.

        Raises:
            NoMaskedForwardError: If a patch does not hold a whole number of sites.
        """
        size = x.shape[spatial[0]], x.shape[spatial[1]]
        if size not in self._sites:
            n, rows, columns = self.visible.shape
            sides = size[0] / rows, size[1] / columns
            if sides[0] != sides[1] or not sides[0].is_integer() or len(x) != n:
                raise NoMaskedForwardError(f"a map of {size[0]} x {size[1]} sites for {rows} x {columns} patches")
            k = int(sides[0])
            self._sites[size] = self.visible.repeat_interleave(k, 1).repeat_interleave(k, 2)  # [N, h, w]
        return self.tag(x, self._reshape_mask(x, self._sites[size], spatial), spatial)

    def tag(self, x: Any, mask: Tensor, spatial: tuple[int, int]) -> Tensor:
        """Make a tensor a map with a given mask."""
        x._sites = (mask, spatial)
        return x

    def zeroed(self, x: Any) -> Tensor:
        """Return a map with zeros at its hidden sites, which gets no gradient there."""
        return x * self.mask(x)  # on a CPU, forward and backward, several times as fast as where and masked_fill

    def filled(self, x: Any, value: float = 0.0) -> Any:
        """Return a map with a value at its hidden sites, also if they are infinite or NaN."""
        return self.tag(torch.where(self.mask(x), x, value), self.mask(x), x._sites[1])

    @staticmethod
    def _reshape_mask(x: Tensor, mask: Tensor, spatial: tuple[int, int]) -> Tensor:
        """Reshape a mask of N h w values such that it broadcasts to a map."""
        shape = [1] * x.ndim
        shape[0], shape[spatial[0]], shape[spatial[1]] = len(x), x.shape[spatial[0]], x.shape[spatial[1]]
        return mask.reshape(shape)

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function of torch that the model calls; torch calls this."""
        kwargs = kwargs or {}
        maps = [x for x in tree_flatten((args, kwargs))[0] if self.spatial(x)]
        if not maps:
            # The model's images are a map. If a convolution of N images is not given a map, then some function before
            # it was not intercepted.
            if func is torch.conv2d and len(args[0]) == len(self.visible) and args[0].shape[-2:].numel() > 1:
                raise NoMaskedForwardError(UNSEEN)
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if handler := _KNOWN.get(func) or _BY_NAME.get(name):
            try:
                return handler(self, func, *args, **kwargs)
            except (TypeError, AttributeError) as error:  # called with arguments that the handler does not have
                raise NoMaskedForwardError(f"{name}: {error}") from error
        if name == "__get__":
            attribute = func.__self__.__name__  # type: ignore[attr-defined]
            if _ATTRIBUTES.fullmatch(attribute):
                return func(*args, **kwargs)
            name = attribute
        if _NO_VALUES.fullmatch(name):
            return func(*args, **kwargs)
        if _POINTWISE.fullmatch(name):
            return self._pointwise(func, name, maps, args, kwargs)
        raise NoMaskedForwardError(name)

    def _pointwise(self, func: Callable[..., Any], name: str, maps: list[Tensor], args: Any, kwargs: Any) -> Tensor:
        """Run a function of single sites on maps and on tensors that broadcast to them."""
        if _MAY_BE_INFINITE.fullmatch(name):
            args = [self.filled(x, 1.0) if self.spatial(x) else x for x in args]
        elif _DIVISION.fullmatch(name):
            args = [args[0], *(self.filled(x, 1.0) if self.spatial(x) else x for x in args[1:])]
        y = func(*args, **kwargs)
        x = max(maps, key=lambda map: map.ndim)
        mask, spatial = self.mask(x), self.spatial(x)
        assert spatial is not None
        operands = [other for other in tree_flatten((args, kwargs))[0] if isinstance(other, (Tensor, int, float))]
        for other in operands:
            if not isinstance(other, Tensor):
                continue
            size = self._size(other, x, spatial)
            if self.spatial(other):
                if size != self._size(x, x, spatial) or self.mask(other).numel() != mask.numel():
                    raise NoMaskedForwardError(f"{name} of maps of {list(x.shape)} and {list(other.shape)}")
            # A tensor with rows and columns that depends on parameters, but is neither a map nor a pooled value.
            elif size and max(size) > 1 and other.requires_grad and not hasattr(other, "_pooled"):
                raise NoMaskedForwardError(UNSEEN)
        if y.ndim != x.ndim or any(y.shape[d] != x.shape[d] for d in (0, *spatial)):
            raise NoMaskedForwardError(f"{name} that makes {list(y.shape)} of a map of {list(x.shape)}")
        return self.tag(y, mask, spatial)

    @staticmethod
    def _size(other: Tensor, x: Tensor, spatial: tuple[int, int]) -> tuple[int, ...]:
        """Return the numbers of rows and columns of an operand beside map x, as far as it has these dimensions."""
        return tuple(other.shape[d - x.ndim] for d in spatial if x.ndim - d <= other.ndim)


UNSEEN = "an operation that torch's function modes do not see, such as an autograd function of the model's own"
"""Message for a result that should be a map and is none."""


def _convolve(sites: HiddenSites, func: Any, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if x.ndim != 4 or sites.spatial(x) != (2, 3):
        raise NoMaskedForwardError("a convolution of maps with channels last")
    if weight.shape[2:].numel() > 1:
        x = sites.zeroed(x)
    return sites.mark(func(x, weight, *args, **kwargs), (2, 3))


def _linear(sites: HiddenSites, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    spatial = sites.spatial(x)
    if spatial is None or x.ndim - 1 in spatial:
        raise NoMaskedForwardError("linear over rows or columns")
    return sites.tag(func(x, *args, **kwargs), sites.mask(x), spatial)


def _layer_norm(sites: HiddenSites, func: Any, x: Tensor, normalized_shape: Any, *args: Any, **kwargs: Any) -> Tensor:
    spatial = sites.spatial(x)
    if spatial is None or any(d >= x.ndim - len(normalized_shape) for d in spatial):
        raise NoMaskedForwardError("layer_norm over rows and columns")
    return sites.tag(func(x, normalized_shape, *args, **kwargs), sites.mask(x), spatial)


def _permute(sites: HiddenSites, func: Any, x: Tensor, *dims: Any, **kwargs: Any) -> Tensor:
    order = kwargs.get("dims", dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)
    order = [d % x.ndim for d in order]
    spatial = sites.spatial(x)
    assert spatial is not None
    if order[0] != 0:
        raise NoMaskedForwardError("permute of the images")
    return sites.tag(func(x, *dims, **kwargs), sites.mask(x).permute(order), tuple(order.index(d) for d in spatial))  # type: ignore[arg-type]


def _transpose(sites: HiddenSites, func: Any, x: Tensor, dim0: int, dim1: int) -> Tensor:
    order = list(range(x.ndim))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permute(sites, lambda y, _: func(y, dim0, dim1), x, order)


def _reshape(sites: HiddenSites, func: Any, x: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
    """Reshape the channels of a map; images, rows and columns must stay."""
    y = func(x, *shape, **kwargs)
    spatial = sites.spatial(x)
    last = (y.ndim - 2, y.ndim - 1)
    if spatial != (x.ndim - 2, x.ndim - 1) or y.ndim < 3 or y.shape[-2:] != x.shape[-2:] or len(y) != len(x):
        raise NoMaskedForwardError(f"{func.__name__} of a map of {list(x.shape)} to {list(y.shape)}")
    return sites.tag(y, sites._reshape_mask(y, sites.mask(x), last), last)


def _getitem(sites: HiddenSites, func: Any, x: Tensor, index: Any) -> Tensor:
    y = func(x, index)
    parts = index if isinstance(index, tuple) else (index,)
    spatial = sites.spatial(x)
    whole = all(isinstance(part, slice) or part is Ellipsis for part in parts) and y.ndim == x.ndim
    if spatial is None or not whole or any(y.shape[d] != x.shape[d] for d in (0, *spatial)):
        raise NoMaskedForwardError(f"indexing that makes {list(y.shape)} of a map of {list(x.shape)}")
    return sites.tag(y, sites.mask(x), spatial)


def _split(sites: HiddenSites, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    parts = func(x, *args, **kwargs)
    spatial = sites.spatial(x)
    assert spatial is not None
    for part in parts:
        if part.ndim != x.ndim or any(part.shape[d] != x.shape[d] for d in (0, *spatial)):
            raise NoMaskedForwardError(f"{func.__name__} of rows or columns")
        sites.tag(part, sites.mask(x), spatial)
    return parts


def _cat(sites: HiddenSites, func: Any, tensors: Any, dim: int = 0, **kwargs: Any) -> Tensor:
    x = tensors[0]
    dim = kwargs.pop("axis", dim) % x.ndim
    if any(sites.spatial(t) != sites.spatial(x) for t in tensors) or sites.spatial(x) is None:
        raise NoMaskedForwardError("cat of maps with other tensors")
    if dim == 0 or dim in sites.spatial(x):  # type: ignore[operator]
        raise NoMaskedForwardError("cat of images, rows or columns")
    return sites.tag(func(tensors, dim, **kwargs), sites.mask(x), sites.spatial(x))  # type: ignore[arg-type]


def _stack(sites: HiddenSites, func: Any, tensors: Any, dim: int = 0) -> Tensor:
    return _cat(sites, lambda parts, d: func(tensors, dim), [_unsqueezed(sites, t, dim) for t in tensors], dim)


def _unsqueezed(sites: HiddenSites, x: Tensor, dim: int) -> Tensor:
    if sites.spatial(x) is None:
        raise NoMaskedForwardError("stack of maps with other tensors")
    dim %= x.ndim + 1
    if dim == 0:
        raise NoMaskedForwardError("stack of images")
    mask, spatial = sites.mask(x).unsqueeze(dim), tuple(d + (d >= dim) for d in sites.spatial(x))  # type: ignore[union-attr]
    return sites.tag(x.unsqueeze(dim), mask, spatial)  # type: ignore[arg-type]


def _unsqueeze(sites: HiddenSites, func: Any, x: Tensor, dim: int) -> Tensor:
    return _unsqueezed(sites, x, dim)


def _dims(x: Tensor, dim: Any) -> list[int]:
    if dim is None:
        return list(range(x.ndim))
    return [d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)]


def _reduce(sites: HiddenSites, func: Any, x: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
    """Compute a mean, sum or maximum over channels, which gives a map, or over the visible sites."""
    dims, spatial, name = _dims(x, dim), sites.spatial(x), func.__name__
    assert spatial is not None
    over = [d for d in spatial if d in dims]
    if 0 in dims or len(over) == 1:
        raise NoMaskedForwardError(f"{name} over images, or over rows or columns alone")
    mask = sites.mask(x)
    if not over:
        y = func(x, dims, keepdim, **kwargs)
        shift = 0 if keepdim else 1
        rows, columns = (d - shift * sum(r < d for r in dims) for d in spatial)
        mask = sites._reshape_mask(y, mask, (rows, columns))
        return sites.tag(y, mask, (rows, columns))
    if name in ("amax", "max"):
        return func(sites.filled(x, -math.inf), dims, keepdim, **kwargs)
    y = func(sites.zeroed(x), dims, keepdim, **kwargs)
    if name == "mean":
        visible = mask.sum(spatial, keepdim=True)  # sites per image
        y = y * (x.shape[spatial[0]] * x.shape[spatial[1]] / (visible if keepdim else _without_dims(visible, dims)))
    return y


def _without_dims(x: Tensor, dims: list[int]) -> Tensor:
    return x.reshape([size for d, size in enumerate(x.shape) if d not in dims])


def _norm(
    sites: HiddenSites, func: Any, x: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    """Compute a p-norm over rows and columns, to which hidden sites do not contribute."""
    dims, spatial = _dims(x, dim), sites.spatial(x)
    assert spatial is not None
    if 0 in dims or not set(spatial) <= set(dims):
        raise NoMaskedForwardError("norm over images, channels, or rows or columns alone")
    return func(sites.zeroed(x), p, dims, keepdim, dtype=dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _batch_norm(
    sites: HiddenSites,
    func: Any,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise with the statistics of visible sites, in training separately for each group of images.

    The running statistics move towards the mean of the groups' means and unbiased variances.
    """
    if sites.spatial(x) != (2, 3) or x.ndim != 4:
        raise NoMaskedForwardError("batch_norm of maps with channels last")
    if not training:
        return sites.mark(func(x, running_mean, running_var, weight, bias, False, momentum, eps), (2, 3))
    mask = sites.mask(x)  # [N, 1, h, w]
    groups = len(x) // sites.norm_group
    grouped = _at_least_float32(sites.zeroed(x)).unflatten(0, (groups, -1))  # [groups, N/groups, C, h, w]
    visible = mask.unflatten(0, (groups, -1))  # [groups, N/groups, 1, h, w]
    count = visible.sum((1, 3, 4), keepdim=True)  # [groups, 1, 1, 1, 1]
    mean = grouped.sum((1, 3, 4), keepdim=True) / count  # [groups, 1, C, 1, 1]
    deviation = (grouped - mean) * visible
    variance = deviation.square().sum((1, 3, 4), keepdim=True) / count
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight[:, None, None]
    y = (deviation * scale if bias is None else torch.addcmul(bias[:, None, None], deviation, scale)).flatten(0, 1)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            rate = momentum * (count > 1).all()  # a single site has no variance to learn from
            running_mean.lerp_(mean.mean(0).flatten().to(running_mean.dtype), rate.to(running_mean.dtype))
            running_var.lerp_(unbiased.mean(0).flatten().to(running_var.dtype), rate.to(running_var.dtype))
    return sites.mark(y.to(x.dtype), (2, 3))


def _group_norm(
    sites: HiddenSites,
    func: Any,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if sites.spatial(x) != (2, 3) or x.ndim != 4:
        raise NoMaskedForwardError("group_norm of maps with channels last")
    mask = sites.mask(x)[:, None]  # [N, 1, 1, h, w]
    grouped = _at_least_float32(sites.zeroed(x)).unflatten(1, (num_groups, -1))  # [N, groups, C/groups, h, w]
    count = mask.sum((2, 3, 4), keepdim=True) * grouped.shape[2]
    mean = grouped.sum((2, 3, 4), keepdim=True) / count  # [N, groups, 1, 1, 1]
    deviation = (grouped - mean) * mask
    variance = deviation.square().sum((2, 3, 4), keepdim=True) / count
    y = (deviation * (variance + eps).rsqrt()).flatten(1, 2)  # [N, C, h, w]
    if weight is not None:
        y = y * weight[:, None, None]
    if bias is not None:
        y = y + bias[:, None, None]
    return sites.mark(y.to(x.dtype), (2, 3))


def _max_pool(sites: HiddenSites, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if sites.spatial(x) != (x.ndim - 2, x.ndim - 1):
        raise NoMaskedForwardError("max_pool2d of maps with channels last")
    y = func(sites.filled(x, -math.inf), *args, **kwargs)
    return sites.filled(sites.mark(y, (x.ndim - 2, x.ndim - 1)))  # not -inf where a whole window is hidden


def _avg_pool(sites: HiddenSites, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Compute the mean of the visible sites of each window."""
    if sites.spatial(x) != (2, 3) or x.ndim != 4:
        raise NoMaskedForwardError("avg_pool2d of maps with channels last")
    mask = sites.mask(x).to(x.dtype)
    # Pooled ones are the fraction of a window within the map (1, if padding is not counted), and the pooled mask is its
    # visible fraction. If all sites are visible the two are equal, and the result is that of the dense model.
    whole, visible = func(torch.ones_like(mask), *args, **kwargs), func(mask, *args, **kwargs)
    scale = torch.where(visible > 0, whole / visible.clamp(min=1e-6), 0.0)
    return sites.mark(func(sites.zeroed(x), *args, **kwargs) * scale, (2, 3))


def _adaptive_pool(sites: HiddenSites, func: Any, x: Tensor, output_size: Any, *args: Any, **kwargs: Any) -> Tensor:
    if output_size not in (1, (1, 1), [1, 1]) or sites.spatial(x) != (2, 3):
        raise NoMaskedForwardError(f"{func.__name__} to {output_size}")
    if func in (F.adaptive_avg_pool2d, torch.nn.functional.adaptive_avg_pool2d):
        return _reduce(sites, torch.mean, x, (2, 3), True)
    return _reduce(sites, torch.amax, x, (2, 3), True)


def _pad(sites: HiddenSites, func: Any, x: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Tensor:
    """Pad rows and columns; constant padding counts as visible, because the dense model uses it, too."""
    spatial = sites.spatial(x)
    if spatial != (x.ndim - 2, x.ndim - 1) or len(pad) > 4:
        raise NoMaskedForwardError("pad of channels, or of maps with channels last")
    y = func(x, pad, mode, value)
    mask = sites.mask(x)
    if mode == "constant":
        padded = func(mask.to(x.dtype), pad, mode, 1.0) > 0.5
    else:
        padded = func(mask.to(x.dtype), pad, mode) > 0.5
    return sites.tag(y, padded, spatial)


def _interpolate(
    sites: HiddenSites,
    func: Any,
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    **kwargs: Any,
) -> Tensor:
    y = func(x, size, scale_factor, mode, **kwargs)
    if mode != "nearest" or sites.spatial(x) != (2, 3) or y.shape[2] % x.shape[2] or y.shape[3] % x.shape[3]:
        raise NoMaskedForwardError(f"interpolate with mode {mode}")
    return sites.mark(y, (2, 3))


def _expand_as(sites: HiddenSites, func: Any, x: Tensor, other: Tensor) -> Tensor:
    """Repeat a pooled value at every site; the result is not a map, but may be combined with one."""
    if sites.spatial(x) is not None:
        raise NoMaskedForwardError("expand_as of a map")
    y = func(x, other)
    y._pooled = True
    return y


_KNOWN: dict[Any, Callable[..., Any]] = {
    torch.conv2d: _convolve,
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    F.avg_pool2d: _avg_pool,
    F.adaptive_avg_pool2d: _adaptive_pool,
    F.adaptive_max_pool2d: _adaptive_pool,
    F.pad: _pad,
    F.interpolate: _interpolate,
    Tensor.norm: _norm,
    torch.norm: _norm,
    Tensor.__getitem__: _getitem,
}
_BY_NAME: dict[str, Callable[..., Any]] = {
    "permute": _permute,
    "transpose": _transpose,
    "view": _reshape,
    "reshape": _reshape,
    "unflatten": _reshape,
    "flatten": _reshape,
    "split": _split,
    "chunk": _split,
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    "unsqueeze": _unsqueeze,
    "expand_as": _expand_as,
    "mean": _reduce,
    "sum": _reduce,
    "amax": _reduce,
}

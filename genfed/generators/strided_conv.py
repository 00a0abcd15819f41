"""Convolutions with 4×4 kernels and stride 2 that halve a map, and their transposes that double it, fast on small maps.

On a map of 4×4 or 2×2 many of the sixteen taps meet only padding (7 or 12 of 16 per pixel), but a convolution on a CPU
computes them too. Here a small map takes one matrix product per tap, over the pixels where the tap meets the map;
larger maps and other devices use torch. Only taps that meet the map anywhere are parameters: a side of 2 has two of
four. Training is the same as with all four, since the others would never have a gradient.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

SMALL, MANY = 8, 256
"""The products per tap are faster up to this side of the wide map and from this number of outer channels (measured on
one thread)."""

FEW = 4
"""One product over all windows is faster up to this number of inner channels (those of an image and its label)."""

# torch multiplies float32 matrices with MKL, which runs at half speed on processors that are not Intel's. oneDNN, which
# torch.compile uses, does not. `_multiply` works without it too.
ONEDNN: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
if ONEDNN is not None:

    @register_flop_formula(ONEDNN)
    def _count_flops(a: list[int], b: list[int], *rest: object, **more: object) -> int:
        """Returns the FLOPs of a bᵀ from the shapes of a and b, for torch's FLOP counter."""
        return 2 * a[0] * a[1] * b[0]


class StridedConv4(nn.Module):
    """A convolution with kernel 4, stride 2, padding 1 and no bias: [n, inner, H, W] → [n, outer, H/2, W/2].

    Args:
        inner: The channels of the wide map.
        outer: The channels of the narrow map.
        wide: The height and width of the wide map, both even.
    """

    transposed = False
    _convolve: ClassVar[Callable[..., Tensor]] = staticmethod(F.conv2d)

    def __init__(self, inner: int, outer: int, wide: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (min(side, 4) for side in wide)
        self.padding = (rows // 2 - 1, columns // 2 - 1)
        self.small, self.few = max(wide) <= SMALL and outer >= MANY, inner <= FEW
        bound = (16 * inner) ** -0.5  # torch's bound for the 4×4 kernel, so that training is the same
        self.weight = nn.Parameter(torch.empty(rows, columns, inner, outer).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and self.small:
            return _multiply_taps(x, self.weight, self.transposed)
        if x.device.type == "cpu" and self.few:
            return self._convolve_windows(x)
        return self._convolve(x, self.weight.permute(3, 2, 0, 1), stride=2, padding=self.padding)

    def example_gradients(self, x: Tensor, gradient: Tensor) -> dict[nn.Parameter, Tensor]:
        """Returns each example's gradient [n, *weight's shape] from the layer's input and its output's gradient, for
        DP-SGD.
        """
        wide, narrow = (gradient, x) if self.transposed else (x, gradient)
        rows, columns, inner, outer = self.weight.shape
        windows = F.unfold(wide, (rows, columns), padding=self.padding, stride=2)
        gradients = torch.einsum("nkl,nol->nko", windows, narrow.flatten(2))
        return {self.weight: gradients.view(len(x), inner, rows, columns, outer).permute(0, 2, 3, 1, 4)}

    def _convolve_windows(self, x: Tensor) -> Tensor:
        """Convolves by one matrix product; a row is one window [inner · taps]."""
        rows = F.unfold(x, self.weight.shape[:2], padding=self.padding, stride=2).transpose(1, 2)
        y = rows @ self.weight.permute(2, 0, 1, 3).flatten(0, 2)
        return y.view(len(x), x.shape[2] // 2, x.shape[3] // 2, self.weight.shape[3]).permute(0, 3, 1, 2)


class TransposedConv4(StridedConv4):
    """The transpose of `StridedConv4` with the same weight: [n, outer, H/2, W/2] → [n, inner, H, W]."""

    transposed = True
    _convolve = staticmethod(F.conv_transpose2d)

    def _convolve_windows(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows = x.permute(0, 2, 3, 1).flatten(1, 2) @ self.weight.permute(2, 0, 1, 3).flatten(0, 2).t()
        size = (2 * height, 2 * width)
        return F.fold(rows.transpose(1, 2), size, self.weight.shape[:2], padding=self.padding, stride=2)


def _multiply_taps(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
    y: Tensor = _TapProducts.apply(x.permute(0, 2, 3, 1), weight, transposed)  # type: ignore[no-untyped-call]
    return y.permute(0, 3, 1, 2)


class _TapProducts(torch.autograd.Function):
    """`_halve` or `_double` with channels last; the gradient of one is the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.transposed = transposed
        return _double(x, weight) if transposed else _halve(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (x, weight), (grad,) = ctx.saved_tensors, grads
        if ctx.transposed:
            return _halve(grad, weight), _weight_gradient(grad, x, weight), None
        return _double(grad, weight), _weight_gradient(x, grad, weight), None


def _halve(wide: Tensor, weight: Tensor) -> Tensor:
    n, height, width, _ = wide.shape
    narrow = wide.new_zeros(n, height // 2, width // 2, weight.shape[3])
    for wide_pixels, narrow_pixels, tap in _iterate_taps(wide, narrow, weight):
        narrow_pixels += _multiply(_flatten_pixels(wide_pixels), tap.t()).view(narrow_pixels.shape)
    return narrow


def _double(narrow: Tensor, weight: Tensor) -> Tensor:
    n, height, width, _ = narrow.shape
    wide = narrow.new_zeros(n, 2 * height, 2 * width, weight.shape[2])
    for wide_pixels, narrow_pixels, tap in _iterate_taps(wide, narrow, weight):
        wide_pixels += _multiply(_flatten_pixels(narrow_pixels), tap).view(wide_pixels.shape)
    return wide


def _weight_gradient(wide: Tensor, narrow: Tensor, weight: Tensor) -> Tensor:
    grad = torch.empty_like(weight)
    for wide_pixels, narrow_pixels, tap in _iterate_taps(wide, narrow, grad):
        tap.copy_(_multiply(_flatten_pixels(wide_pixels).t(), _flatten_pixels(narrow_pixels).t()))
    return grad


def _iterate_taps(wide: Tensor, narrow: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields for each tap the wide pixels [n, h, w, inner] and narrow pixels [n, h, w, outer] that it connects, and its
    weights [inner, outer]; all are views.
    """
    for row, (above, at_rows) in enumerate(_iterate_lines(weight.shape[0], narrow.shape[1])):
        for column, (left, at_columns) in enumerate(_iterate_lines(weight.shape[1], narrow.shape[2])):
            yield wide[:, above, left], narrow[:, at_rows, at_columns], weight[row, column]


def _iterate_lines(taps: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yields for each tap along one side its lines of the wide map and of the narrow map, whose length is `size`."""
    for offset in range(1 - taps // 2, 1 + taps // 2):  # −1…2, or 0 and 1
        first, last = int(offset < 0), size - int(offset > 1)
        yield slice(2 * first + offset, 2 * last + offset - 1, 2), slice(first, last)


def _flatten_pixels(pixels: Tensor) -> Tensor:
    """Reshapes [n, h, w, channels] to a contiguous [n·h·w, channels]: oneDNN is very slow on rows with gaps."""
    return pixels.flatten(0, 2).contiguous()


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """Multiplies a [m, k] by bᵀ, b being [n, k]; with oneDNN where torch has it."""
    if ONEDNN is not None and a.dtype == torch.float32:
        product: Tensor = ONEDNN(a, b, None, "none", [], "")
        return product
    return F.linear(a, b)

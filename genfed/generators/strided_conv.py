"""The 4×4 kernels of stride 2 that halve a map, and their transposes that double it, fast on small maps.

On a map of 4×4 or 2×2 many of the sixteen taps meet padding alone (7 or 12 of 16 per pixel), and a convolution on a
CPU computes them all the same. Here such a map is one matrix product per tap, over the pixels where the tap is alive;
larger maps, and other devices, go to torch. Only taps that live anywhere are parameters: a side of 2 has two of the
four, and the training is that of all four, for the others would never see a gradient.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

SMALL, MANY = 8, 256
"""Up to this side of the wide map, and from this number of outer channels, the products are faster (measured on one
thread)."""

FEW = 4
"""Up to this number of inner channels (those of an image and its label) one product over windows is faster."""

# torch multiplies float32 matrices with MKL, which keeps processors not by Intel at half their speed. oneDNN, which
# torch.compile takes, does not; a torch without it falls back.
ONEDNN: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
if ONEDNN is not None:

    @register_flop_formula(ONEDNN)
    def _flops(a: list[int], b: list[int], *rest: object, **more: object) -> int:
        """Of a bᵀ, for whoever counts; it is given shapes."""
        return 2 * a[0] * a[1] * b[0]


class StridedConv4(nn.Module):
    """[n, inner, H, W] → [n, outer, H/2, W/2]: a convolution with kernel 4, stride 2, padding 1 and no bias."""

    transposed = False
    _convolution: ClassVar[Callable[..., Tensor]] = staticmethod(F.conv2d)

    def __init__(self, inner: int, outer: int, wide: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (min(side, 4) for side in wide)
        self.padding = (rows // 2 - 1, columns // 2 - 1)
        self.small, self.few = max(wide) <= SMALL and outer >= MANY, inner <= FEW
        bound = (16 * inner) ** -0.5  # torch's for the whole kernel, so that training is that of the whole kernel
        self.weight = nn.Parameter(torch.empty(rows, columns, inner, outer).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and self.small:
            return _products(x, self.weight, self.transposed)
        if x.device.type == "cpu" and self.few:
            return self._columns(x)
        return self._convolution(x, self.weight.permute(3, 2, 0, 1), stride=2, padding=self.padding)

    def example_gradients(self, x: Tensor, gradient: Tensor) -> dict[nn.Parameter, Tensor]:
        """Of every example, [n, *weight's shape], from what came in and the gradient of what went out; for DP-SGD."""
        wide, narrow = (gradient, x) if self.transposed else (x, gradient)
        rows, columns, inner, outer = self.weight.shape
        windows = F.unfold(wide, (rows, columns), padding=self.padding, stride=2)
        found = torch.einsum("nkl,nol->nko", windows, narrow.flatten(2))
        return {self.weight: found.view(len(x), inner, rows, columns, outer).permute(0, 2, 3, 1, 4)}

    def _columns(self, x: Tensor) -> Tensor:
        """One product, of every window laid out as a row [inner · taps]."""
        rows = F.unfold(x, self.weight.shape[:2], padding=self.padding, stride=2).transpose(1, 2)
        y = rows @ self.weight.permute(2, 0, 1, 3).flatten(0, 2)
        return y.view(len(x), x.shape[2] // 2, x.shape[3] // 2, self.weight.shape[3]).permute(0, 3, 1, 2)


class TransposedConv4(StridedConv4):
    """[n, outer, H/2, W/2] → [n, inner, H, W]: the transpose of `StridedConv4` with the same weight."""

    transposed = True
    _convolution = staticmethod(F.conv_transpose2d)

    def _columns(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows = x.permute(0, 2, 3, 1).flatten(1, 2) @ self.weight.permute(2, 0, 1, 3).flatten(0, 2).t()
        size = (2 * height, 2 * width)
        return F.fold(rows.transpose(1, 2), size, self.weight.shape[:2], padding=self.padding, stride=2)


def _products(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
    y: Tensor = _Products.apply(x.permute(0, 2, 3, 1), weight, transposed)  # type: ignore[no-untyped-call]
    return y.permute(0, 3, 1, 2)


class _Products(torch.autograd.Function):
    """`_halve` or `_double`, channels last; each is the other's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.transposed = transposed
        return _double(x, weight) if transposed else _halve(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (x, weight), (grad,) = ctx.saved_tensors, grads
        if ctx.transposed:
            return _halve(grad, weight), _gradient(grad, x, weight), None
        return _double(grad, weight), _gradient(x, grad, weight), None


def _halve(wide: Tensor, weight: Tensor) -> Tensor:
    n, height, width, _ = wide.shape
    narrow = wide.new_zeros(n, height // 2, width // 2, weight.shape[3])
    for pixels, under, tap in _taps(wide, narrow, weight):
        under += _product(_rows(pixels), tap.t()).view(under.shape)
    return narrow


def _double(narrow: Tensor, weight: Tensor) -> Tensor:
    n, height, width, _ = narrow.shape
    wide = narrow.new_zeros(n, 2 * height, 2 * width, weight.shape[2])
    for pixels, under, tap in _taps(wide, narrow, weight):
        pixels += _product(_rows(under), tap).view(pixels.shape)
    return wide


def _gradient(wide: Tensor, narrow: Tensor, weight: Tensor) -> Tensor:
    grad = torch.empty_like(weight)
    for pixels, under, tap in _taps(wide, narrow, grad):
        tap.copy_(_product(_rows(pixels).t(), _rows(under).t()))
    return grad


def _taps(wide: Tensor, narrow: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Per tap: the wide pixels [n, h, w, inner] and the narrow ones [n, h, w, outer] that it joins, and its weights
    [inner, outer]; all views.
    """
    for row, (above, at_rows) in enumerate(_lines(weight.shape[0], narrow.shape[1])):
        for column, (left, at_columns) in enumerate(_lines(weight.shape[1], narrow.shape[2])):
            yield wide[:, above, left], narrow[:, at_rows, at_columns], weight[row, column]


def _lines(taps: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Per tap along one side: the lines of the wide map that it meets, and those of the narrow one, `size` long."""
    for offset in range(1 - taps // 2, 1 + taps // 2):  # −1…2, or 0 and 1
        first, last = int(offset < 0), size - int(offset > 1)
        yield slice(2 * first + offset, 2 * last + offset - 1, 2), slice(first, last)


def _rows(pixels: Tensor) -> Tensor:
    """[n, h, w, channels] → [n·h·w, channels], in one piece: oneDNN is very slow where rows lie apart."""
    return pixels.flatten(0, 2).contiguous()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Their product a bᵀ, of a [m, k] and b [n, k]."""
    if ONEDNN is not None and a.dtype == torch.float32:
        product: Tensor = ONEDNN(a, b, None, "none", [], "")
        return product
    return F.linear(a, b)

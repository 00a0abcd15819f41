import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genfed.generators import strided_conv
from genfed.generators.strided_conv import StridedConv4, TransposedConv4


def whole(layer: StridedConv4) -> Tensor:
    """Returns the layer's weights as torch's [outer, inner, 4, 4]; taps that the layer lacks are 0."""
    weight = layer.weight.detach().permute(3, 2, 0, 1)
    rows, columns = ((4 - side) // 2 for side in weight.shape[2:])
    return F.pad(weight, (columns, columns, rows, rows)).requires_grad_()


sides = st.integers(1, 6).map(lambda half: 2 * half)


@given(
    kind=st.sampled_from([StridedConv4, TransposedConv4]),
    outer=st.sampled_from([5, strided_conv.MANY]),
    height=sides,
    width=sides,
    n=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_it_is_the_4x4_kernel(kind: type[StridedConv4], outer: int, height: int, width: int, n: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = kind(3, outer, (height, width))
    shape = (n, outer, height // 2, width // 2) if layer.transposed else (n, 3, height, width)
    x = torch.randn(shape, requires_grad=True)
    weight = whole(layer)
    convolution = F.conv_transpose2d if layer.transposed else F.conv2d
    expected, got = convolution(x, weight, stride=2, padding=1), layer(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

    grad = torch.randn_like(got)
    dx, dw = torch.autograd.grad(expected, (x, weight), grad)
    dx_got, dw_got = torch.autograd.grad(got, (x, layer.weight), grad)
    torch.testing.assert_close(dx_got, dx, rtol=1e-4, atol=1e-5)
    live = [slice((4 - side) // 2, (4 + side) // 2) for side in layer.weight.shape[:2]]
    torch.testing.assert_close(dw_got.permute(3, 2, 0, 1), dw[:, :, live[0], live[1]], rtol=1e-4, atol=1e-5)
    dead = dw.clone()
    dead[:, :, live[0], live[1]] = 0
    assert not dead.any()  # the taps that the layer lacks would never have been trained


def test_initial_weights_are_bounded_as_the_whole_kernels() -> None:
    for wide in ((2, 2), (4, 4), (16, 16)):
        weight = StridedConv4(8, 64, wide).weight.abs().max()
        assert weight <= (16 * 8) ** -0.5
        assert weight > 0.95 * (16 * 8) ** -0.5


@pytest.mark.parametrize("kind", [StridedConv4, TransposedConv4])
def test_without_onednn(kind: type[StridedConv4], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = kind(5, strided_conv.MANY, (4, 4))
    assert layer.small
    x = torch.randn(2, strided_conv.MANY, 2, 2) if layer.transposed else torch.randn(2, 5, 4, 4)
    x.requires_grad_()
    out = layer(x)
    gradients = torch.autograd.grad(out.square().sum(), (x, layer.weight))

    monkeypatch.setattr(strided_conv, "ONEDNN", None)
    again = layer(x)
    torch.testing.assert_close(again, out, rtol=1e-4, atol=1e-5)
    for got, expected in zip(torch.autograd.grad(again.square().sum(), (x, layer.weight)), gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_no_image_is_no_error() -> None:
    assert StridedConv4(3, 5, (4, 4))(torch.empty(0, 3, 4, 4)).shape == (0, 5, 2, 2)
    assert TransposedConv4(3, 5, (4, 4))(torch.empty(0, 5, 2, 2)).shape == (0, 3, 4, 4)


def test_bfloat16_is_near() -> None:
    layer, x = StridedConv4(16, 8, (4, 4)), torch.randn(4, 16, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = layer(x)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), layer(x), rtol=0.03, atol=0.03)
    rough.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from genfed.engines.flops import FlopCounter
from genfed.generators.strided_conv import StridedConv4


def test_products_are_counted_forwards_and_backwards() -> None:
    layer, x = nn.Linear(5, 3), torch.randn(7, 5, requires_grad=True)
    with FlopCounter() as flops:
        layer(x).sum().backward()
    assert flops.count == 3 * 2 * 7 * 5 * 3


def test_convolutions_are_counted_and_the_outcome_is_the_same() -> None:
    layer, x = nn.Conv2d(2, 4, 3, padding=1, bias=False), torch.randn(5, 2, 8, 8)
    expected = layer(x)
    with FlopCounter() as flops:
        found = layer(x)
        with torch.inference_mode():
            F.linear(torch.ones(2, 3), torch.ones(4, 3))  # not yet taken apart there
    assert torch.equal(found, expected)
    assert flops.count == 2 * 5 * 4 * 8 * 8 * 2 * 9 + 2 * 2 * 3 * 4


def test_the_products_of_small_maps_are_counted() -> None:
    """From 2×2 to 1×1 a kernel has four living taps."""
    layer, x = StridedConv4(300, 400, (2, 2)), torch.randn(6, 300, 2, 2)
    with FlopCounter() as flops:
        y = layer(x)
        forward = flops.count
        y.sum().backward()
    assert layer.small
    assert forward == 4 * 2 * 6 * 300 * 400
    assert flops.count == 3 * forward  # and the gradients of weights and of maps


def test_torchs_own_counter_counts_the_same() -> None:
    convolution = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6))
    attention = nn.TransformerEncoderLayer(6, 2, 12, dropout=0, batch_first=True)
    x = torch.randn(5, 2, 4, 4)
    counts = []
    for counter in (FlopCounter(), FlopCounterMode(display=False)):
        with counter:
            attention(convolution(x)[None]).sum().backward()
            with torch.inference_mode():
                convolution.eval()(x)
        counts.append(counter.count if isinstance(counter, FlopCounter) else counter.get_total_flops())
        convolution.train()
    assert counts[0] == counts[1] > 0

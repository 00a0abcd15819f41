import pytest
import torch

from genfed.generators.feature_scaling import ChannelScaler


def test_it_is_the_mean_and_deviation_of_all_batches_and_goes_back() -> None:
    scale = ChannelScaler(3)
    x = torch.rand(12, 3, 4, 5) * torch.tensor([0.01, 1, 300])[:, None, None]
    torch.testing.assert_close(scale.eval()(x), x)  # it knows nothing yet, and learns in training alone
    scale.train()
    for batch in torch.split(x, 4):
        scale(batch)
    scaled = scale.eval()(x)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-2, rtol=0)
    torch.testing.assert_close(scale.unscale(scaled), x)


def test_averaged_it_is_that_of_both_clients_examples() -> None:
    """Two clients with like variances and unlike means: the whole has a wider spread than either."""
    both = [torch.randn(8, 2, 3, 3), torch.randn(8, 2, 3, 3) + 10]
    scales = [ChannelScaler(2), ChannelScaler(2)]
    for scale, x in zip(scales, both, strict=True):
        scale(x)
    mean = ChannelScaler(2)
    mean.load_state_dict({k: (v + scales[1].state_dict()[k]) / 2 for k, v in scales[0].state_dict().items()})
    whole = mean.eval()(torch.cat(both))
    torch.testing.assert_close(whole.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_dead_channel_does_no_harm(value: float) -> None:
    scale, x = ChannelScaler(1), torch.full((4, 1, 2, 2), value)
    assert scale(x).abs().max() < 1e-3
    torch.testing.assert_close(scale.unscale(torch.zeros(4, 1, 2, 2)), x)

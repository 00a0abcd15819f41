from typing import Any

import pytest
import torch
from torch import nn

from genfed.classifiers import cnn, cnn1d, gru, mlp, resnet, transformer, vit
from genfed.core.errors import GenfedError
from genfed.core.task import Task

EVERY = cnn.ARCHITECTURES | resnet.ARCHITECTURES | vit.ARCHITECTURES | mlp.ARCHITECTURES
SERIES = cnn1d.ARCHITECTURES | gru.ARCHITECTURES | transformer.ARCHITECTURES
IMAGES_ONLY = sorted(EVERY.keys() - mlp.ARCHITECTURES.keys())


def task(*shape: int, classes: int = 10) -> Task:
    return Task("image" if len(shape) == 3 else "table", shape, tuple(str(i) for i in range(classes)))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("number", "count"),
    list(enumerate([10_734, 10_254, 14_246, 5_346, 26_190, 39_926, 10_986, 98_766, 109_826, 39_066], 1)),
)
def test_grey_networks_have_the_papers_sizes(number: int, count: int) -> None:
    network = EVERY[f"cnn{number}"](task(1, 32, 32))
    assert parameters(network) == count
    normalized = sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert normalized == 1  # the extractor's


@pytest.mark.parametrize("number", range(1, 11))
def test_bn_variants_normalise_after_every_convolution(number: int) -> None:
    for network in (EVERY[f"cnn{number}-bn"](task(1, 32, 32)), EVERY[f"cnn{number}"](task(3, 32, 32))):
        kinds = [type(m) for m in network.modules()]
        assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.Conv2d)


@pytest.mark.parametrize(("channels", "maps"), [(1, 3), (3, 10)])
def test_extractors_are_of_one_shape(channels: int, maps: int) -> None:
    x = torch.randn(2, channels, 32, 32)
    for name in cnn.ARCHITECTURES:
        extractor = cnn.ARCHITECTURES[name](task(channels, 32, 32)).extractor
        assert isinstance(extractor, nn.Module)
        assert extractor(x).shape == (2, maps, 16, 16)


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 45), (2, 64, 33), (5, 37, 41)])
def test_any_size_and_channels(name: str, shape: tuple[int, int, int]) -> None:
    network = EVERY[name](task(*shape, classes=7))
    x = torch.randn(4, *shape)
    network.eval()
    logits = network(x)
    assert logits.shape == (4, 7)
    extractor, header = network.extractor, network.header
    assert isinstance(extractor, nn.Module)
    assert isinstance(header, nn.Module)
    assert {child for child, _ in network.named_children()} == {"extractor", "header"}
    torch.testing.assert_close(header(extractor(x)), logits)


@pytest.mark.parametrize("name", ["mlp", "mlp-small", "linear", "resnet8", "resnet8-gn", "vit-tiny", "cnn4"])
def test_digits_fit(name: str) -> None:
    assert EVERY[name](task(1, 8, 8))(torch.randn(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize("number", range(1, 11))
def test_a_cnn_takes_its_smallest_image_and_none_smaller(number: int) -> None:
    least = 2 ** (1 + len(cnn.WIDTHS[number - 1]))
    name = f"cnn{number}"
    assert EVERY[name](task(1, least, least))(torch.randn(2, 1, least, least)).shape == (2, 10)
    with pytest.raises(GenfedError, match=f"architecture {name}: images of {least}×{least - 1}; .* {least}×{least}$"):
        EVERY[name](task(1, least, least - 1))


@pytest.mark.parametrize("name", IMAGES_ONLY)
def test_tables_are_refused(name: str) -> None:
    with pytest.raises(GenfedError, match=f"architecture {name}: .*table"):
        EVERY[name](task(13))


@pytest.mark.parametrize("name", sorted(mlp.ARCHITECTURES))
def test_tables_are_taken(name: str) -> None:
    assert EVERY[name](task(13, classes=2))(torch.randn(5, 13)).shape == (5, 2)


@pytest.mark.parametrize("name", ["resnet8-gn", "vit-tiny", "cnn2-gn", "cnn5-gn"])
def test_without_batchnorm_an_example_stands_alone(name: str) -> None:
    network, x = EVERY[name](task(1, 16, 16)), torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(network(x)[:1], network(x[:1]))


def test_transformer_layers_start_different() -> None:
    extractor = vit.ARCHITECTURES["vit-tiny"](task(1, 16, 16)).extractor
    assert isinstance(extractor, nn.Sequential)
    first, second = (extractor[i].state_dict()["linear1.weight"] for i in (1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", sorted(SERIES))
@pytest.mark.parametrize("shape", [(9, 128), (1, 8), (3, 50), (2, 1)])
def test_series_of_any_length_and_channels(name: str, shape: tuple[int, int]) -> None:
    network = SERIES[name](Task("series", shape, ("a", "b", "c"))).eval()
    x = torch.randn(4, *shape)
    logits = network(x)
    assert logits.shape == (4, 3)
    assert {child for child, _ in network.named_children()} == {"extractor", "header"}
    torch.testing.assert_close(network.get_submodule("header")(network.get_submodule("extractor")(x)), logits)
    torch.testing.assert_close(network(x[:1]), logits[:1])


@pytest.mark.parametrize("name", sorted(SERIES))
@pytest.mark.parametrize("kind", ["image", "table", "features"])
def test_networks_for_series_refuse_others(name: str, kind: Any) -> None:
    with pytest.raises(GenfedError, match=f"architecture {name}: .*allowed are series"):
        SERIES[name](Task(kind, (3, 8, 8) if kind == "image" else (5,), ("a", "b")))


@pytest.mark.parametrize("name", IMAGES_ONLY)
def test_networks_for_images_refuse_series(name: str) -> None:
    with pytest.raises(GenfedError, match=f"architecture {name}: .*, series; allowed are images"):
        EVERY[name](Task("series", (3, 32), ("a", "b")))


@pytest.mark.parametrize("name", sorted(mlp.ARCHITECTURES))
def test_fully_connected_networks_take_series(name: str) -> None:
    assert EVERY[name](Task("series", (3, 32), ("a", "b")))(torch.randn(5, 3, 32)).shape == (5, 2)

"""Encoders: fixed maps that are the same everywhere, and what they refuse."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genfed import Client, ClientInfo, Data, GenfedError, Server, Slot, Task
from genfed.config import registry
from genfed.config.reader import read_source
from genfed.data.digits import Digits
from genfed.encoders.encoder import ENCODED, BuiltEncoder, Encoder, build_encoder, encode_examples
from genfed.encoders.hog import HOG
from genfed.encoders.identity import Identity
from genfed.encoders.random_conv import RandomConv, draw_filters, weigh_cells
from genfed.encoders.rocket import Rocket, draw_kernels
from genfed.encoders.whitened import Whitened, load_public_images
from genfed.experiment.compatibility import check_encoders, check_public_examples
from genfed.methods.fedcgs import FedCGS
from genfed.training.evaluation import predict
from tests.conftest import start, tiny
from tests.encoders.toys import vision_model

IMAGES = Task("image", (3, 16, 16), ("cat", "dog"))
TABLE = Task("table", (5,), ("no", "yes"))
SERIES = Task("series", (2, 40), ("no", "yes"))
TASKS = {
    "random_conv": IMAGES,
    "identity": TABLE,
    "hog": IMAGES,
    "pretrained": IMAGES,
    "whitened": IMAGES,
    "rocket": SERIES,
}
ENCODERS = sorted(registry.list_classes(registry.ENCODERS).keys() - {"shared"})  # that one is no fixed map


class Records:
    """A client's storage in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def get(self, slot: Slot[Any]) -> Any:
        return self._kept.get(slot.name)

    def put(self, slot: Slot[Any], record: Any) -> None:
        self._kept[slot.name] = record


def server(task: Task, seed: int = 0) -> Server:
    none = lambda name, rng: nn.Identity()  # noqa: E731
    return Server(task, (), 0, torch.Generator(), seed, torch.device("cpu"), "float32", none)


def client(task: Task, data: Data, seed: int = 0) -> Client:
    cpu = torch.device("cpu")
    none = lambda name, rng: nn.Identity()  # noqa: E731
    info = ClientInfo(0, "mlp", len(data))
    return Client(info, task, data, Records(), torch.Generator(), seed, cpu, "float32", none)


def examples(task: Task, count: int = 6) -> Data:
    x = torch.rand(count, *task.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Data(x, torch.arange(count) % 2)


def own(name: str) -> Encoder:
    given = {"model": str(vision_model())} if name == "pretrained" else {}
    encoder: Encoder = registry.find_class(registry.ENCODERS, name)(**given)
    return encoder


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_the_same_everywhere(name: str) -> None:
    task = TASKS[name]
    one, same = build_encoder(own(name), server(task)), build_encoder(own(name), client(task, examples(task)))
    x = examples(task).x
    assert one.digest == same.digest
    assert torch.equal(one.encode(x), same.encode(x))
    assert one.task == Task("features", (one.encode(x).shape[1],), task.classes)


@pytest.mark.parametrize("name", ENCODERS)
def test_features_of_an_example_depend_on_no_other(name: str) -> None:
    built, x = build_encoder(own(name), server(TASKS[name])), examples(TASKS[name]).x
    torch.testing.assert_close(built.encode(x)[:1], built.encode(x[:1]))
    assert built.encode(x[:0]).shape == (0, *built.task.shape)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_trains_nothing(name: str) -> None:
    assert not [p for p in build_encoder(own(name), server(TASKS[name])).network.parameters() if p.requires_grad]


def test_another_seed_draws_other_filters() -> None:
    assert (
        build_encoder(RandomConv(), server(IMAGES)).digest != build_encoder(RandomConv(), server(IMAGES, seed=1)).digest
    )


def test_a_client_with_another_encoder_is_refused() -> None:
    data = examples(IMAGES)
    agreed = build_encoder(RandomConv(), server(IMAGES)).digest
    with pytest.raises(GenfedError, match="is not that of the run"):
        encode_examples(client(IMAGES, data, seed=1), RandomConv(), agreed)


def test_features_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same encoder, examples and labels; an attack has others in some phases."""
    data, agreed = examples(IMAGES), build_encoder(RandomConv(), server(IMAGES)).digest
    here = client(IMAGES, data)
    first = encode_examples(here, RandomConv(), agreed)
    with monkeypatch.context() as once:
        once.setattr(BuiltEncoder, "encode", lambda *given: pytest.fail("computed again"))
        assert torch.equal(encode_examples(here, RandomConv(), agreed).x, first.x)
    other = replace(here, data=Data(torch.zeros_like(data.x), data.y))
    assert not torch.equal(encode_examples(other, RandomConv(), agreed).x, first.x)
    turned = replace(here, data=Data(data.x, 1 - data.y))
    assert torch.equal(encode_examples(turned, RandomConv(), agreed).y, 1 - data.y)
    stored = here.storage.get(ENCODED)
    assert stored is not None
    assert stored.digest.startswith(agreed)


def test_features_of_random_convolutions_by_hand() -> None:
    """Two filters in one cell: the weighted mean of what their absolute response exceeds the threshold by; the root."""
    how, task = (
        RandomConv(filters=2, kernel=3, cells=1, threshold=0.25, contrast=0),
        Task("image", (1, 4, 4), ("a", "b")),
    )
    built, x = build_encoder(how, server(task)), examples(task, 3).x
    filters, padded = built.network.get_buffer("filters")[:, 0], nn.functional.pad(x[:, 0], (1, 1, 1, 1))
    gauss = [math.exp(-((place + 0.5 - 2) ** 2) / (2 * (0.4 * 4) ** 2)) for place in range(4)]
    for image, found in zip(padded, built.encode(x), strict=True):
        means = []
        for one in filters:
            above = [
                [max(0.0, abs(float((image[r : r + 3, c : c + 3] * one).sum())) - 0.25) for c in range(4)]
                for r in range(4)
            ]
            total = sum(gauss[r] * gauss[c] * above[r][c] for r in range(4) for c in range(4))
            means.append(math.sqrt(total / sum(gauss) ** 2))
        scale = math.sqrt(sum(value**2 for value in means) / 2)
        assert found.tolist() == pytest.approx([value / scale for value in means], rel=1e-4)


def test_cells_are_symmetric_and_add_up() -> None:
    weights = weigh_cells(3, 28)
    assert weights.sum(1).tolist() == pytest.approx([1.0] * 3)
    torch.testing.assert_close(weights, weights.flip(0).flip(1))


def test_filters_have_mean_0_and_norm_1_and_are_multiples_of_a_step() -> None:
    filters = draw_filters(8, 3, 5, 1.0, torch.Generator().manual_seed(0))
    assert filters.mean((1, 2, 3)).abs().max() < 2**-16
    assert filters.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 8, abs=1e-3)
    assert torch.equal(filters * 2**16, (filters * 2**16).round())


def test_contrast_evens_images_out() -> None:
    how = RandomConv(contrast=1e-6, threshold=0.5)
    built, x = build_encoder(how, server(IMAGES)), examples(IMAGES).x
    torch.testing.assert_close(built.encode(x), built.encode(x * 0.1), atol=2e-3, rtol=2e-3)


def test_an_even_image_has_features_of_zero() -> None:
    how = RandomConv(kernel=1, filters=3)
    assert not build_encoder(how, server(Task("image", (1, 8, 8), ("a", "b")))).encode(torch.ones(2, 1, 8, 8)).any()


@pytest.mark.parametrize("public", ["digits", "glyphs", "letters"])
def test_public_images_are_white_on_black_with_a_margin(public: Any) -> None:
    data = load_public_images(public, (3, 28, 28))
    images = data.x
    assert len(torch.unique(data.y)) == {"digits": 10, "glyphs": 10, "letters": 26}[public]
    assert images.shape[1:] == (3, 28, 28)
    assert len(images) == {"digits": 1797, "glyphs": 2600, "letters": 2600}[public]
    assert (float(images.min()), float(images.max())) == pytest.approx((-1, 1), abs=0.01)
    edge = torch.cat([images[:, 0, 0], images[:, 0, -1], images[:, 0, :, 0], images[:, 0, :, -1]], 1)
    assert float(edge.mean()) < -0.9
    assert float(images[:, 0, 8:20, 8:20].mean()) > float(edge.mean()) + 0.3


SMALL = Whitened(encoder=RandomConv(filters=8, cells=2), components=6)


@pytest.mark.parametrize(
    ("data", "public", "refused"),
    [
        ({"kind": "digits", "size": 16}, "digits", True),
        ({"kind": "digit_domains"}, "digits", True),
        ({"kind": "glyphs", "examples": 100}, "glyphs", True),
        ({"kind": "glyphs", "examples": 130, "characters": "letters"}, "letters", True),
        ({"kind": "glyphs", "examples": 100}, "letters", False),
        ({"kind": "digits"}, "glyphs", False),
        ({"kind": "npz", "path": "digits.npz"}, "digits", True),
        ({"kind": "npz", "path": "digits.npz"}, "glyphs", False),
    ],
)
def test_public_images_are_not_those_of_the_run(
    data: dict[str, Any], public: Any, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    some = Digits(size=8).load().validation
    np.savez("digits.npz", x=some.x.numpy(), y=some.y.numpy())
    source = read_source(data)
    parts = (source.load().test,)
    for encoder in (replace(SMALL, public=public), replace(SMALL, public="letters", encoder=Whitened(public=public))):
        if refused:
            with pytest.raises(GenfedError, match=r"method.mine.encoder.kind = 'whitened': .* are the run's own"):
                check_public_examples("mine", FedCGS(encoder=encoder), source, parts)
        elif encoder.public == public:
            check_public_examples("mine", FedCGS(encoder=encoder), source, parts)


def test_a_run_on_public_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match="some of them are the run's own"):
        start(tiny("fedcgs", method={"fedcgs": {"encoder": {"kind": "whitened"}}}), tmp_path / "run")


@pytest.mark.parametrize("name", ENCODERS)
def test_no_encoder_mixes_examples(name: str) -> None:
    check_encoders("fedcgs", FedCGS(encoder=own(name)), server(TASKS[name]))


def test_public_features_are_white_after_whitening() -> None:
    task, inner = Task("image", (1, 16, 16), ("a", "b")), RandomConv(filters=8, cells=2)
    public = load_public_images("digits", task.shape)

    def projected(how: Whitened) -> Tensor:
        network = build_encoder(how, server(task)).network
        features = network.get_submodule("encoder")(public.x)
        x: Tensor = (features - network.get_buffer("mean")) @ network.get_buffer("components")
        return x

    total = Whitened(encoder=inner, components=6, covariance="total", shrinkage=1e-3)
    covariance = torch.cov(projected(total).T)
    assert covariance.diagonal().tolist() == pytest.approx([1.0] * 6, abs=0.1)
    assert float((covariance - covariance.diag().diag()).abs().max()) < 0.02
    x = projected(replace(total, covariance="within"))
    means = torch.stack([x[public.y == label].mean(0) for label in range(10)])
    assert torch.cov((x - means[public.y]).T).diagonal().tolist() == pytest.approx([1.0] * 6, abs=0.1)
    assert torch.cov(x.T).diagonal().diff().max() <= 1e-3  # the leading ones come first
    rows = build_encoder(total, server(task)).encode(examples(task).x)
    assert rows.square().mean(1).tolist() == pytest.approx([1.0] * 6, rel=1e-4)
    plain = build_encoder(replace(total, power=0.0), server(task)).network.get_buffer("components")
    assert plain.norm(dim=0).tolist() == pytest.approx([1.0] * 6, abs=2e-3)


def test_the_identity_gives_numbers_as_they_are() -> None:
    x = examples(TABLE).x
    assert torch.equal(build_encoder(Identity(), server(TABLE)).encode(x), x)


def test_bytes_are_scaled_as_for_networks() -> None:
    built = build_encoder(Identity(), server(IMAGES))
    assert bool((built.encode(torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)) == 1).all())


@pytest.mark.parametrize(
    ("make", "task", "reason"),
    [
        (lambda: RandomConv(kernel=4), IMAGES, "kernel = 4: an odd number"),
        (lambda: Rocket(), TABLE, "encoder rocket takes series; the examples are a table"),
        (lambda: RandomConv(), SERIES, "random_conv takes images; the examples are series"),
        (lambda: RandomConv(), TABLE, "random_conv takes images; the examples are a table"),
        (lambda: RandomConv(cells=17), IMAGES, "cells = 17: images of 16×16"),
        (lambda: RandomConv(filters=4096, cells=5), IMAGES, "gives 102400 features"),
        (lambda: Whitened(encoder=Identity()), TABLE, "whitened takes images; the examples are a table"),
        (
            lambda: Whitened(encoder=RandomConv(filters=2), components=19),
            IMAGES,
            "components = 19: there are at most 18",
        ),
    ],
)
def test_refuses(make: object, task: Task, reason: str) -> None:
    with pytest.raises(GenfedError, match=reason):
        build_encoder(make(), server(task))  # type: ignore[operator]


def test_refuses_features_that_are_not_finite() -> None:
    with pytest.raises(GenfedError, match="not finite"):
        build_encoder(Identity(), server(TABLE)).encode(torch.full((1, 5), float("nan")))


@pytest.mark.parametrize("encoder", [RandomConv(), HOG(), Whitened(), Whitened(public="glyphs", covariance="total")])
def test_the_bits_of_features_do_not_depend_on_the_other_examples(encoder: Encoder) -> None:
    """Else the sums of features would not be the same for any split of the examples over clients."""
    task = Task("image", (1, 28, 28), tuple("0123456789"))
    network = encoder.new(task, torch.Generator().manual_seed(0)).eval()
    x = load_public_images("letters", task.shape).x[:600]
    whole, start = predict(network, x), 0
    for count in (1, 2, 3, 5, 17, 64, 129, 379):
        assert torch.equal(predict(network, x[start : start + count]), whole[start : start + count])
        start += count


def test_features_of_random_kernels_by_hand() -> None:
    """Dilations 1, 2 and 4 fit into 40 steps. A kernel has 4 · its share of positive responses − 2; its largest / 5."""
    built, x = build_encoder(Rocket(kernels=12), server(SERIES)), examples(SERIES, 2).x
    shares, largest = [], []
    for place, dilation in enumerate((1, 2, 4)):
        padded = nn.functional.pad(x, (4 * dilation, 4 * dilation))
        kernels, biases = (built.network.get_buffer(f"{name}{place}") for name in ("kernel", "bias"))
        for kernel, bias in zip(kernels, biases, strict=True):
            response = torch.stack(
                [(padded[:, :, at : at + 9 * dilation : dilation] * kernel).sum((1, 2)) + bias for at in range(40)], 1
            )
            shares.append(4 * (response > 0).float().mean(1) - 2)
            largest.append(response.amax(1) / 5)
    torch.testing.assert_close(built.encode(x), torch.stack([*shares, *largest], 1), rtol=1e-4, atol=1e-4)


def test_kernels_use_some_channels_and_have_mean_0() -> None:
    kernels = draw_kernels(500, 9, torch.Generator().manual_seed(0))
    used = (kernels != 0).any(2).sum(1)
    assert int(used.min()) == 1
    assert int(used.max()) == 9
    assert float(kernels.mean(2).abs().max()) < 1e-6

"""What lets an example change another one's loss or gradient is refused, by the name of the layer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genfed.config.architectures import Architectures
from genfed.core.errors import GenfedError
from genfed.core.method import TrainedNetwork
from genfed.core.task import Task
from genfed.generators.cvae import CVAE
from genfed.generators.dcgan import DCGAN
from genfed.generators.ddpm import DDPM
from genfed.privacy.compatibility import check_network
from genfed.privacy.independence import check_independent
from genfed.training.fit import Objective, cross_entropy

GREY = Task("image", (1, 8, 8), ("a", "b", "c"))
X, Y = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1, torch.arange(2)


def check(network: nn.Module, *sizes: int) -> None:
    check_independent(objective_of(network), X, Y, sizes)


def objective_of(network: nn.Module) -> Objective:
    return Objective(cross_entropy(network), torch.optim.SGD(network.parameters(), 0.1), network=network)


class Layer(nn.Module):
    """Applies a function to [n, 64]; `training` is that of the layer."""

    def __init__(self, function: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.training)


def around(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), middle, nn.Linear(64, 3))


def first_row(x: Tensor) -> Tensor:
    return x + 0.01 * x[:1] * torch.tensor([[0.0]] + [[1.0]] * (len(x) - 1))


MIXING: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "mean": lambda x, training: x - x.mean(0),
    "mean of more than two": lambda x, training: x - x.mean(0) if len(x) > 2 else x,
    "mean of more than five": lambda x, training: x - x.mean(0) if len(x) > 5 else x,
    "mean without its derivative": lambda x, training: x - x.mean(0).detach() if len(x) > 2 else x,
    "variance": lambda x, training: x / (x.std(0, unbiased=False) + 1) if len(x) > 1 else x,
    "largest": lambda x, training: x / x.abs().max() if len(x) > 1 else x,
    "next example": lambda x, training: x + 0.1 * x.roll(1, 0),
    "first example": lambda x, training: first_row(x),
    "attention over the batch": lambda x, training: torch.softmax(x @ x.T, 1) @ x,
    "number of examples": lambda x, training: x / len(x),
    "number above ten": lambda x, training: x * (2 if len(x) > 10 else 1),
    "in training": lambda x, training: x - x.mean(0) if training else x,
    "in evaluation": lambda x, training: x if training else x - x.mean(0),
    "shuffled": lambda x, training: x + 0.1 * x[torch.randperm(len(x))],
}


@pytest.mark.parametrize("name", MIXING)
def test_a_layer_that_mixes_examples_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(
        GenfedError, match=r"the output of 2 \(Layer\) for an example depends on the others of the batch"
    ):
        check(around(Layer(MIXING[name])), 17)


def test_what_rounding_hides_shows_in_the_derivative() -> None:
    with pytest.raises(GenfedError, match="depends on the others of the batch"):
        check(around(Layer(lambda x, training: x + 1e-7 * x.mean(0))))


def test_a_size_that_was_not_tried_is_not_found() -> None:
    """What the docs say: there is no proof, so the training's batch size is tried."""
    network = around(Layer(MIXING["mean of more than five"]))
    check(network)
    with pytest.raises(GenfedError, match="tried with 6 examples"):
        check(network, 6)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.BatchNorm1d(64), "BatchNorm1d"),
        (nn.BatchNorm1d(64, track_running_stats=False), "BatchNorm1d"),
        (nn.BatchNorm1d(64, affine=False), "BatchNorm1d"),
    ],
)
def test_variants_of_batchnorm_fail_without_a_list_of_classes(layer: nn.Module, name: str) -> None:
    with pytest.raises(GenfedError, match=rf"{name}|fails on some|2 is BatchNorm|stores statistics"):
        check(around(layer))


class WholeNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        logits: Tensor = self.last(x - x.mean(0) if len(x) > 2 else x)
        return logits


def test_mixing_between_layers_is_the_networks() -> None:
    with pytest.raises(GenfedError, match=r"the output of its network \(WholeNetwork\) for an example depends"):
        check(WholeNetwork())


class Remembering(nn.Module):
    """Statistics in an attribute, which no buffer shows."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean().detach()
        return torch.sub(x, self.mean)


class Buffered(nn.Module):
    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.largest = torch.maximum(self.largest, x.abs().max().detach())
        return x


def test_statistics_that_a_layer_keeps_are_refused() -> None:
    with pytest.raises(GenfedError, match="its loss for an example depends on examples that it has seen before"):
        check(around(Remembering()))
    with pytest.raises(GenfedError, match=r"2\.largest stores statistics of examples"):
        check(around(Buffered()))


def test_a_loss_that_mixes_examples_is_refused() -> None:
    network = around(nn.ReLU())
    objective = objective_of(network)

    def contrast(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        logits: Tensor = network(x)
        return objective.loss(x, y, rng) + 0.1 * (logits @ logits.T).mean(1)

    def averaged(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        return objective.loss(x, y, rng).mean()

    for loss, match in ((contrast, "its loss for an example depends"), (averaged, r"its loss has shape \(\)")):
        with pytest.raises(GenfedError, match=match):
            check_independent(Objective(loss, objective.optimizer, network=network), X, Y)


ALONE: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.5),
    "dropout that is always there": lambda: Layer(lambda x, training: nn.functional.dropout(x, 0.3)),
    "dropout of a GPU": lambda: Layer(lambda x, training: torch.native_dropout(x, 0.3, True)[0]),
    "noise": lambda: Layer(lambda x, training: x + torch.randn_like(x)),
    "noise of channels": lambda: Layer(lambda x, training: x + torch.randn(len(x) * 8, 8).reshape(len(x), 64)),
    "noise for all": lambda: Layer(lambda x, training: x + torch.randn(64)),
    "layer norm": lambda: nn.LayerNorm(64),
    "group norm": lambda: nn.GroupNorm(8, 64),
}


@pytest.mark.parametrize("name", ALONE)
def test_layers_that_treat_every_example_alone_pass(name: str) -> None:
    check(around(ALONE[name]()), 8, 64)


@pytest.mark.parametrize("name", ["linear", "mlp-small", "cnn1-gn", "resnet8-gn"])
def test_architectures_pass(name: str) -> None:
    check(Architectures().new(name, GREY, torch.Generator().manual_seed(0)), 16)


@pytest.mark.parametrize(
    "generator",
    [
        CVAE(width=4, latent_dim=3, norm="group"),
        DCGAN(width=4, discriminator_width=4, latent_dim=3, norm="group"),
        DDPM(width=4, levels=2, steps=4),
    ],
)
def test_generators_pass(generator: Any) -> None:
    task = Task("image", (1, 16, 16), ("a", "b", "c"))
    network = generator.new(task, torch.Generator().manual_seed(0)).train()
    for objective in network.objectives():
        if objective.sees_data:
            check_independent(objective, torch.rand(2, 1, 16, 16) * 2 - 1, Y, [8])


def test_a_generator_whose_loss_mixes_examples_is_refused_before_training() -> None:
    """Not only classifiers are tried."""
    network = around(Layer(MIXING["mean of more than two"]))
    each = TrainedNetwork("the generator", network, GREY, objectives=(objective_of(network),))
    with pytest.raises(
        GenfedError, match=r"the generator cannot be trained under \[privacy\]: the output of 2 \(Layer\)"
    ):
        check_network(each, X)


def test_a_network_that_fails_on_one_example_is_refused_in_a_line() -> None:
    def fail(x: Tensor, training: bool) -> Tensor:
        if len(x) == 1:
            raise ValueError("one is\nnot enough")
        return x

    with pytest.raises(GenfedError, match=r"it fails on .* \(ValueError: one is\)$"):
        check(around(Layer(fail)))

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genfed.core.record import from_bytes, pack, to_bytes, unpack
from genfed.core.rng import stream
from genfed.core.task import Data
from genfed.training.fit import Objective, batches, cross_entropy, fit, train_step
from genfed.training.optimizer_state import OptimizerState, load_optimizer_state, optimizer_state
from genfed.training.pixels import normalize_pixels

CPU = torch.device("cpu")


def linear(*weights: float) -> nn.Linear:
    network = nn.Linear(len(weights), 1, bias=False)
    nn.init.zeros_(network.weight)
    network.weight.data += torch.tensor(weights)
    return network


def squared(network: nn.Module) -> Any:
    """½(w·x − y)² per example."""

    def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        out: Tensor = network(x)
        return (out.flatten() - y).square() / 2

    return loss


def objective(network: nn.Module, lr: float = 0.1, penalty: Any = None) -> Objective:
    return Objective(squared(network), torch.optim.SGD(network.parameters(), lr=lr), penalty)


DATA = Data(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([1, 0]))


# Batches.


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32))
def test_batches_hold_every_row_once_and_none_is_a_single_example(n: int, size: int, seed: int) -> None:
    parts = list(batches(n, size, torch.Generator().manual_seed(seed)))
    assert sorted(torch.cat(parts).tolist()) == list(range(n))
    assert all(len(p) == size for p in parts[:-1])
    assert len(parts[-1]) <= size + 1
    if n > 1 and size > 1:
        assert min(len(p) for p in parts) > 1


def test_a_last_single_example_joins_the_batch_before_it() -> None:
    assert [len(p) for p in batches(7, 3, stream(0))] == [3, 4]
    assert [len(p) for p in batches(4, 3, stream(0))] == [4]
    assert [len(p) for p in batches(8, 3, stream(0))] == [3, 3, 2]
    assert [len(p) for p in batches(1, 3, stream(0))] == [1]
    assert [len(p) for p in batches(3, 1, stream(0))] == [1, 1, 1], "one step an example was asked for"


def test_epochs_are_shuffled_anew() -> None:
    rng = stream(0)
    one, other = (torch.cat(list(batches(50, 8, rng))).tolist() for _ in range(2))
    assert one != other
    assert one != sorted(one)


# Scale.


def test_bytes_are_scaled_and_floats_are_not() -> None:
    x = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert normalize_pixels(x).tolist() == [-1.0, pytest.approx(-0.6), 1.0]
    assert x.tolist() == [0, 51, 255]
    assert normalize_pixels(x).dtype == torch.float32
    floats = torch.tensor([-7.0, 0.5])
    assert normalize_pixels(floats) is floats


def test_every_byte_has_its_own_place_between_the_ends() -> None:
    values = normalize_pixels(torch.arange(256, dtype=torch.int32).to(torch.uint8))
    assert bool((values.diff() > 0).all())
    assert torch.allclose(values, torch.linspace(-1, 1, 256), atol=1e-6)


# One step, by hand.


def test_one_step_of_sgd() -> None:
    network = linear(1.0, 0.0)
    # w·x − y = 1 − 1 = 0 and 3 − 0 = 3; losses 0 and 4.5; gradient ½(0·(1, 2) + 3·(3, −1)) = (4.5, −1.5)
    total = train_step(objective(network), DATA.x, DATA.y, stream(0))
    assert total.item() == 4.5
    assert not total.requires_grad
    assert network.weight.tolist() == [[pytest.approx(1 - 0.45), pytest.approx(0.15)]]


def test_a_penalty_is_added_once_per_batch_and_not_to_the_loss_that_is_told() -> None:
    network = linear(1.0, 0.0)
    total = train_step(objective(network, penalty=lambda: network.weight.sum() * 2), DATA.x, DATA.y, stream(0))
    assert total.item() == 4.5
    assert network.weight.tolist() == [[pytest.approx(1 - 0.45 - 0.2), pytest.approx(0.15 - 0.2)]]


def test_gradients_do_not_pile_up() -> None:
    network = linear(1.0, 0.0)
    network.weight.grad = torch.full((1, 2), 1e6)
    train_step(objective(network), DATA.x, DATA.y, stream(0))
    assert network.weight.tolist() == [[pytest.approx(0.55), pytest.approx(0.15)]]


def test_the_loss_told_is_the_last_epochs_mean_over_examples() -> None:
    """Batches of 3 and 2: each counts by its size. A step of 0 leaves the loss as it is."""
    data = Data(torch.arange(5.0).reshape(5, 1), torch.zeros(5, dtype=torch.int64))
    mean = sum(i * i / 2 for i in range(5)) / 5
    assert fit([objective(linear(1.0), lr=0.0)], data, epochs=3, batch_size=3, rng=stream(0)) == mean
    one, whole = linear(1.0), linear(1.0)
    fit([objective(one)], data, epochs=1, batch_size=9, rng=stream(1))
    expected = sum((one.weight.item() * i) ** 2 / 2 for i in range(5)) / 5
    assert fit([objective(whole)], data, epochs=2, batch_size=9, rng=stream(1)) == pytest.approx(expected, rel=1e-6)


def test_no_epoch_changes_nothing() -> None:
    network = linear(1.0, 2.0)
    global_stream = torch.get_rng_state()
    assert fit([objective(network)], DATA, epochs=0, batch_size=2, rng=stream(0)) == 0.0
    assert network.weight.tolist() == [[1.0, 2.0]]
    assert torch.equal(torch.get_rng_state(), global_stream)


def test_players_take_turns_on_each_batch() -> None:
    turns: list[tuple[str, int]] = []

    def named(name: str, network: nn.Module) -> Objective:
        def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
            turns.append((name, len(y)))
            return squared(network)(x, y, rng)  # type: ignore[no-any-return]

        return Objective(loss, torch.optim.SGD(network.parameters(), lr=0.0))

    data = Data(torch.ones(5, 1), torch.zeros(5, dtype=torch.int64))
    total = fit([named("g", linear(2.0)), named("d", linear(4.0))], data, epochs=1, batch_size=3, rng=stream(0))
    assert turns == [("g", 3), ("d", 3), ("g", 2), ("d", 2)]
    assert total == 2.0 + 8.0


def dropout() -> nn.Module:
    network = nn.Sequential(nn.Dropout(0.5), linear(*[1.0] * 20))
    return network.train()


def trained(seed: int, precision: str = "float32") -> Tensor:
    network = dropout()
    data = Data(torch.ones(6, 20), torch.zeros(6, dtype=torch.int64))
    fit([objective(network, lr=0.01)], data, epochs=2, batch_size=2, rng=stream(seed), precision=precision)
    return torch.cat([p.flatten() for p in network.parameters()])


def test_dropout_draws_from_the_stream_alone() -> None:
    network, before = dropout(), torch.get_rng_state()
    fit([objective(network)], Data(torch.ones(6, 20), torch.zeros(6)), epochs=2, batch_size=2, rng=stream(0))
    assert torch.equal(torch.get_rng_state(), before)
    one = trained(0)
    torch.rand(3)
    assert torch.equal(trained(0), one)
    assert not torch.equal(trained(1), one)


def test_bfloat16_computes_in_bfloat16_and_keeps_weights_in_float32() -> None:
    one, other = trained(0), trained(0, "bfloat16")
    assert other.dtype == torch.float32
    assert not torch.equal(one, other)
    assert torch.allclose(one, other, atol=0.05)


def test_uint8_is_scaled_before_it_is_learned_from() -> None:
    network, seen = linear(0.0), []

    def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        seen.append(x.flatten().tolist())
        return squared(network)(x, y, rng)  # type: ignore[no-any-return]

    data = Data(torch.tensor([[255], [255]], dtype=torch.uint8), torch.tensor([0, 0]))
    fit([Objective(loss, torch.optim.SGD(network.parameters(), lr=0.1))], data, epochs=1, batch_size=2, rng=stream(0))
    assert seen == [[1.0, 1.0]]
    assert data.x.tolist() == [[255], [255]]


def test_cross_entropy_is_one_per_example() -> None:
    network = nn.Linear(1, 2, bias=False)
    network.weight.data = torch.tensor([[0.0], [math.log(3.0)]])
    losses = cross_entropy(network)(torch.tensor([[1.0], [1.0]]), torch.tensor([0, 1]), stream(0))
    assert losses.tolist() == [pytest.approx(math.log(4)), pytest.approx(math.log(4 / 3))]


# What an optimizer remembers.

OPTIMISERS: dict[str, Any] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "fused adam": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "fused momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "plain": lambda p: torch.optim.SGD(p, lr=0.05),
}


@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_rounds_with_moments_carried_are_those_of_one_optimiser(name: str) -> None:
    data = Data(torch.randn(12, 2, generator=stream(0, "x")), torch.arange(12) % 2)

    def run(carry: bool) -> tuple[Tensor, list[Tensor]]:
        network, path = linear(1.0, -1.0), []
        optimizer, moments = OPTIMISERS[name](network.parameters()), None
        for number in range(4):
            if carry:
                optimizer = OPTIMISERS[name](network.parameters())
                load_optimizer_state(optimizer, moments)
            objectives = [Objective(squared(network), optimizer)]
            fit(objectives, data, epochs=2, batch_size=5, rng=stream(0, "train", number))
            path.append(network.weight.detach().clone())
            moments = unpack(OptimizerState, from_bytes(to_bytes(pack(optimizer_state(optimizer)))))
        return path[-1], path

    whole, carried = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(whole[1], carried[1], strict=True))


def test_no_moments_leave_an_optimiser_new() -> None:
    optimizer = OPTIMISERS["adam"](linear(1.0).parameters())
    load_optimizer_state(optimizer, None)
    assert optimizer_state(optimizer) == OptimizerState({})


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_training_names_its_draws(n: int, size: int, seed: int) -> None:
    data = Data(torch.randn(n, 2, generator=stream(seed, "x")), torch.arange(n) % 2)
    networks = [linear(1.0, 1.0) for _ in range(2)]
    losses = [fit([objective(w)], data, epochs=2, batch_size=size, rng=stream(seed)) for w in networks]
    assert losses[0] == losses[1]
    assert torch.equal(networks[0].weight, networks[1].weight)

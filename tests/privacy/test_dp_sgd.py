import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genfed.config.architectures import Architectures
from genfed.core.errors import GenfedError
from genfed.core.phase import Empty
from genfed.core.privacy import DeclaredTraining, NoTraining
from genfed.core.task import Data, Task
from genfed.generators.cvae import CVAE
from genfed.generators.dcgan import DCGAN
from genfed.generators.ddpm import DDPM
from genfed.generators.generator import Generator
from genfed.privacy.dp_sgd import DPSGDTrainer, clip_and_sum, plan_batches
from genfed.privacy.per_example_gradients import (
    check_layers,
    check_trained,
    example_gradients,
    hook_per_example,
    parameters_of,
)
from genfed.privacy.randomness import os_randomness, seeded_randomness
from genfed.training.fit import Objective, cross_entropy, fit
from genfed.training.weights import Model

GREY = Task("image", (1, 8, 8), ("a", "b", "c"))


def some(n: int, task: Task = GREY) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.rand(n, *task.shape, generator=rng) * 2 - 1, torch.arange(n) % len(task.classes)


def objective_of(name: str, rate: float = 0.1) -> Objective:
    network = Architectures().new(name, GREY, torch.Generator().manual_seed(0)).train()
    return Objective(cross_entropy(network), torch.optim.SGD(network.parameters(), rate), network=network)


def trained(
    objectives: Sequence[Objective], x: Tensor, y: Tensor, use: DeclaredTraining, clip: float = 1.0, noise: float = 1.0
) -> None:
    trainer = DPSGDTrainer(clip, noise, os_randomness(), [use])
    trainer.fit(objectives, Data(x, y), epochs=use.epochs, batch_size=use.batch_size)


def weights(objective: Objective) -> list[Tensor]:
    return [p.detach().clone() for p in parameters_of(objective)]


def one_by_one(objective: Objective, loss: Callable[[int], Tensor], n: int) -> list[Tensor]:
    rows = []
    for i in range(n):
        objective.optimizer.zero_grad()
        loss(i).sum().backward()  # type: ignore[no-untyped-call]
        rows.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters_of(objective)])
    return [torch.stack(each) for each in zip(*rows, strict=True)]


def close(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-7)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("name", ["mlp-small", "cnn1-gn", "cnn2-gn", "resnet8-gn"])
def test_gradients_are_those_of_examples_one_at_a_time(name: str) -> None:
    objective, (x, y), rng = objective_of(name), some(4), torch.Generator()
    with hook_per_example(objective):
        together = example_gradients(objective, x, y, rng)
    assert close(together, one_by_one(objective, lambda i: objective.loss(x[i : i + 1], y[i : i + 1], rng), 4))


def test_gradients_of_a_cvae_are_those_of_examples_one_at_a_time() -> None:
    """Parameters that no layer holds (planes, bias) among them."""
    network = CVAE(width=4, latent_dim=3, norm="group").new(GREY, torch.Generator().manual_seed(0)).train()
    (objective,), (x, y) = network.objectives(), some(3)
    with hook_per_example(objective):
        together = example_gradients(objective, x, y, torch.Generator().manual_seed(5))
    noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(5))

    def alone(i: int) -> Tensor:
        mean, log_variance = network.encode(x[i : i + 1], y[i : i + 1])
        made = network.decode(mean + noise[i : i + 1] * torch.exp(log_variance / 2), y[i : i + 1])
        kl = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2
        return (made - x[i : i + 1]).square().flatten(1).sum(1) + kl

    assert close(together, one_by_one(objective, alone, 3))


def test_gradients_of_a_discriminator_are_those_of_pairs_one_at_a_time() -> None:
    task = Task("image", (1, 16, 16), ("a", "b"))
    network = DCGAN(width=4, discriminator_width=4, latent_dim=3, norm="group").new(
        task, torch.Generator().manual_seed(0)
    )
    objective, (x, y) = network.train().objectives()[0], some(3, task)
    with hook_per_example(objective):
        together = example_gradients(objective, x, y, torch.Generator().manual_seed(5))
    rng = torch.Generator().manual_seed(5)
    z, labels = torch.randn(3, 3, generator=rng), torch.randint(2, (3,), generator=rng)
    with torch.no_grad():
        fake = network.generate(z, labels)

    def alone(i: int) -> Tensor:
        one = slice(i, i + 1)
        softplus = nn.functional.softplus
        return softplus(-network.discriminate(x[one], y[one])) + softplus(network.discriminate(fake[one], labels[one]))

    assert close(together, one_by_one(objective, alone, 3))


@pytest.mark.parametrize(
    ("generator", "task"),
    [
        (CVAE(width=4, latent_dim=3, norm="group"), Task("features", (3, 4, 4), ("a", "b"))),
        (DDPM(width=4, levels=2, steps=4), GREY),
    ],
)
def test_generators_can_be_trained_per_example(generator: Generator, task: Task) -> None:
    (objective,) = generator.new(task, torch.Generator().manual_seed(0)).train().objectives()
    check_trained(objective, *some(2, task))


def test_clipping_by_hand() -> None:
    # Norms over both parameters: 5, √(4² + 3²) = 5 and 0.5.
    first = torch.tensor([[3.0, 4.0], [4.0, 0.0], [0.3, 0.0]])
    second = torch.tensor([[0.0], [3.0], [0.4]])
    one, two = clip_and_sum([first, second], clip=1.0)
    assert torch.allclose(one, torch.tensor([0.6 + 0.8 + 0.3, 0.8], dtype=torch.float64))
    assert torch.allclose(two, torch.tensor([0.6 + 0.4], dtype=torch.float64))
    assert all(
        torch.cat([p.flatten() for p in clip_and_sum([first[i : i + 1], second[i : i + 1]], 1.0)]).norm() <= 1 + 1e-6
        for i in range(3)
    )


def test_without_noise_and_clipping_a_full_batch_is_sgd() -> None:
    private, plain, (x, y) = objective_of("mlp-small"), objective_of("mlp-small"), some(7)
    trained([private], x, y, DeclaredTraining(epochs=3, batch_size=7), clip=1e9, noise=0.0)
    fit([plain], Data(x, y), epochs=3, batch_size=7, rng=torch.Generator().manual_seed(0))
    assert close(weights(private), weights(plain))
    assert not close(weights(private), weights(objective_of("mlp-small")))


def test_a_penalty_gets_neither_clipped_nor_noised() -> None:
    objective, (x, y) = objective_of("linear"), some(4)
    before = weights(objective)

    def penalty() -> Tensor:
        return torch.stack([p.square().sum() / 2 for p in parameters_of(objective)]).sum()

    pulled = Objective(objective.loss, objective.optimizer, penalty, objective.network)
    trained([pulled], x, y, DeclaredTraining(1, 4), clip=1e-9, noise=0.0)
    assert close(weights(objective), [w * 0.9 for w in before])


def test_noise_has_the_deviation_that_is_accounted_for() -> None:
    """σ·C over the expected batch, whatever the learning rate of 1 takes off."""
    objective, (x, y) = objective_of("mlp", rate=1.0), some(8)
    before = torch.cat([w.flatten() for w in weights(objective)])
    trained([objective], x, y, DeclaredTraining(1, 4), clip=1e-6, noise=3e6)
    moved = torch.cat([w.flatten() for w in weights(objective)]) - before
    # Two steps, each with noise of 3e6·1e-6 over a batch of 4.
    assert float(moved.std()) == pytest.approx(math.sqrt(2) * 3 / 4, rel=0.02)


def test_noise_differs_from_run_to_run_and_not_when_reproducible() -> None:
    assert not np.array_equal(os_randomness().random(4), os_randomness().random(4))
    assert np.array_equal(seeded_randomness(0, "train", 1, 2).random(4), seeded_randomness(0, "train", 1, 2).random(4))
    assert not np.array_equal(
        seeded_randomness(0, "train", 1, 2).random(4), seeded_randomness(0, "train", 2, 2).random(4)
    )


def test_batches_are_poisson_samples() -> None:
    sizes: list[int] = []
    network = Architectures().new("linear", GREY, torch.Generator().manual_seed(0)).train()
    inner = cross_entropy(network)

    def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        sizes.append(len(x))
        return inner(x, y, rng)

    objective = Objective(loss, torch.optim.SGD(network.parameters(), 0.1), network=network)
    x, y = some(40)
    use = DeclaredTraining(100, 10)
    DPSGDTrainer(1.0, 1.0, seeded_randomness(0), [use]).fit([objective], Data(x, y), epochs=100, batch_size=10)
    assert plan_batches(use, 40) == (0.25, 400)
    sizes += [0] * (400 - len(sizes))  # an empty batch is noise alone
    assert np.mean(sizes) == pytest.approx(10, abs=0.5)
    assert np.var(sizes) == pytest.approx(40 * 0.25 * 0.75, rel=0.25)


def test_the_generator_of_a_gan_never_sees_real_examples() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    real, fake = objective_of("mlp-small"), objective_of("linear")

    def watched(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        seen.append((x, y))
        return fake.loss(x, y, rng)

    x, y = some(9)
    objectives = [real, Objective(watched, fake.optimizer, sees_data=False)]
    trained(objectives, x, y, DeclaredTraining(2, 3))
    assert len(seen) == 6
    assert all(len(a) == 3 and not a.any() and not b.any() for a, b in seen)  # of the expected size, always


def test_a_whole_gan_trains() -> None:
    task = Task("image", (1, 16, 16), ("a", "b"))
    network = DCGAN(width=4, discriminator_width=4, latent_dim=3, norm="group").new(
        task, torch.Generator().manual_seed(0)
    )
    before = {k: v.clone() for k, v in network.state_dict().items()}
    objectives = network.train().objectives()
    assert [objective.sees_data for objective in objectives] == [True, False]
    trained(objectives, *some(6, task), DeclaredTraining(1, 3))
    assert all(not torch.equal(before[k], v) for k, v in network.state_dict().items() if k.endswith("weight"))


def test_batchnorm_and_kept_statistics_are_refused() -> None:
    network = Architectures().new("cnn1", GREY, torch.Generator())
    with pytest.raises(GenfedError, match=r"extractor\.1 is BatchNorm"):
        check_layers(network)
    task = Task("features", (3, 4, 4), ("a", "b"))
    (objective,) = DDPM(width=4, levels=2, steps=4).new(task, torch.Generator().manual_seed(0)).train().objectives()
    with pytest.raises(GenfedError, match=r"scale\.\w+ stores statistics of examples"):
        check_trained(objective, *some(2, task))


class Loose(nn.Module):
    """Uses a layer's weight behind the layer's back."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1), self.last.weight)


def test_what_hooks_cannot_see_is_refused() -> None:
    network = Loose()
    objective = Objective(cross_entropy(network), torch.optim.SGD(network.parameters(), 0.1), network=network)
    with pytest.raises(GenfedError, match="a way that gives no per-example gradient"):
        check_trained(objective, *some(2))


def test_only_what_was_declared_is_trained_and_all_of_it() -> None:
    data = Data(*some(4))
    trainer = DPSGDTrainer(1.0, 1.0, os_randomness(), [DeclaredTraining(1, 4)])
    with pytest.raises(GenfedError, match="not trained by DP-SGD"):
        trainer.finish(Empty(), [])
    trainer.fit([], data, epochs=1, batch_size=4)
    trainer.finish(Empty(), [])
    with pytest.raises(GenfedError, match="was not declared"):
        trainer.fit([], data, epochs=1, batch_size=4)
    with pytest.raises(GenfedError, match="was not declared"):
        NoTraining().fit([], data, epochs=1, batch_size=4)
    NoTraining().fit([], data, epochs=0, batch_size=4)


def test_a_gradient_that_is_not_finite_counts_as_nothing() -> None:
    rows = torch.tensor([[3.0, 4.0], [float("inf"), 0.0], [float("nan"), 1.0], [0.3, 0.4]])
    assert torch.allclose(clip_and_sum([rows], 1.0)[0].float(), torch.tensor([0.9, 1.2]))  # [0.6, 0.8] + [0.3, 0.4]
    assert torch.equal(clip_and_sum([rows[1:3]], 1.0)[0].float(), torch.zeros(2))


# What leaves.


class Remembers(nn.Module):
    """A layer of a user's own that keeps something of the examples in a buffer: always, or only of a bright one."""

    brightest: Tensor

    def __init__(self, least: float) -> None:
        super().__init__()
        self.last, self.least = nn.Linear(64, 3), least
        self.register_buffer("brightest", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) and float(x.max()) > self.least:
            self.brightest.fill_(float(x.max()))
        logits: Tensor = self.last(x.flatten(1))
        return logits


def remembering(least: float) -> tuple[Objective, Remembers]:
    network = Remembers(least).train()
    return Objective(
        cross_entropy(network), torch.optim.SGD(network.parameters(), 0.1), network=nn.ModuleList([network])
    ), network


def test_no_buffer_may_depend_on_examples_whatever_its_class() -> None:
    x, y = some(6)
    objective, network = remembering(-1.0)
    with pytest.raises(GenfedError, match=r"brightest stores statistics of examples, which get no noise"):
        trained([objective], x, y, DeclaredTraining(1, 6))
    assert float(network.brightest) < 1, "that of the examples that were tried, not of a client's"
    # One that changes at an example that is not tried before is found after training: nothing leaves then.
    objective, network = remembering(5.0)
    trained([objective], x, y, DeclaredTraining(1, 6))
    x[0] = 9.0
    with pytest.raises(GenfedError, match=r"brightest changed in private training and gets no noise"):
        trained([objective], x, y, DeclaredTraining(20, 6))


def test_statistics_of_features_are_refused_where_they_are_trained() -> None:
    task = Task("features", (3, 4, 4), ("a", "b"))
    objectives = DDPM(width=4, levels=2, steps=4).new(task, torch.Generator().manual_seed(0)).train().objectives()
    with pytest.raises(GenfedError, match=r"scale\.\w+ stores statistics of examples"):
        trained(objectives, *some(2, task), DeclaredTraining(1, 2))


def test_batchnorm_is_refused_where_it_is_trained() -> None:
    with pytest.raises(GenfedError, match=r"extractor\.1 is BatchNorm"):
        trained([objective_of("cnn1")], *some(4), DeclaredTraining(1, 4))


def released(objective: Objective, **changes: Tensor) -> dict[str, Tensor]:
    assert objective.network is not None
    return {name: value.detach().clone() for name, value in objective.network.state_dict().items()} | changes


@dataclass(frozen=True)
class Anything:
    value: Any


def test_only_what_was_released_or_received_leaves() -> None:
    objective, data = objective_of("mlp-small"), Data(*some(6))
    trainer = DPSGDTrainer(1.0, 1.0, os_randomness(), [DeclaredTraining(1, 6)])
    before, received = released(objective), torch.arange(5.0)
    trainer.fit([objective], data, epochs=1, batch_size=6)
    after = released(objective)
    for upload in (Model(after), Model({"w": received}), Model({}), Anything(None), Anything((after,))):
        trainer.finish(upload, [received])
    name = next(iter(after))
    means = torch.stack([data.x[data.y == c].mean(0) for c in range(3)])
    one_bit = after[name].clone()
    one_bit.view(-1)[0] = torch.nextafter(one_bit.view(-1)[0], torch.tensor(9.0))
    for tensor in (means, data.x, before[name], one_bit, after[name].double(), torch.bincount(data.y)):
        with pytest.raises(GenfedError, match=r"upload\.\w+\['w'\] is neither a tensor that DP-SGD released nor one"):
            trainer.finish(Model(after | {"w": tensor}), [received])
    for value in (0.3, 17, "a", True, {3: after[name]}, (after[name], 1.0), {"a": {"b": 2}}):
        with pytest.raises(GenfedError, match="under DP-SGD only tensors leave a client"):
            trainer.finish(Anything(value), [received])


def test_what_is_trained_further_without_privacy_does_not_leave() -> None:
    objective, data = objective_of("linear"), Data(*some(6))
    trainer = DPSGDTrainer(1.0, 1.0, os_randomness(), [DeclaredTraining(1, 6)])
    trainer.fit([objective], data, epochs=1, batch_size=6)
    fit([objective], data, epochs=1, batch_size=6, rng=torch.Generator())
    with pytest.raises(GenfedError, match="is neither a tensor that DP-SGD released"):
        trainer.finish(Model(released(objective)), [])


def test_a_long_gradient_is_clipped_to_its_whole_length() -> None:
    """In single precision the many small numbers are lost beside the large ones, and the rest seems too short."""
    long = torch.full((1, 2**24), 2.0**-13)
    long[0, :8] = 1.0
    (total,) = clip_and_sum([long], 1.0)
    assert float(total.double().norm()) <= 1 + 1e-12

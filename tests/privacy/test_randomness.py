"""The randomness that privacy rests on: from the operating system at its full width, and without gaps."""

import math
import secrets
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.stats import kstest
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.privacy import DeclaredTraining
from genfed.core.task import Data
from genfed.privacy.dp_fedavg import NoisyClippedMean
from genfed.privacy.dp_sgd import DPSGDTrainer
from genfed.privacy.randomness import draw_gaussian, fill_state, os_randomness, seeded_randomness
from genfed.training.fit import Objective
from genfed.training.weights import Model


def words_of(state: Tensor) -> Any:
    return state.numpy()[24 : 24 + 8 * 624].view(np.uint64)


def is_from_a_seed(state: Tensor) -> bool:
    """Whether `manual_seed` made the state: its words follow from the first by Knuth's recurrence."""
    words = [int(word) for word in words_of(state)]
    return all(
        words[i] == (1812433253 * (words[i - 1] ^ (words[i - 1] >> 30)) + i) % 2**32 for i in range(1, len(words))
    )


def test_random_numbers_are_those_of_aes_with_a_key_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    key, asked = 0x0123456789ABCDEF_FEDCBA9876543210, list[int]()

    def randbits(count: int) -> int:
        asked.append(count)
        return key

    monkeypatch.setattr(secrets, "randbits", randbits)
    cipher = Cipher(algorithms.AES(key.to_bytes(16, "little")), modes.ECB()).encryptor()
    blocks = cipher.update(b"".join(i.to_bytes(16, "little") for i in range(50)))
    assert np.array_equal(os_randomness().bit_generator.random_raw(100), np.frombuffer(blocks, "<u8"))
    assert asked == [128]


def test_a_filled_state_is_used_whole() -> None:
    """Torch's numbers are those of numpy's Mersenne Twister with the same 624 words."""
    rng = torch.Generator()
    fill_state(rng, seeded_randomness(7))
    other = np.random.MT19937()
    state: Any = other.state
    state["state"] = {"key": words_of(rng.get_state()).astype(np.uint32), "pos": 624}
    other.state = state
    drawn = torch.randint(2**16, (2000,), generator=rng).numpy()
    assert np.array_equal(drawn, other.random_raw(2000) & (2**16 - 1))


def test_a_filled_state_is_not_that_of_a_seed() -> None:
    assert is_from_a_seed(torch.Generator().manual_seed(2**40 + 5).get_state())  # 32 bits of it
    one, two = torch.Generator(), torch.Generator()
    fill_state(one, os_randomness())
    fill_state(two, os_randomness())
    assert not is_from_a_seed(one.get_state())
    assert not torch.equal(one.get_state(), two.get_state())
    fill_state(one, seeded_randomness(3))
    fill_state(two, seeded_randomness(3))
    assert torch.equal(torch.randn(100, generator=one), torch.randn(100, generator=two))


def test_losses_and_dropout_of_every_step_draw_from_states_that_no_seed_makes() -> None:
    states: list[Tensor] = []  # of the losses of real examples; the network is tried on random ones before
    network = nn.Sequential(nn.Linear(2, 1))

    def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        if x.abs().max() > 1:
            states.extend((rng.get_state(), torch.get_rng_state()))
        made: Tensor = network(x)
        return made[:, 0]

    objective = Objective(loss, torch.optim.SGD(network.parameters(), 0.1), network=network)
    data, before = Data(torch.full((4, 2), 2.0), torch.zeros(4)), torch.get_rng_state()
    use = DeclaredTraining(3, 4)
    for _ in range(2):
        trainer = DPSGDTrainer(1.0, 1.0, os_randomness(), [use])
        trainer.fit([objective], data, epochs=3, batch_size=4)
    assert torch.equal(torch.get_rng_state(), before)  # torch's own stream is as it was
    assert len(states) == 12
    assert not any(is_from_a_seed(state) for state in states)
    assert len({state.numpy().tobytes() for state in states}) == len(states)


def test_gaussian_noise_has_its_distribution_and_full_precision() -> None:
    for draws in (os_randomness(), seeded_randomness(1)):
        noise = draw_gaussian(draws, (100, 400))
        assert noise.dtype == torch.float64
        assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-6
        assert not torch.equal(noise, noise.float().double())
        assert draw_gaussian(draws).shape == ()


def test_gaussian_noise_is_composed_of_four() -> None:
    four = seeded_randomness(5).standard_normal((4, 3))
    assert torch.allclose(draw_gaussian(seeded_randomness(5), (3,)), torch.from_numpy(four.sum(0) / 2), atol=1e-15)


def test_dp_sgd_rounds_only_the_sum_of_gradient_and_noise() -> None:
    """A network of float64 shows it: noise of float32 would be a multiple of a 2⁻²⁴th of itself."""
    network = nn.Sequential(nn.Linear(50, 20)).double()

    def loss(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        made: Tensor = network(x)
        return made[:, 0] * 0

    objective = Objective(loss, torch.optim.SGD(network.parameters(), 0.0), network=network)
    trainer = DPSGDTrainer(1.0, 1.0, seeded_randomness(1), [DeclaredTraining(1, 4)])
    data = Data(torch.zeros(4, 50, dtype=torch.float64), torch.zeros(4))
    trainer.fit([objective], data, epochs=1, batch_size=4)
    noise = next(network.parameters()).grad
    assert noise is not None
    noise = noise * 4
    assert float((noise == noise.float().double()).double().mean()) < 0.01
    assert float(noise.std()) == pytest.approx(1, rel=0.1)


def test_dp_fedavg_noise_is_composed_too() -> None:
    """Sum and counts: the draws are those of `draw_gaussian`, in order."""
    clients = [ClientInfo(0, "linear", 5)]
    weights = {"w": torch.zeros(3, dtype=torch.float64)}
    clipped = NoisyClippedMean(
        {"classifier": Mean()}, clients, lambda info: Model(weights), 2.0, 3.0, seeded_randomness(9)
    )
    clipped.add(clients[0], Model(weights), 1.0, Model(weights))
    expected, draws = 6.0, seeded_randomness(9)
    assert torch.allclose(clipped.finish()["classifier"]["w"], expected * draw_gaussian(draws, (3,)))
    assert clipped.share_within(0.5) == pytest.approx(0.5 + 0.5 + 0.5 * float(draw_gaussian(draws)))
    assert math.isfinite(clipped.share_within(0.0))

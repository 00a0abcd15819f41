"""Noise that rounding would remove is refused where it is added, whoever chose the numbers."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genfed.config.reader import build_settings
from genfed.core.aggregate import ClientInfo, Mean
from genfed.core.client import Client, Slot
from genfed.core.errors import GenfedError, RecordError, StorageError, WithheldError
from genfed.core.phase import Phase, Reply
from genfed.core.privacy import DeclaredTraining
from genfed.core.task import Data, Weights
from genfed.privacy.distributed_noise import add_client_noise
from genfed.privacy.dp_fedavg import NoisyClippedMean
from genfed.privacy.dp_sgd import ADDED_AT_ONCE, DPSGDTrainer, plan_batches
from genfed.privacy.noise import LONGEST, SHORTEST, STEPS, check_clip_norm, check_noise, draw_noise, step_of
from genfed.privacy.per_example_gradients import parameters_of
from genfed.privacy.randomness import os_randomness
from genfed.privacy.settings import DPSGD, AdaptiveClipping, DPFedAvg
from genfed.training.fit import Objective, cross_entropy
from genfed.training.weights import Model
from tests.training.clients import client_of

GRID = 2.0**-24


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf, 5e-324])
def test_noise_that_is_none_is_refused(std: float) -> None:
    with pytest.raises(GenfedError, match=r"noise of standard deviation .* or rounding would remove it"):
        draw_noise(std, (2,), os_randomness(), largest=1.0)


def test_noise_must_be_well_above_the_steps_of_the_numbers() -> None:
    for largest in (1.0, 1e6, 3e-3):
        least = STEPS * math.ulp(largest)
        check_noise(least, largest)
        with pytest.raises(GenfedError, match="rounding would remove it"):
            check_noise(least * 0.99, largest)
    check_noise(STEPS * GRID, 1.0, GRID)
    for step in (GRID * 1.01, math.nan, math.inf):
        with pytest.raises(GenfedError, match="rounding would remove it"):
            check_noise(STEPS * GRID, 1.0, step)
    for largest in (math.nan, math.inf):
        with pytest.raises(GenfedError, match="rounding would remove it"):
            check_noise(1.0, largest)


def test_rounded_noise_has_the_probabilities_that_the_factor_promises() -> None:
    """Against exact cells of the normal distribution, within 6 standard deviations."""
    step = 1 / STEPS
    for place in np.arange(0, 6, 0.37):
        exact = 0.5 * (math.erfc((place - step / 2) / 2**0.5) - math.erfc((place + step / 2) / 2**0.5))
        assert exact == pytest.approx(step * math.exp(-(place**2) / 2) / (2 * math.pi) ** 0.5, rel=1 / 40_000)


def test_steps_of_numbers_are_those_of_their_format() -> None:
    assert step_of(torch.tensor([0.7, -5.0])) == 4 * torch.finfo(torch.float32).eps
    assert step_of(torch.tensor([4.0], dtype=torch.bfloat16)) == 4 * 2.0**-7
    assert step_of(torch.zeros(3)) == step_of(torch.zeros(0)) == 0
    assert step_of(torch.zeros(3, dtype=torch.bfloat16), 5.0) == 4 * 2.0**-7
    assert step_of(torch.tensor([-5.0]), 3.0) == 8 * torch.finfo(torch.float32).eps
    assert math.isnan(step_of(torch.tensor([1.0, math.inf])))


@pytest.mark.parametrize("clip", [0.0, 1.4e-45, SHORTEST / 2, LONGEST * 2, math.inf, math.nan])
def test_clipping_norms_are_bounded_in_settings_and_where_they_are_used(clip: float) -> None:
    with pytest.raises(GenfedError):
        check_clip_norm(clip)
    for kind, key in ((DPSGD, "max_grad_norm"), (DPFedAvg, "clip_norm")):
        with pytest.raises(GenfedError, match=rf"privacy\.{key} = "):
            build_settings(kind, {"noise_multiplier": 1.0, "delta": 1e-5, key: clip}, "privacy.")
    objective = linear()
    with pytest.raises(GenfedError, match="clipping norm"):
        private_fit(objective, *some(8, canary=False), clip, 1.0)


@pytest.mark.parametrize("noise", [1e-4, 1e7, math.inf, math.nan, -1.0])
def test_noise_multipliers_are_bounded(noise: float) -> None:
    with pytest.raises(GenfedError, match=r"privacy\.noise_multiplier = "):
        build_settings(DPSGD, {"noise_multiplier": noise, "delta": 1e-5}, "privacy.")


def test_an_adaptive_norm_stays_within_the_bounds() -> None:
    how = AdaptiveClipping(rate=1.0, quantile=0.5)
    assert how.next_clip(SHORTEST, 1.0) == SHORTEST
    assert how.next_clip(LONGEST, 0.0) == LONGEST


# DP-SGD.


def some(n: int, *, canary: bool) -> tuple[Tensor, Tensor]:
    """Examples that have the features 0 … 4; the canary alone has feature 5."""
    x = torch.zeros(n, 6)
    x[torch.arange(n), torch.arange(n) % 5] = 1.0
    if canary:
        x[0] = torch.tensor([0.0, 0, 0, 0, 0, 1])
    return x, torch.arange(n) % 2


def linear(rate: float = 1.0) -> Objective:
    layer = nn.Linear(6, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    network = nn.Sequential(layer)
    return Objective(cross_entropy(network), torch.optim.SGD(network.parameters(), rate), network=network)


def private_fit(objective: Objective, x: Tensor, y: Tensor, clip: float, noise: float, size: int = 8) -> Tensor:
    declared = DeclaredTraining(1, size)
    DPSGDTrainer(clip, noise, os_randomness(), [declared]).fit([objective], Data(x, y), epochs=1, batch_size=size)
    (weight, _) = parameters_of(objective)
    return weight.detach()[:, 5]


@pytest.mark.parametrize(("clip", "rate"), [(SHORTEST, 1e30), (SHORTEST, 1e-6), (1.0, 1e30), (1e6, 1e-30)])
def test_a_canary_moves_nothing_that_does_not_move_without_it(clip: float, rate: float) -> None:
    """The weights that only the canary has a gradient for are moved by the noise, and by it alone where it is large:
    whatever norm and learning rate a server chooses.
    """
    moved = {}
    for canary in (True, False):
        runs = [private_fit(linear(rate), *some(16, canary=canary), clip, 4.0) for _ in range(40)]
        moved[canary] = torch.stack(runs)
        assert bool(moved[canary].ne(0).all()) or rate < 1e-20, "there is noise on every weight, in every run"
    if rate > 1e-20:
        # Two batches of noise: √2·4·clip / 8 of the expected batch, times the rate.
        for weights in moved.values():
            assert float(weights.double().std()) == pytest.approx(rate * clip * 4 * 2**0.5 / 8, rel=0.3)  # 4 sd of 80


def test_a_site_s_noise_is_that_which_it_pays_for_at_the_smallest_norm() -> None:
    """The distribution of one released step, against the normal one (Kolmogorov and Smirnov's distance)."""
    layer = nn.Linear(2000, 2, bias=False)
    nn.init.zeros_(layer.weight)
    network = nn.Sequential(layer)
    objective = Objective(cross_entropy(network), torch.optim.SGD(network.parameters(), 1.0), network=network)
    x, y = torch.zeros(1, 2000), torch.zeros(1, dtype=torch.int64)
    DPSGDTrainer(SHORTEST, 0.5, os_randomness(), [DeclaredTraining(1, 1)]).fit(
        [objective], Data(x, y), epochs=1, batch_size=1
    )
    drawn = (layer.weight.detach().double().flatten() / (0.5 * SHORTEST)).sort().values.numpy()
    expected = np.array([0.5 * math.erfc(-value / 2**0.5) for value in drawn])
    assert np.abs(expected - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / 4000**0.5  # 1 run in 1000


def test_many_examples_leave_the_noise_as_it_is() -> None:
    """In float32 a sum of 10⁷ and its noise would have steps of 1."""
    assert 10**7 * torch.finfo(torch.float32).eps > 1
    check_noise(1.0, 1e7)
    assert ADDED_AT_ONCE * torch.finfo(torch.float32).eps < 1e-3


def test_what_is_refused_is_refused_before_an_example_is_seen() -> None:
    seen: list[int] = []

    class Watched(Data):
        def __getitem__(self, rows: Any) -> Data:
            seen.append(1)
            return super().__getitem__(rows)

    trainer = DPSGDTrainer(1.4e-45, 0.45, os_randomness(), [DeclaredTraining(1, 1)])
    with pytest.raises(GenfedError, match="clipping norm"):
        trainer.fit([linear()], Watched(*some(8, canary=True)), epochs=1, batch_size=1)
    assert not seen
    assert plan_batches(DeclaredTraining(1, 1), 8) == (1 / 8, 8)


# DP-FedAvg, by the server and by the clients.


def test_the_server_adds_no_noise_that_is_none() -> None:
    info, sent = ClientInfo(0, "linear", 1), Model({"w": torch.zeros(3)})
    for clip, noise in ((1.0, 1e-20), (5e-324, 1.0), (1.0, math.inf)):
        fold = NoisyClippedMean({"classifier": Mean()}, [info], lambda info: sent, clip, noise, os_randomness())
        fold.add(info, Model({"w": torch.ones(3)}), 1.0, sent)
        with pytest.raises(GenfedError, match="rounding would remove it"):
            fold.finish()


@dataclass(frozen=True)
class Both:
    body: Weights
    number: float


PLACE = Slot("place", Both)


class Kept:
    """What a client keeps."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def get(self, slot: Slot[Any]) -> Any:
        return self.records[-1] if self.records else None

    def put(self, slot: Slot[Any], record: Any) -> None:
        self.records.append(record)


def noisy(
    sent: Both, upload: Both | BaseException, clip: float = 1.0, std: float = 0.5, events: Any = None, **options: Any
) -> Both:
    """What a client uploads; `events` takes what it does."""
    events = [] if events is None else events

    def work(client: Client, given: Both) -> Reply[Both]:
        events.append("work")
        if isinstance(upload, BaseException):
            raise upload
        client.storage.put(PLACE, upload)
        return Reply(upload, metrics={"loss": 1.0})

    phase = Phase[Any]("train", lambda s, state, r: state, lambda *a: sent, work, {"body": Mean(), "number": Mean()})
    drawn = add_client_noise(
        phase,
        clip=clip,
        std=std,
        draws=lambda client: os_randomness(),
        step=GRID,
        charge=lambda: events.append("charge"),
        **options,
    )
    assert drawn.work is not None
    kept = Kept()
    client = client_of(Data(torch.zeros(1, 1, 2, 2), torch.zeros(1).long()), 1)
    reply = drawn.work(replace(client, storage=kept), sent)
    events.extend("store" for _ in kept.records)
    assert not reply.metrics
    result: Both = reply.upload
    return result


FINE = Both({"w": torch.zeros(3)}, 0.0)


@pytest.mark.parametrize(
    ("sent", "upload"),
    [
        # The server sends numbers at which float32 has steps far above the noise, so that only signs would remain.
        (Both({"w": torch.full((3,), 2.0**30)}, 0.0), Both({"w": torch.full((3,), 2.0**30)}, 0.0)),
        (Both({"w": torch.full((3,), 8.0, dtype=torch.bfloat16)}, 0.0), Both({"w": torch.full((3,), 8.0)}, 0.0)),
        (Both({"w": torch.zeros(3)}, 2.0**52), Both({"w": torch.zeros(3)}, 2.0**52)),
        # Zeros have no steps, but the upload is rounded to their format: at 1 to 2⁻⁷ and 2⁻¹⁰.
        (Both({"w": torch.zeros(3, dtype=torch.bfloat16)}, 0.0), Both({"w": torch.ones(3)}, 0.0)),
        (Both({"w": torch.zeros(3, dtype=torch.float16)}, 0.0), Both({"w": torch.ones(3)}, 0.0)),
    ],
)
def test_a_client_adds_no_noise_that_the_sent_numbers_swallow(sent: Both, upload: Both) -> None:
    events: list[str] = []
    with pytest.raises(GenfedError, match="rounding would remove it"):
        noisy(sent, upload, std=0.1, events=events)
    assert not events, "what was sent is checked before anything is charged, and before any example is used"
    noisy(FINE, FINE, events=events)
    assert events == ["charge", "work", "store"]


@pytest.mark.parametrize(
    "sent",
    [
        Both({"w": torch.tensor([0.0, math.nan])}, 0.0),
        Both({"w": torch.tensor([0.0, -math.inf])}, 0.0),
        Both({"w": torch.zeros(2)}, math.nan),
        Both({"w": torch.zeros(2)}, math.inf),
        Both({"w": torch.tensor([0.0, -995.0])}, 0.0),
        Both({"w": torch.zeros(2)}, 995.0),
        Both({"w": torch.tensor([65500.0], dtype=torch.float16)}, 0.0),
    ],
)
def test_a_client_does_not_work_on_numbers_whose_uploads_may_not_be_summed(sent: Both) -> None:
    """A failure after the work could depend on an example."""
    for std in (0.5, 0.0):
        events: list[str] = []
        with pytest.raises(GenfedError, match="could not be added up") as caught:
            noisy(sent, FINE, clip=90.0, std=std, events=events, limit=1000.0)
        assert not events
        assert not isinstance(caught.value, WithheldError)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e200, 1e300])
def test_an_update_that_is_not_finite_counts_as_nothing(number: float) -> None:
    """Whether it is finite depends on the examples: a server can send weights with which a lit pixel makes it so."""
    updates = [
        Both({"w": torch.full((500,), number, dtype=torch.float64)}, 0.0),
        Both({"w": torch.zeros(500, dtype=torch.float64)}, number),
    ]
    for upload in updates:
        events: list[str] = []
        sent = Both({"w": torch.full((500,), 7.0, dtype=torch.float64)}, 7.0)
        result = noisy(sent, upload, clip=1.0, std=0.5, events=events)
        noise = result.body["w"] - 7
        assert noise.abs().max() < 5
        assert 0.4 < noise.std() < 0.6
        assert abs(result.number - 7) < 5
        assert events == ["charge", "work"], "and it is not stored, or every later round would be like it"


@pytest.mark.parametrize(
    "failure",
    [GenfedError("label 3 is rare"), ValueError("patient 17"), MemoryError(), SystemExit(3), RecordError("patient 17")],
)
def test_what_fails_on_examples_has_one_text(failure: BaseException) -> None:
    events: list[str] = []
    with pytest.raises(WithheldError) as caught:
        noisy(FINE, failure, events=events)
    assert str(caught.value) == str(WithheldError())
    assert events == ["charge", "work"]


def test_a_client_that_lost_its_records_says_so() -> None:
    """The run must stop, and examples have no part in it."""
    with pytest.raises(StorageError, match="lost"):
        noisy(FINE, StorageError("lost"))


def test_a_client_adds_no_noise_that_the_steps_of_sums_swallow() -> None:
    noisy(FINE, FINE, clip=1e-6, std=STEPS * GRID)
    for std in (STEPS * GRID / 2, 1e-12):
        with pytest.raises(GenfedError, match="rounding would remove it"):
            noisy(FINE, FINE, clip=1e-6, std=std)


def test_a_client_adds_one_draw_to_one_number() -> None:
    """A server that sends one number for many would have one draw added to all of them."""
    with pytest.raises(WithheldError) as caught:
        noisy(Both({"w": torch.zeros(1)}, 0.0), FINE)
    assert "a tensor of shape (1,) where it uploads one of shape (3,)" in str(caught.value.__cause__)
    many = noisy(replace(FINE, body={"w": torch.zeros(500)}), replace(FINE, body={"w": torch.zeros(500)}))
    # Draws of single precision are alike now and then by chance; one draw for all would leave one value.
    assert len(set(many.body["w"].tolist())) > 490

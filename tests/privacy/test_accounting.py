"""ε against what can be known without Opacus: exact formulas, and integrals of our own."""

import itertools
import logging
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import log_ndtr, logsumexp

from genfed.config.reader import read_config
from genfed.core.errors import GenfedError
from genfed.experiment import compatibility
from genfed.experiment.run_folder import RunFolder
from genfed.privacy import accounting
from genfed.privacy.accounting import UNKNOWN_COST, Mechanism, account, epsilon, fits_budget, noise_for
from genfed.privacy.plan import PrivacyPlan, check_reported, limit_cost
from genfed.privacy.settings import DPSGD
from genfed.report.privacy_guarantees import describe_guarantees
from tests.conftest import start, tiny


def gaussian_epsilon(noise: float, steps: int, delta: float) -> float:
    """ε of the Gaussian mechanism, exactly: Balle and Wang, arXiv 1805.06530, Theorem 8; n steps are one with σ/√n."""
    mu = math.sqrt(steps) / noise

    def excess(e: float) -> float:
        return math.exp(log_ndtr(mu / 2 - e / mu)) - math.exp(e + log_ndtr(-mu / 2 - e / mu)) - delta

    return float(brentq(excess, 0, mu * mu / 2 + 40 * mu + 10)) if excess(0) > 0 else 0.0


def one_step_delta(noise: float, rate: float, e: float) -> float:
    """δ at ε of one step on a Poisson sample, exactly: the larger hockey-stick divergence of the two directions between
    N(0, σ²) and the mixture (1 − q) N(0, σ²) + q N(1, σ²), split where their ratio is e^±ε.
    """

    def both(z: float) -> tuple[float, float]:
        above, shifted = math.exp(log_ndtr(-z / noise)), math.exp(log_ndtr((1 - z) / noise))
        return above, (1 - rate) * above + rate * shifted

    def place(ratio: float) -> float:  # where (1 − q) + q exp((2z − 1) / 2σ²) = ratio
        return noise**2 * math.log((ratio - 1 + rate) / rate) + 0.5

    alone, mixed = both(place(math.exp(e)))
    removed = mixed - math.exp(e) * alone
    if math.exp(-e) <= 1 - rate:
        return removed
    alone, mixed = both(place(math.exp(-e)))
    return max(removed, (1 - alone) - math.exp(e) * (1 - mixed))


def divergence(noise: float, rate: float, order: float) -> float:
    """Rényi divergence of one step, by adding up the integral: Mironov, Talwar, Zhang, arXiv 1908.10530, Eq. 2."""
    z = np.arange(-20 * noise, 20 * noise + 1.1 * order, noise / 8)
    density = -(z**2) / (2 * noise**2) - math.log(noise * math.sqrt(2 * math.pi))
    ratio = np.logaddexp(np.log1p(-rate), np.log(rate) + (2 * z - 1) / (2 * noise**2))
    return float(logsumexp(density + order * ratio) + math.log(noise / 8)) / (order - 1)


NOISES = st.floats(0.4, 100)
DELTAS = st.floats(-9, -1).map(lambda power: 10**power)


@given(NOISES, st.integers(1, 2_000), DELTAS)
@settings(max_examples=12)
def test_epsilon_is_that_of_the_gaussian_mechanism(noise: float, steps: int, delta: float) -> None:
    exact, cost = gaussian_epsilon(noise, steps, delta), account([(noise, 1.0, steps)], delta, "prv")
    by_rdp = epsilon([(noise, 1.0, steps)], delta, "rdp")
    slack = 1e-6 * exact
    assert exact - slack <= by_rdp
    assert exact - slack <= cost.epsilon
    if cost.accountant == "prv":
        assert cost.epsilon <= exact + 0.03 + 1e-3 * exact  # its error of 0.01, and that of δ


@given(st.floats(0.5, 5), st.floats(1e-4, 0.5), st.floats(-8, -2).map(lambda power: 10**power))
@settings(max_examples=12)
def test_epsilon_of_one_step_bounds_the_exact_one(noise: float, rate: float, delta: float) -> None:
    found = epsilon([(noise, rate, 1)], delta, "prv")
    assert one_step_delta(noise, rate, found) <= delta
    assert one_step_delta(noise, rate, epsilon([(noise, rate, 1)], delta, "rdp")) <= delta
    if found > 0.04:  # no more than its error above the exact one
        assert one_step_delta(noise, rate, found - 0.04) > delta * 0.9


@given(st.floats(0.5, 20), st.floats(1e-5, 0.9), st.integers(1, 1000), st.floats(-9, -2).map(lambda power: 10**power))
@settings(max_examples=12)
def test_rdp_is_that_of_our_own_integral(noise: float, rate: float, steps: int, delta: float) -> None:
    orders = [*(1 + x / 10 for x in range(1, 100)), *range(12, 64), *range(64, 257, 8), 384, 512, 1024]
    ours = min(  # Balle et al., arXiv 1905.09982, Theorem 21
        steps * divergence(noise, rate, a) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1)
        for a in orders
    )
    assert epsilon([(noise, rate, steps)], delta, "rdp") == pytest.approx(max(0.0, ours), rel=1e-5, abs=1e-6)


HUGE: dict[str, list[Mechanism]] = {
    "little noise": [(0.1, 1 / 3, 30)],
    "least noise": [(1e-3, 1.0, 10**9)],
    "many steps": [(1.0, 1e-9, 10**9)],
    "both": [(0.5, 0.5, 10**6)],
    "less noise than any": [(1e-200, 0.5, 3)],
    "most noise": [(1e300, 0.01, 10**9)],
    "many mechanisms": [(10.0 + i, 1.0, 1) for i in range(accounting.PRV_MECHANISMS + 1)],
}


@pytest.mark.parametrize("mechanisms", HUGE.values(), ids=HUGE)
def test_no_mechanism_needs_much_memory(mechanisms: list[Mechanism]) -> None:
    """Measured where it is allocated: numpy reports its arrays."""
    epsilon([(1.0, 0.5, 1)], 1e-5, "prv")  # imports
    tracemalloc.start()
    try:
        cost = account(mechanisms, 1e-5, "prv")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 50e6
    if math.isfinite(cost.epsilon):
        assert cost.accountant == "rdp"
        assert "PRV" in cost.note
        assert cost.epsilon == epsilon(mechanisms, 1e-5, "rdp")
    else:
        assert mechanisms == HUGE["less noise than any"]


def test_the_largest_mesh_stays_within_its_bytes() -> None:
    """A mesh near the limit is computed, and its peak is what was estimated or less."""
    mechanisms = [(20.0, 1.0, 5_000)]
    tracemalloc.start()
    try:
        cost = account(mechanisms, 1e-6, "prv")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert cost.accountant == "prv"
    assert most < 1.2 * accounting.PRV_BYTES
    assert gaussian_epsilon(20.0, 5_000, 1e-6) <= cost.epsilon


@pytest.mark.parametrize("steps", [1_000, 30_000])
@pytest.mark.parametrize("power", [8, 9, 10, 11, 12, 13, 15, 100, 320])
def test_a_small_delta_gives_no_epsilon_that_is_too_small(steps: int, power: int) -> None:
    """Opacus's PRV gives 11.57 for 11.99 with σ = 200, 100,000 steps and δ = 1e-12: the sums of its FFT are rounded."""
    delta = float(f"1e-{power}")
    cost = account([(math.sqrt(steps) * 0.63, 1.0, steps)], delta, "prv")
    if power < 100:  # beyond that the exact formula underflows as well
        assert cost.epsilon >= gaussian_epsilon(math.sqrt(steps) * 0.63, steps, delta)
    assert cost.accountant == ("prv" if power <= 9 else "rdp") or 9 < power < 12


def test_more_noise_and_fewer_steps_never_cost_more() -> None:
    """Also where PRV hands over to RDP; 0.02 is the error of PRV."""
    costs = [epsilon([(noise, 0.02, 2_000)], 1e-5, "prv") for noise in (0.3, 0.4, 0.5, 0.7, 1.0, 2.0)]
    assert all(later <= before + 0.02 for before, later in itertools.pairwise(costs))
    assert epsilon([(0.3, 0.02, 2_000)], 1e-5, "prv") > 1


def test_noise_is_found_where_little_noise_would_need_a_huge_mesh() -> None:
    budget = DPSGD(epsilon=8.0, delta=1e-5)
    noise = noise_for([(1.0, 3_000)], budget)
    assert gaussian_epsilon(noise, 3_000, 1e-5) <= 8.0 < gaussian_epsilon(noise / 1.02, 3_000, 1e-5)
    assert fits_budget([(noise, 1.0, 3_000)], budget)


def test_infinite_only_without_noise() -> None:
    assert epsilon([UNKNOWN_COST], 1e-5, "prv") == math.inf
    assert epsilon([(1e-3, 1.0, 1)], 1e-5, "prv") < math.inf


LITTLE: dict[str, Any] = {"kind": "dp_sgd", "noise_multiplier": 0.05, "delta": 1e-3}
FEW: dict[str, Any] = {"clients": 2, "architectures": ["linear"]}


def test_another_accountant_is_warned_of_before_training_and_named_in_the_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "genfed"):
        report = start(tiny("fedavg", federation=FEW, privacy=LITTLE), tmp_path / "run")
    warnings = [record.message for record in caplog.records if "privacy.accountant" in record.message]
    assert len(warnings) == 1
    assert 'privacy.accountant = "prv": its ε is too large for PRV, so the ε of fedavg comes from RDP' in warnings[0]
    found = report.trials[0].protection
    assert found is not None
    assert (found.accountant, found.accountant_note) == ("rdp", "its ε is too large for PRV")
    assert (
        "RDP accountant of Opacus (the other one was set: its ε is too large for PRV)" in describe_guarantees(report)[0]
    )


def test_the_warning_comes_before_anything_is_trained(caplog: pytest.LogCaptureFixture) -> None:
    from genfed.config.architectures import Architectures
    from genfed.experiment import partitioning
    from genfed.experiment.inputs import load_data

    for kind, check in (("dp_sgd", "example"), ("dp_fedavg", "client")):
        config = read_config(tiny("fedavg", federation=FEW, privacy=LITTLE | {"kind": kind, "noise_multiplier": 0.02}))
        shards = partitioning.partition_data(config, load_data(config), 0)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "genfed"):
            if check == "example":
                compatibility.check_example_privacy(config, shards.task, shards.clients, Architectures().new)
            else:
                compatibility.check_client_privacy(config, shards.clients, 0)
        assert "the ε of fedavg comes from RDP" in caplog.text


def trial_at_server(privacy: dict[str, Any], tmp_path: Path) -> Any:
    from genfed.config.architectures import Architectures
    from genfed.experiment import partitioning
    from genfed.experiment.inputs import load_data
    from genfed.experiment.trial import new_trial

    config = read_config(tiny("fedavg", federation=FEW, privacy={"kind": "dp_sgd", "delta": 1e-3} | privacy))
    shards = partitioning.partition_data(config, load_data(config), 0)
    folder = RunFolder(tmp_path / "run")
    return new_trial(config, "fedavg", 0, folder=folder, shards=shards, new_network=Architectures().new)


def test_a_site_is_believed_only_what_it_can_have_spent(tmp_path: Path) -> None:
    trial = trial_at_server({"noise_multiplier": 1.0}, tmp_path)
    plan = PrivacyPlan({0: 1.0, 1: 1.0})

    def believe(said: list[Mechanism]) -> None:
        check_reported(said, plan, trial.privacy, trial.schedule, 0)

    (planned,) = limit_cost(trial.privacy, trial.schedule, 0)
    assert planned == (1.0, 0.2, 10)  # 40 examples in batches of 8, two rounds
    believe([planned])
    believe([(1.0, 0.2, 35)])  # rounds that were repeated
    believe([])
    for wrong in ((0.5, 0.2, 10), (1.0, 0.25, 10), (1e-3, 1.0, 1)):
        with pytest.raises(GenfedError, match=r"it reports a noise multiplier of .*, which is not planned"):
            believe([planned, wrong])


def test_a_cost_without_a_bound_is_not_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that does not report its cost, in a method whose rounds are not known: no ε is better than 0."""
    trial = trial_at_server({"noise_multiplier": 1.0}, tmp_path)
    cls: Any = type(trial.schedule)
    open_ended: Callable[[Any], list[Any]] = lambda schedule: [object()]  # noqa: E731
    monkeypatch.setattr(cls, "open_ended_phases", open_ended)
    assert epsilon(limit_cost(trial.privacy, trial.schedule, 0), 1e-3, "prv") == math.inf

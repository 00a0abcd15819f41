"""A generator that learnt few examples by heart betrays them by its losses; one that never saw them does not."""

from typing import Any

import pytest

from genfed.audits.audit import Case, NotPossible
from genfed.audits.findings import Findings
from genfed.audits.membership_generator import MembershipGenerator
from genfed.core.rng import stream
from genfed.core.task import Data
from genfed.generators.generator import uploaded_weights
from genfed.methods.fedavg import FedAvg
from genfed.methods.gefl import GeFL, GeFLState
from genfed.training.fit import fit
from tests.audits.cases import case, drawn, task
from tests.conftest import TINY_GENERATORS

SMALL: dict[str, Any] = {"members": 60, "draws": 2, "planted": 30, "planted_steps": 150}


def method(kind: str, **more: Any) -> GeFL:
    from genfed.config import registry

    chosen: dict[str, Any] = {key: value for key, value in TINY_GENERATORS[kind].items() if key != "kind"} | more
    return GeFL(generator=registry.find_class(registry.GENERATORS, kind)(**chosen))


def trained(kind: str, data: Data | None, epochs: int = 200, **more: Any) -> Case:
    """A case whose generator was trained on these; None: on nothing."""
    gefl = method(kind, **more)
    network = gefl.generator.new(task(), stream(0, "weights"))
    if data:
        fit(network.train().objectives(), data, epochs=epochs, batch_size=30, rng=stream(0, "fit"))
    return case(train=60, held_out=160, seed=1, method=gefl, state=GeFLState(uploaded_weights(network), {}))


def verdicts(found: Findings) -> list[str]:
    return [reading.verdict for reading in found.readings]


def test_what_was_learnt_by_heart_is_found() -> None:
    found = MembershipGenerator(**SMALL).examine(trained("cvae", drawn(60, "train"), width=16).as_seen(("state",)))
    assert verdicts(found) == ["leak"], found
    assert found.sizes["members"] == found.sizes["non-members"] == 30


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("cvae", {"width": 16}),
        ("dcgan", {"learning_rate": 5e-3, "discriminator_width": 32}),
        ("ddpm", {"learning_rate": 5e-3, "width": 16, "levels": 1}),
    ],
)
def test_a_generator_of_others_is_silent_and_the_planted_leak_is_found(kind: str, more: dict[str, Any]) -> None:
    audit = MembershipGenerator(**SMALL, times=(0.5,))
    found = audit.examine(trained(kind, drawn(60, "others"), epochs=20, **more).as_seen(("state",)))
    assert verdicts(found) == ["no leak found"], found


def test_what_it_cannot_do() -> None:
    audit = MembershipGenerator()
    with pytest.raises(NotPossible, match="keep_encoder = false"):
        audit.examine(trained("cvae", None, keep_encoder=True))
    with pytest.raises(NotPossible, match="keep_discriminator = false"):
        audit.examine(trained("dcgan", None, keep_discriminator=True))
    with pytest.raises(NotPossible, match="toy trains no generator"):
        audit.examine(case(method=FedAvg(), state=None))


def test_every_chosen_step_is_an_attack() -> None:
    audit = MembershipGenerator(**SMALL | {"planted_steps": 1}, times=(0.0, 0.25, 0.99))
    found = audit.examine(trained("ddpm", None))
    assert [r.attack for r in found.readings] == [f"denoising loss at step {t} of 4" for t in (0, 1, 3)]


def test_a_generator_that_diverged_is_not_read() -> None:
    toy = trained("cvae", None)
    broken = {name: value / 0 * 0 for name, value in toy.state.generator.items()}
    with pytest.raises(NotPossible, match="not finite"):
        MembershipGenerator(**SMALL).examine(
            case(train=60, held_out=160, method=toy.method, state=GeFLState(broken, {}))
        )

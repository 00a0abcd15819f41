"""How a synthesizer's generator is fitted to silos: sums, means of networks, or each alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from genfed import GenfedError
from genfed.artifacts.row_fitting import Averaging, fit_alone, fit_together
from genfed.artifacts.synthesizer import Synthesizer
from genfed.core.rng import stream
from genfed.generators.any_order import AnyOrder
from genfed.generators.cart import CART
from genfed.training.fit import fit
from tests.artifacts.test_synthesizer import call
from tests.generators.rows import TASK, draw_table

QUICK = {"rounds": 2, "epochs": 1, "batch_size": 32}


def make_silos() -> dict[str, pd.DataFrame]:
    rng, rows = np.random.default_rng(0), 400
    sex = rng.choice(["m", "f"], rows)
    ill = np.where(rng.random(rows) < np.where(sex == "m", 0.2, 0.7), "yes", "no")
    weight = np.where(ill == "yes", 90, 70) + rng.integers(-5, 6, rows)
    table = pd.DataFrame({"age": rng.integers(20, 60, rows), "sex": sex, "weight": weight, "ill": ill})
    return {"north": table[:250], "south": table[250:]}


@pytest.mark.parametrize(
    "chosen",
    [
        {"generator": "cart"},
        {"generator": "mixture", "pooled": True, "settings": {"components": 3}},
        {"generator": "any_order", "training": QUICK},
        {"generator": "any_order", "training": QUICK, "pooled": True},
    ],
    ids=str,
)
def test_a_synthesizer_draws_what_it_is_asked_for_and_is_saved(chosen: dict[str, Any], tmp_path: Path) -> None:
    silos, steps = make_silos(), list[tuple[int, int]]()
    synth = Synthesizer(**chosen, label="ill").fit(silos, notify=lambda done, of: steps.append((done, of)))
    assert steps == [(1, 2), (2, 2)] or chosen["generator"] == "mixture"
    drawn = synth.sample(200)
    real = pd.concat(silos.values())
    assert abs((drawn["ill"] == "yes").mean() - (real["ill"] == "yes").mean()) < 0.1
    asked = synth.sample(50, where={"sex": "f", "weight": (80, 95)})
    assert set(asked["sex"]) == {"f"}
    assert asked["weight"].between(80, 95).all()
    assert np.isfinite(synth.score_samples(real[:20])).all()
    synth.save(tmp_path / "ill.synth")
    pd.testing.assert_frame_equal(Synthesizer.load(tmp_path / "ill.synth").sample(200), drawn)
    again = Synthesizer(**chosen, label="ill").fit(silos)
    pd.testing.assert_frame_equal(again.sample(200), drawn)


def test_trees_keep_what_depends_on_each_other() -> None:
    drawn = Synthesizer("cart", label="ill").fit(make_silos()).sample(1000)
    means = drawn.groupby("ill")["weight"].mean()
    assert means["yes"] - means["no"] == pytest.approx(20, abs=1)


@pytest.mark.parametrize("generator", ["any_order", "cart"])
def test_columns_that_belong_together_have_combinations_of_the_rows(generator: str) -> None:
    silos = {name: rows.assign(code=rows["sex"].map({"m": "1", "f": "2"})) for name, rows in make_silos().items()}
    chosen: dict[str, Any] = {"settings": {"together": [["sex", "code"]]}, "training": QUICK, "categorical": ("code",)}
    drawn = Synthesizer(generator, label="ill", **chosen).fit(silos).sample(500)
    assert (drawn["sex"].map({"m": "1", "f": "2"}) == drawn["code"].astype(str)).all()


def test_a_round_with_one_silo_is_local_training() -> None:
    generator, data = AnyOrder(width=8), draw_table(100)[0]
    found = fit_together(
        generator, TASK, [data], Averaging(rounds=1, batch_size=16), seed=4, notify=lambda done, of: None
    )
    network = generator.new(TASK, stream(4, "generator"))
    fit(network.objectives(), data, epochs=1, batch_size=16, rng=stream(4, "train", 0, 0))
    expected = network.state_dict() | {"prior": torch.bincount(data.y) / 100}
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_silos_count_by_their_rows() -> None:
    generator, silos = AnyOrder(width=8), [draw_table(count, seed=count)[0] for count in (90, 30)]
    once = Averaging(rounds=1, batch_size=16)
    found = fit_together(generator, TASK, silos, once, seed=4, notify=lambda done, of: None)
    total = torch.zeros(8)
    for place, data in enumerate(silos):
        network = generator.new(TASK, stream(4, "generator"))
        fit(network.objectives(), data, epochs=1, batch_size=16, rng=stream(4, "train", 0, place))
        total += network.second.bias.detach() * len(data) / 120
    torch.testing.assert_close(found["second.bias"], total)


def test_silos_alone_know_nothing_of_each_other() -> None:
    silos = [draw_table(count, seed=count)[0] for count in (90, 30)]
    for generator in (CART(), AnyOrder(width=8)):
        both, other = (
            fit_alone(generator, TASK, some, Averaging(rounds=1), seed=4, notify=lambda done, of: None)
            for some in (silos, [silos[0], draw_table(50)[0]])
        )
        assert all(torch.equal(value, other[name]) for name, value in both.items() if name.startswith("0."))


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(GenfedError, match="CART of several silos can be pooled, and not be fitted together"):
        fit_together(CART(), TASK, [draw_table(50)[0]], Averaging(), seed=4, notify=lambda done, of: None)
    with pytest.raises(GenfedError, match=r"training\.rounds"):
        Synthesizer("any_order", training={"rounds": 0}).fit(make_silos())
    with pytest.raises(GenfedError, match="mixture, tan, any_order and cart are allowed"):
        Synthesizer("cvae").fit(make_silos())


def test_the_command_line_sets_rounds_and_pools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for name, rows in make_silos().items():
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
        files.append(str(tmp_path / f"{name}.csv"))
    words = ["synth", "fit", *files, "--label", "ill", "--generator", "any_order", "--out", str(tmp_path / "ill.synth")]
    assert call(*words, "--training", "rounds=1", "--training", "batch_size=64", "--pooled") == 0
    made = Synthesizer.load(tmp_path / "ill.synth").get_params()
    assert (made["training"], made["pooled"]) == ({"rounds": 1, "batch_size": 64}, True)
    capsys.readouterr()
    assert call(*words, "--training", "rounds") == 2
    assert "--training rounds: KEY=VALUE is allowed" in capsys.readouterr().err

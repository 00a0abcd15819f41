"""Synthetic tables as users make them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

import genfed
from genfed import GenfedError, Synthesizer
from genfed.artifacts.silos import encode_silo, read_frame
from genfed.artifacts.synthesizer import _Saved
from genfed.cli.main import main
from genfed.core.record import load, save

MIXTURE: dict[str, Any] = {"components": 4, "em_steps": 3}


def people(n: int = 300, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    sex = rng.choice(["f", "m"], n)
    age = rng.integers(18, 90, n)
    return pd.DataFrame(
        {
            "patient_id": np.arange(n) + 1000 * seed,
            "age": age,
            "weight": np.where(rng.random(n) < 0.2, np.nan, (50 + age / 3 + rng.normal(size=n)).round(1)),
            "sex": pd.Categorical(sex),
            "smoker": rng.random(n) < 0.3,
            "seen": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 100, n), unit="D"),
            "note": [f"text {seed} {i}" for i in range(n)],
            "ill": np.where((age > 50) ^ (rng.random(n) < 0.1), "yes", "no"),
        }
    )


@pytest.fixture(scope="module")
def fitted() -> Synthesizer:
    return Synthesizer("mixture", label="ill", settings=MIXTURE).fit({"north": people(), "south": people(200, 1)})


def test_rows_have_the_columns_and_types_of_the_first_silo(fitted: Synthesizer) -> None:
    real, drawn = people(), fitted.sample(500)
    assert list(drawn.columns) == list(real.columns)
    assert [str(kind) for kind in drawn.dtypes] == [str(kind) for kind in real.dtypes]
    assert drawn["age"].between(18, 90).all()
    assert drawn["weight"].isna().mean() == pytest.approx(0.2, abs=0.08)
    assert (drawn["weight"].dropna().round(1) == drawn["weight"].dropna()).all()
    assert set(drawn["ill"]) == {"no", "yes"}


def test_ids_are_made_anew(fitted: Synthesizer) -> None:
    drawn = fitted.sample(50)
    assert drawn["patient_id"].tolist() == list(range(1, 51))
    assert drawn["note"].tolist()[:2] == ["note-1", "note-2"]
    assert not set(drawn["note"]) & set(people()["note"])


def test_a_condition_holds_in_every_row(fitted: Synthesizer) -> None:
    where = {"age": (30, 40), "sex": "f", "smoker": True, "ill": "yes", "seen": ("2020-02-01", "2020-02-20")}
    drawn = fitted.sample(200, where=where)
    assert drawn["age"].between(30, 40).all()
    assert (drawn["sex"] == "f").all()
    assert drawn["smoker"].all()
    assert (drawn["ill"] == "yes").all()
    assert drawn["seen"].between(pd.Timestamp("2020-02-01"), pd.Timestamp("2020-02-20")).all()
    assert fitted.sample(50, where={"weight": None})["weight"].isna().all()
    assert fitted.sample(50, where={"age": (None, 30)})["age"].le(30).all()
    assert set(fitted.sample(50, where={"sex": ["f", "m"]})["sex"]) == {"f", "m"}


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ({"size": 1}, "there is no column 'size'; age, weight"),
        ({"sex": "x"}, "column 'sex' has no category 'x'; 'f', 'm' are allowed"),
        ({"ill": "perhaps"}, "column 'ill' has no category 'perhaps'; 'no', 'yes' are allowed"),
        ({"age": (40, 30)}, r"column 'age': \(40, 30\); a number, a pair"),
        ({"age": "old"}, "column 'age': 'old'; a number, a pair"),
        ({"age": None}, "column 'age' has no missing value"),
        ({"age": 500}, "no row fulfils the condition"),
    ],
)
def test_wrong_conditions(fitted: Synthesizer, where: dict[str, Any], error: str) -> None:
    with pytest.raises(GenfedError, match=error):
        fitted.sample(5, where=where)


def test_a_file_draws_the_same_rows(fitted: Synthesizer, tmp_path: Path) -> None:
    fitted.save(tmp_path / "ill.synth")
    again = Synthesizer.load(tmp_path / "ill.synth")
    pd.testing.assert_frame_equal(again.sample(40), fitted.sample(40))
    assert not fitted.sample(40).equals(fitted.sample(40, draw=1))
    text = (tmp_path / "ill.synth").read_bytes()
    assert b"text 0 1" not in text, "no row is in the file"
    (tmp_path / "bad.synth").write_bytes(text[:200])
    with pytest.raises(GenfedError, match=r"not a file that Synthesizer\.save wrote"):
        Synthesizer.load(tmp_path / "bad.synth")


@pytest.mark.parametrize("generator", ["mixture", "tan"])
def test_silos_together_are_one_table(generator: str) -> None:
    """Whoever has which row: the weights have the same bits."""
    rows = people(160).drop(columns=["note", "patient_id"])
    made = Synthesizer(
        generator, label="ill", settings=MIXTURE if generator == "mixture" else None, least_rows=1, least_silos=1
    )
    by_label = {"a": rows[rows["ill"] == "yes"], "b": rows[rows["ill"] == "no"]}
    one, two = clone(made).fit(rows).weights_, clone(made).fit(by_label).weights_
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_settings_as_in_scikit_learn() -> None:
    made = Synthesizer("tan", label="ill", least_rows=3)
    assert clone(made).get_params() == made.get_params()
    rows = people(60)
    first = made.fit(rows).sample(10)
    pd.testing.assert_frame_equal(made.set_params(random_state=0).fit(rows).sample(10), first)
    assert not made.set_params(random_state=1).fit(rows).sample(10).equals(first)


def test_scores_tell_outliers(fitted: Synthesizer) -> None:
    rows = people(100, 5)
    strange = rows.assign(age=18, weight=79.0, ill="yes")
    assert fitted.score_samples(rows).mean() > fitted.score_samples(strange).mean() + 1
    assert fitted.score_samples(rows.drop(columns="ill")).shape == (100,)


def test_values_of_few_rows_are_not_in_the_draws() -> None:
    rows = people(200).assign(town=["Bonn"] * 100 + ["Ulm"] * 97 + ["Zell", "Zell", "Zell"])
    drawn = Synthesizer("tan", label="ill").fit({"a": rows[:100], "b": rows[100:]}).sample(400)
    assert set(drawn["town"]) == {"(rare)"}, "each town is at one silo only"
    drawn = Synthesizer("tan", label="ill", least_silos=1).fit({"a": rows[:100], "b": rows[100:]}).sample(400)
    assert set(drawn["town"]) == {"Bonn", "Ulm", "(rare)"}


@pytest.mark.parametrize(
    ("arguments", "silos", "error"),
    [
        ({"generator": "cvae"}, {"a": people(30)}, "generator = 'cvae': no generator of rows"),
        ({"settings": {"components": 0}}, {"a": people(30)}, r"settings\.components = 0"),
        ({"label": "sick"}, {"a": people(30)}, "silo 'a': there is no column 'sick', the label"),
        ({}, {}, "there are no silos"),
        ({}, {"a": people(0)}, "silo 'a': there are no rows"),
        ({"ids": ["x"]}, {"a": people(30)}, "ids: 'x' is no column of features"),
        ({}, {"a": people(30), "b": people(30).assign(age="old")}, "'age' is of numbers at a and of categories at b"),
        ({}, {"a": people(30).assign(ill=None)}, "column 'ill' lacks 30 values"),
        ({}, {"a": people(30).assign(age=[{"x": 1}] * 29 + [3])}, "silo 'a': a column holds values of several types"),
    ],
)
def test_wrong_use(arguments: dict[str, Any], silos: dict[str, pd.DataFrame], error: str) -> None:
    with pytest.raises(GenfedError, match=error):
        Synthesizer(**{"label": "ill", **arguments}).fit(silos)
    with pytest.raises(GenfedError, match="not fitted"):
        Synthesizer().sample(1)


def call(*words: str) -> int:
    """Returns the exit code of a command."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert isinstance(left.value.code, int)
    return left.value.code


def test_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rows in {"north": people(), "south": people(200, 1), "test": people(150, 2)}.items():
        rows.to_csv(f"{name}.csv", index=False)
    words = ["--label", "ill", "--out", "ill.synth", "--set", "components=4", "--set", "em_steps=2"]
    assert call("synth", "fit", "north.csv", "south.csv", *words) == 0
    assert "mixture of 500 rows from 2 silos, 8 columns: ill.synth" in capsys.readouterr().out
    assert (
        call("synth", "sample", "ill.synth", "-n", "20", "--where", "age=30..40", "--where", "sex=f", "--out", "r.csv")
        == 0
    )
    drawn = pd.read_csv("r.csv")
    assert drawn["age"].between(30, 40).all()
    assert drawn["age"].dtype == np.int64
    assert (drawn["sex"] == "f").all()
    assert call("synth", "sample", "ill.synth", "--where", "sx=f", "--out", "r.csv") == 2
    assert "there is no column 'sx'" in capsys.readouterr().err


def test_gefl_on_a_table(tmp_path: Path) -> None:
    people(240).drop(columns=["note", "patient_id"]).to_csv(tmp_path / "a.csv", index=False)
    config: dict[str, Any] = {
        "methods": ["gefl", "gefl-tan"],
        "name": "rows",
        "baselines": [],
        "data": {"kind": "table", "path": str(tmp_path / "a.csv"), "label": "ill"},
        "federation": {"clients": 3, "architectures": ["mlp-small", "linear"]},
        "method": {
            "gefl": {"generator": {"kind": "mixture", **MIXTURE}, "rounds": 1},
            "gefl-tan": {"kind": "gefl", "generator": {"kind": "tan"}, "rounds": 1},
        },
    }
    (tmp_path / "out").mkdir()
    report = genfed.run(config, out=tmp_path / "out" / "run")
    assert all(trial.quality is not None and trial.accuracy > 0.5 for trial in report.trials)


def test_lists_of_lists_are_settings() -> None:
    rows = people(80).assign(code=lambda frame: frame["sex"].astype(str) + "1")
    made = Synthesizer("tan", label="ill", settings={"together": [["sex", "code"]]}).fit(rows)
    drawn = made.sample(200)
    assert (drawn["code"] == drawn["sex"].astype(str) + "1").all()


def test_a_file_that_says_more_than_it_holds_allocates_nothing(fitted: Synthesizer, tmp_path: Path) -> None:
    large = Synthesizer(**{**fitted.get_params(), "settings": {"components": 10_000_000}})
    with pytest.raises(GenfedError, match=r"settings\.components = 10000000"):
        large.fit(people(30))
    fitted.save(tmp_path / "a.synth")
    saved = load(_Saved, tmp_path / "a.synth")
    settings = json.loads(saved.settings) | {"settings": {"components": 10_000, "bins": 20_000}}
    wide = json.loads(saved.schema)
    wide["categories"]["sex"] = [f"s{i}" for i in range(100_000)]
    save(dataclasses.replace(saved, settings=json.dumps(settings), schema=json.dumps(wide)), tmp_path / "b.synth")
    with pytest.raises(GenfedError, match=r"the generator would have \S+ numbers; at most"):
        Synthesizer.load(tmp_path / "b.synth")


def test_each_silo_writes_numbers_in_its_own_way(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    silos = {}
    for name, swap in (("north", str.maketrans(",.", ".,")), ("south", {})):
        weights = rng.uniform(5000, 9000, 80)
        rows = [f'"{weight:,.2f}";{"yn"[i % 2]}'.translate(swap) for i, weight in enumerate(weights)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["weight;ill", *rows]))
        silos[name] = tmp_path / f"{name}.csv"
    made = Synthesizer("tan", label="ill").fit(silos)
    assert made.sample(400)["weight"].between(5000, 9000).all()
    for silo in made._silos.values():
        x = encode_silo(silo, made.schema_, made.task_.classes).x[:, 0]
        assert x.abs().max() < 3, "all lie within the scale of all"
        assert read_frame(silo, made.schema_, ["weight"])["weight"].between(5000, 9000).all()

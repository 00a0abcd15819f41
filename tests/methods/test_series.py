"""Methods on windows of series: those with sums, those with closed forms, and what is made of their samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genfed.artifacts.export import export
from genfed.artifacts.predict import load_predictor, write_predictions
from genfed.artifacts.samples import write_samples
from genfed.config.reader import read_config
from genfed.core.errors import GenfedError
from genfed.experiment.checkpoint import read_checkpoint
from tests.conftest import TINY, start, tiny_series, tiny_waves

ROCKET = {"kind": "rocket", "kernels": 20}
SUMS: dict[str, dict[str, Any]] = {
    "gaussian": {"kind": "gaussian", "covariance": "full"},
    "ppca": {"kind": "ppca", "rank": 8},
    "local_pca": {"kind": "local_pca", "rank": 4, "parts": 2, "steps": 2},
}


def of_sums(kind: str, **more: Any) -> dict[str, Any]:
    settings = {"rounds": 2, "mix": "balanced", "synthetic_epochs": 3, "generator": SUMS[kind]}
    return {"gefl": settings | {"training": {"epochs": 1, "batch_size": 8, "optimizer": "adam"}} | more}


@pytest.mark.parametrize("kind", sorted(SUMS))
def test_gefl_with_sums_is_the_same_for_any_partition(kind: str, tmp_path: Path) -> None:
    generators = []
    for name in ("iid", "disjoint_labels"):
        clients = {"clients": 3, "max_examples": 78}
        table = tiny_series("gefl", partition={"kind": name}, method=of_sums(kind), federation=clients)
        assert not start(table, tmp_path / name).trials[0].failures
        saved = read_checkpoint(read_config(table).method["gefl"], tmp_path / name / "trials" / "gefl" / "seed-0")
        assert saved is not None
        generators.append(saved.state.generator)
    iid, disjoint = generators
    assert all(torch.equal(iid[key], disjoint[key]) for key in iid)


@pytest.mark.parametrize("kind", sorted(SUMS))
def test_samples_of_sums_are_of_their_class(kind: str, tmp_path: Path) -> None:
    report = start(tiny_series("gefl", method=of_sums(kind), metrics={"samples": 90, "epochs": 20}), tmp_path / "run")
    quality = report.trials[0].quality
    assert quality is not None
    assert quality.architecture == "cnn1d"
    assert quality.right_class > 0.6
    assert None not in (quality.spectra, quality.spectra_real, quality.autocorrelation, quality.autocorrelation_real)
    assert quality.spectra is not None
    assert 0 < quality.spectra < 10, "most bands have the power of real windows"


@pytest.mark.parametrize("method", ["fedcgs", "fedpft", "gh_ofl"])
def test_closed_forms_classify_features_of_windows(method: str, tmp_path: Path) -> None:
    training = {"epochs": 30, "batch_size": 16, "optimizer": "adam", "learning_rate": 0.01}
    settings = TINY.get(method, {}) | {"encoder": ROCKET}
    settings |= {"head_training": training} if method != "fedcgs" else {}
    report = start(tiny_series(method, method={method: settings}), tmp_path / "run")
    assert report.trials[0].accuracy > 0.8


def test_gefl_f_trains_headers_on_features_of_windows(tmp_path: Path) -> None:
    settings = {"encoder": ROCKET, "generator": {"kind": "gaussian"}, "rounds": 2, "synthetic_epochs": 5}
    settings |= {"training": {"epochs": 1, "batch_size": 8, "optimizer": "adam", "learning_rate": 0.01}}
    table = tiny_series("gefl_f", method={"gefl_f": settings}, federation={"architectures": ["mlp", "mlp-small"]})
    assert start(table, tmp_path / "run").trials[0].accuracy > 0.8


def test_a_generator_of_images_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match=r"generator cvae: examples of shape \(2, 32\), series; allowed are images"):
        start(tiny_series("gefl", method={"gefl": {"generator": {"kind": "cvae"}}}), tmp_path / "run")
    settings = of_sums("ppca", generator={"kind": "ppca", "size": 8})
    with pytest.raises(GenfedError, match=r"generator.size = 8: examples of \(2, 32\); allowed are images"):
        start(tiny_series("gefl", method=settings), tmp_path / "other")


@pytest.mark.usefixtures("page")
def test_the_report_shows_windows_and_samples_are_in_units_of_the_data(tmp_path: Path) -> None:
    run = tmp_path / "run"
    start(tiny_series("gefl", method=of_sums("gaussian"), metrics={"samples": 30, "epochs": 1}), run)
    page = (run / "report.html").read_text("utf-8")
    assert "Generated examples of class 0" in page
    assert "spectra dB" in page
    write_samples(run, tmp_path / "made.npz", 60)
    with np.load(tmp_path / "made.npz") as made, np.load(tiny_waves()) as real:
        assert made["x"].shape == (60, 2, 32)
        assert made["x"].mean() == pytest.approx(real["x"].mean(), abs=0.5)
        assert made["x"].std() == pytest.approx(real["x"].std(), rel=0.2)
    with pytest.raises(GenfedError, match="are no PNG"):
        write_samples(run, tmp_path / "png", 6, form="png")


def test_new_windows_are_classified_by_the_run_and_by_what_is_exported(tmp_path: Path) -> None:
    run, inputs = tmp_path / "run", tiny_waves()
    start(tiny_series("fedavg"), run)
    write_predictions(load_predictor(run, None, None, None), inputs, tmp_path / "a.csv")
    export(run, tmp_path / "model")
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    assert card["encoder"]["kind"] == "series"
    assert "each channel as (value − mean) / deviation" in card["input"]
    write_predictions(load_predictor(tmp_path / "model", None, None, None), inputs, tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 121

"""The table of the quality of generators."""

from collections.abc import Callable, Sequence
from statistics import fmean

from genfed.report.formatting import NONE, TextTable
from genfed.report.results import GeneratorQuality, Report

_COLUMNS: dict[str, Callable[[GeneratorQuality], float | None]] = {
    "Fréchet distance": lambda q: q.frechet,
    "Fréchet of real": lambda q: q.frechet_real,
    "precision": lambda q: q.precision,
    "recall": lambda q: q.recall,
    "density": lambda q: q.density,
    "coverage": lambda q: q.coverage,
    "right class %": lambda q: 100 * q.right_class,
    "TSTR %": lambda q: 100 * q.train_on_synthetic,
    "TRTR %": lambda q: 100 * q.train_on_real,
    "MND": lambda q: q.memorisation,
    "MND features": lambda q: q.memorisation_features,
}
_OPTIONAL: dict[str, Callable[[GeneratorQuality], float | None]] = {
    "MND LPIPS": lambda q: q.memorisation_lpips,
    "spectra dB": lambda q: q.spectra,
    "spectra dB of real": lambda q: q.spectra_real,
    "autocorrelation": lambda q: q.autocorrelation,
    "autocorrelation of real": lambda q: q.autocorrelation_real,
    "teacher confidence %": lambda q: None if q.certainty is None else 100 * q.certainty,
    "client match %": lambda q: None if q.client_match is None else 100 * q.client_match,
    "real client match %": lambda q: None if q.clients_apart is None else 100 * q.clients_apart,
}
"""Columns that are shown where a generator of the run has such a number."""


def build_generator_table(report: Report) -> TextTable | None:
    """Returns a row per method whose generator was evaluated, averaged over seeds; None where there is none."""
    found = {method: [trial.quality for trial in report.of(method) if trial.quality] for method in report.methods}
    every = [q for each in found.values() for q in each]
    shown = _COLUMNS | {n: read for n, read in _OPTIONAL.items() if any(read(q) is not None for q in every)}

    def cell(name: str, each: Sequence[GeneratorQuality]) -> str:
        values = [value for value in map(shown[name], each) if value is not None]
        return _format_value(name, fmean(values)) if values else NONE

    rows = [(method, *(cell(name, each) for name in shown)) for method, each in found.items() if each]
    return TextTable(("method", *shown), rows) if rows else None


def _format_value(name: str, value: float) -> str:
    return f"{value:.1f}" if name.endswith("%") else f"{value:.2f}" if value < 100 else f"{value:.0f}"

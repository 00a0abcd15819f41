import dataclasses

import pytest
from rich.console import Console

from genfed.report.formatting import TextTable, format_bytes, format_markdown, format_seconds
from genfed.report.results import ClientScore, Measures, PersonalScore, PhaseCost, Point, Report, TrialResult
from genfed.report.summary_table import (
    build_summary,
    build_summary_table,
    describe_differences,
    gain_over,
    join_summaries,
)
from tests.report.fake import fake_report


def trial(method: str, seed: int, accuracy: float, worst: float, up: float = 0, wall: float = 1.0) -> TrialResult:
    scores = (ClientScore(0, "cnn", 5, worst, (worst,)), ClientScore(1, "mlp", 5, 1.0, (1.0,)))
    costs = (PhaseCost("train", 1, up, 2 * up, 1.0, wall), PhaseCost("evaluate", 1, 0, 0, 0.1, 0.5))
    return TrialResult(method, seed, accuracy, scores, (Point("evaluate", 0, 1, accuracy),), (), costs)


def report(*trials: TrialResult) -> Report:
    return dataclasses.replace(fake_report(1, 1), trials=trials)


SMALL = report(
    trial("local", 0, 0.50, 0.2),
    trial("local", 1, 0.60, 0.4),
    trial("a|[b]", 1, 0.70, 0.5, up=2_000_000, wall=120),
    trial("a|[b]", 0, 0.80, 0.3, up=1_000_000, wall=240),
    trial("once", 7, 0.80, 0.3, up=1500),
)


def test_every_cell_is_as_computed_by_hand() -> None:
    assert build_summary(SMALL).rows == [
        ("local", "2", "55.0 ± 7.1", "–", "30.0", "0 B", "0 B", "1.5"),
        # Gains are paired by seed: 80 - 50 and 70 - 60.
        ("a|[b]", "2", "75.0 ± 7.1", "+20.0 [+10.0, +30.0]", "40.0", "1.5 MB", "3.0 MB", "180"),
        ("once", "1", "80.0", "–", "30.0", "1.5 kB", "3.0 kB", "1.5"),
    ]


def test_there_is_no_gain_without_local() -> None:
    assert gain_over(report(trial("a", 0, 0.5, 0.5)), "a") is None


def test_labels_are_shown_as_they_are() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(build_summary_table(SMALL))
    assert "a|[b]" in capture.get()
    assert "accuracy on the test part" in capture.get()


def test_markdown_has_the_same_cells() -> None:
    lines = format_markdown(build_summary(SMALL), "What it is.").splitlines()
    assert lines[0].startswith("| method | seeds | accuracy % |")
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[3] == "| a\\|[b] | 2 | 75.0 ± 7.1 | +20.0 [+10.0, +30.0] | 40.0 | 1.5 MB | 3.0 MB | 180 |"
    assert len(lines) == 7  # the caption stands below, after an empty line
    assert lines[6] == "What it is."


def test_an_empty_table_is_still_markdown() -> None:
    assert format_markdown(TextTable(("a",), ())) == "| a |\n| --- |\n"
    linked = format_markdown(TextTable(("a",), (("![x](http://a) [b][c]",),)))
    assert linked.splitlines()[2] == "| ![x]\\(http://a) [b]\\[c] |"


def test_runs_stand_side_by_side() -> None:
    lines = format_markdown(join_summaries([("one", SMALL), ("two", SMALL)])).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| one"] * 3 + ["| two"] * 3
    assert len(lines) == 8


def test_accuracy_on_data_like_ones_own_has_a_column_where_clients_are_not_alike() -> None:
    own = (PersonalScore(0, "cnn", 0.5), PersonalScore(1, "cnn", 1.0), PersonalScore(2, "mlp", 0.25))
    trials = [dataclasses.replace(t, own=own) if t.method == "local" and t.seed == 1 else t for t in SMALL.trials]
    alike = dataclasses.replace(SMALL, trials=tuple(trials))
    skewed = dataclasses.replace(alike, skewed=True)
    assert build_summary(alike) == build_summary(SMALL)
    assert build_summary(dataclasses.replace(SMALL, skewed=True)) == build_summary(SMALL), "none was measured"
    head, rows = build_summary(skewed)
    assert head[4:6] == ("worst client %", "own data %")
    assert [row[5] for row in rows] == ["50.0", "–", "–"]  # (75 + 25) / 2, of the one seed that has it
    assert [(*row[:5], *row[6:]) for row in rows] == build_summary(SMALL).rows
    assert "own data: test examples like the client's own" in str(build_summary_table(skewed).caption)
    lines = format_markdown(join_summaries([("before", SMALL), ("now", skewed)])).splitlines()
    assert {len(line.split(" | ")) for line in lines} == {10}
    assert [line.split(" | ")[6] for line in lines[2:]] == ["–", "–", "–", "50.0", "–", "–"]


def test_auroc_has_a_column_where_there_are_two_classes() -> None:
    """Accuracy alone says little where one of two classes is rare."""
    areas = {("local", 0): 0.75, ("local", 1): 0.8, ("a|[b]", 0): None}
    measured = tuple(
        dataclasses.replace(t, measures=Measures(0.5, 0.5, areas[t.method, t.seed], 0.1))
        if (t.method, t.seed) in areas
        else t
        for t in SMALL.trials
    )
    two = dataclasses.replace(SMALL, trials=measured, classes=("no", "yes"))
    assert build_summary(dataclasses.replace(two, classes=("a", "b", "c"))) == build_summary(SMALL)
    assert build_summary(dataclasses.replace(two, trials=SMALL.trials)) == build_summary(SMALL), "none was measured"
    head, rows = build_summary(two)
    assert head[:4] == ("method", "seeds", "accuracy %", "AUROC")
    assert [row[3] for row in rows] == ["0.775", "–", "–"]
    assert [(*row[:3], *row[4:]) for row in rows] == build_summary(SMALL).rows
    assert "AUROC: area under the ROC curve" in str(build_summary_table(two).caption)
    lines = format_markdown(join_summaries([("before", SMALL), ("now", two)])).splitlines()
    assert [line.split(" | ")[4] for line in lines[2:]] == ["–", "–", "–", "0.775", "–", "–"]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (dataclasses.replace(SMALL, classes=("x",)), "classes"),
        (dataclasses.replace(SMALL, shape=(3, 8, 8)), "shape of an example"),
        (dataclasses.replace(SMALL, scored_on="validation"), "evaluation split"),
        (dataclasses.replace(SMALL, partition={"0": ((1, 2),)}), "partition"),
        (dataclasses.replace(SMALL, trials=SMALL.trials[:1]), "seeds"),
    ],
)
def test_runs_that_do_not_compare_are_flagged(other: Report, named: str) -> None:
    assert describe_differences([SMALL, other]) == f"These runs are not comparable: they differ in {named}."


def test_runs_on_other_examples_do_not_compare() -> None:
    """The same classes, shape and sizes, as two hospitals' files may have."""
    north, south, same = (dataclasses.replace(SMALL, data_digest={"0": d}) for d in ("01", "02", "01"))
    assert describe_differences([north, south]) == "These runs are not comparable: they differ in examples."
    assert describe_differences([north, same]) is None
    assert describe_differences([north, SMALL]) is None  # an older run does not know
    assert describe_differences([north, SMALL, south]) == "These runs are not comparable: they differ in examples."


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.0 kB"),
        (1234, "1.2 kB"),
        (999_960, "1.0 MB"),
        (3.4e6, "3.4 MB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_sizes_are_for_people(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_seconds_are_for_people() -> None:
    assert [format_seconds(s) for s in (0.04, 12.34, 99.94, 1234.5)] == ["0.0", "12.3", "99.9", "1,234"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_one_table_and_a_short_legend(width: int) -> None:
    own = (PersonalScore(0, "cnn", 0.5),)
    trials = tuple(dataclasses.replace(t, own=own) for t in SMALL.trials)
    console = Console(width=width)
    with console.capture() as capture:
        console.print(build_summary_table(dataclasses.replace(SMALL, trials=trials, skewed=True)))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert all(len(line) <= width for line in lines)
    legend = lines[max(i for i, line in enumerate(lines) if "once" in line) + 2 :]
    assert [line.split(":")[0] for line in legend] == ["over local", "up, down"]
    for cell in ("75.0 ± 7.1", "1.5 MB", "3.0 MB", "50.0"):
        assert cell in capture.get(), "cells are whole"

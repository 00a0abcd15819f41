"""The cells beside accuracy, as computed by hand."""

import dataclasses

from genfed.report.accuracy_tables import (
    build_client_spread_table,
    build_personal_table_by_client,
    build_personal_table_by_value,
    build_published_table,
)
from genfed.report.cost_tables import build_cost_table, collect_costs
from genfed.report.figures import draw_confusion, draw_radar
from genfed.report.generator_table import build_generator_table
from genfed.report.glossary import describe_metrics
from genfed.report.measures_section import build_measures_section, join_measures_tables
from genfed.report.results import (
    ClassScore,
    ClientScore,
    GeneratorQuality,
    Measures,
    PersonalScore,
    PhaseCost,
    Point,
    Published,
    Report,
    TrialResult,
)
from genfed.report.summary_table import AUROC, EPSILON, HEADINGS, OWN
from tests.report.fake import fake_report

JUDGED = GeneratorQuality(
    samples=500,
    architecture="mlp",
    seconds=0.25,
    frechet=1.5,
    frechet_real=0.25,
    precision=0.9,
    recall=0.8,
    density=1.25,
    coverage=0.7,
    right_class=0.5,
    train_on_synthetic=0.75,
    train_on_real=0.95,
    memorisation=0.9,
    memorisation_features=1000.0,
)


def trial(
    method: str, seed: int, *accuracies: float, quality: GeneratorQuality | None = None, flops: float | None = None
) -> TrialResult:
    clients = tuple(ClientScore(i, "cnn", 5, a, (a,)) for i, a in enumerate(accuracies))
    mean = sum(accuracies) / len(accuracies)
    phases = (PhaseCost("train", 2, 1000, 500, 6.0, 2.0, flops), PhaseCost("evaluate", 1, 0, 0, 9.0, 0.5))
    curve = (Point("evaluate", 0, 2, mean),)
    return TrialResult(
        method, seed, mean, clients, curve, (), phases, best=mean + 0.1, parameters=flops, quality=quality
    )


SMALL = dataclasses.replace(
    fake_report(1, 1),
    published={},
    trials=(
        trial("a", 0, 0.2, 0.4, 0.6, quality=JUDGED, flops=2e9),
        trial("a", 1, 0.4, 0.6, 0.8, quality=dataclasses.replace(JUDGED, frechet=2.0)),
        trial("b", 0, 0.5, 0.5, 0.5),
    ),
)


def with_figures(**figures: Published) -> Report:
    return dataclasses.replace(SMALL, published=figures)


def test_what_is_told_of_images_for_clients_has_columns_where_there_are_such() -> None:
    some = dataclasses.replace(JUDGED, client_match=0.25, clients_apart=0.9, certainty=0.5)
    other = dataclasses.replace(JUDGED, client_match=0.5, clients_apart=1.0)
    trials = (trial("a", 0, 0.2, quality=some), trial("a", 1, 0.2, quality=other), trial("b", 0, 0.5, quality=JUDGED))
    cells = build_generator_table(dataclasses.replace(SMALL, trials=trials))
    assert cells is not None
    assert cells.head[-3:] == ("teacher confidence %", "client match %", "real client match %")
    assert [row[-3:] for row in cells.rows] == [("50.0", "37.5", "95.0"), ("–", "–", "–")]


def test_generators_are_means_over_the_seeds_that_were_judged() -> None:
    cells = build_generator_table(SMALL)
    assert cells is not None
    assert cells.rows == [
        ("a", "1.75", "0.25", "0.90", "0.80", "1.25", "0.70", "50.0", "75.0", "95.0", "0.90", "1000"),
    ]
    assert len(cells.head) == len(cells.rows[0])
    assert build_generator_table(dataclasses.replace(SMALL, trials=SMALL.trials[2:])) is None


def test_a_published_figure_is_compared_with_the_same_kind_of_our_own() -> None:
    final = Published(accuracy=55.0, source="a letter", metric="final round")
    cells = build_published_table(with_figures(a=Published(accuracy=62.5, source="table II"), b=final))
    assert cells is not None
    assert cells.rows == [
        ("a", "62.5", "best round on test", "60.0", "50.0", "-2.5", "table II"),
        ("b", "55", "final round", "60.0", "50.0", "-5.0", "a letter"),
    ]
    assert build_published_table(SMALL) is None


def test_the_spread_over_clients() -> None:
    assert build_client_spread_table(SMALL).rows == [
        ("a", "30.0", "40.0", "50.0", "60.0", "70.0"),
        ("b", "50.0", "50.0", "50.0", "50.0", "50.0"),
    ]


def with_own(**natural: tuple[tuple[str, ...], ...]) -> Report:
    """Method a with two seeds; of b, in which clients are pooled, client 1 has no score."""
    scores = [
        (PersonalScore(0, "cnn", 0.5), PersonalScore(1, "mlp", 0.75), PersonalScore(2, "cnn", 1.0)),
        (PersonalScore(0, "cnn", 0.0), PersonalScore(1, "mlp", 0.25), PersonalScore(2, "cnn", 0.5)),
        (PersonalScore(0, "cnn", 0.25), PersonalScore(2, "cnn", 0.5)),
    ]
    trials = tuple(dataclasses.replace(t, own=own) for t, own in zip(SMALL.trials, scores, strict=True))
    column = "domain" if natural else None
    seeds = {name.strip("s"): values for name, values in natural.items()}
    partition: dict[str, tuple[tuple[int, ...], ...]] = {"0": ((1, 2), (0, 4), (5, 0))}
    return dataclasses.replace(SMALL, trials=trials, skewed=True, column=column, natural=seeds, partition=partition)


def test_own_accuracy_stands_beside_the_spread() -> None:
    cells = build_client_spread_table(with_own())
    assert cells.head[-2:] == ("own data, mean", "own data, worst")
    # a: means over architectures of 3/4 and 3/4, 1/4 and 1/4; worst 50 and 0
    assert [row[-2:] for row in cells.rows] == [("50.0", "25.0"), ("37.5", "25.0")]
    assert len(build_client_spread_table(dataclasses.replace(with_own(), skewed=False)).head) == 6


def test_own_accuracy_of_each_client_is_of_one_seed() -> None:
    cells = build_personal_table_by_client(with_own())
    assert cells is not None
    assert cells.head == ("client", "architecture", "examples", "a", "b")
    assert cells.rows == [
        ("0", "cnn", "3", "50.0", "25.0"),
        ("1", "mlp", "4", "75.0", "–"),
        ("2", "cnn", "5", "100.0", "50.0"),
    ]
    assert build_personal_table_by_client(dataclasses.replace(with_own(), skewed=False)) is None
    assert build_personal_table_by_value(with_own()) is None


def test_own_accuracy_by_value_is_of_the_clients_that_have_it() -> None:
    """In seed 0 client 2 has two values, in seed 1 clients 0 and 2 share one."""
    report = with_own(s0=(("chalk",), ("ink",), ("neon", "ice")), s1=(("ink",), ("chalk",), ("ink",)))
    cells = build_personal_table_by_value(report)
    assert cells is not None
    assert cells.head == ("domain", "a", "b")
    assert cells.rows == [
        ("chalk", "37.5", "25.0"),  # 0.5 and 0.25
        ("ice", "100.0", "50.0"),
        ("ink", "50.0", "–"),  # 0.75, and (0 + 0.5) / 2
        ("neon", "100.0", "50.0"),
    ]
    by_client = build_personal_table_by_client(report)
    assert by_client is not None
    assert [row[3] for row in by_client.rows] == ["chalk", "ink", "neon, ice"]


def test_costs_are_of_one_client_in_training() -> None:
    assert build_cost_table(SMALL).rows == [
        ("a", "1.5 kB", "2.0 s", "2.0 G", "2.0 G", "0.5 s"),
        ("b", "1.5 kB", "2.0 s", "–", "–", "–"),
    ]
    assert collect_costs(SMALL)["sampling"] == {"a": 0.5, "b": 0.0}


def with_measures(of: TrialResult, *auroc: float | None) -> TrialResult:
    mean, worst = (Measures(0.5, 0.25, area, 0.125) for area in auroc)
    by_class = (ClassScore(0.5, 0.75), ClassScore(None, 1.0))
    return dataclasses.replace(of, measures=mean, worst_measures=worst, by_class=by_class, confusion=((1, 1), (0, 0)))


def test_measures_are_averaged_over_seeds() -> None:
    trials = with_measures(trial("a", 0, 0.5), 0.75, 0.5), with_measures(trial("a", 1, 0.5), 0.85, None)
    section = build_measures_section(
        dataclasses.replace(SMALL, classes=("x", "y"), trials=(*trials, trial("b", 0, 1.0)))
    )
    assert section is not None
    worst = (
        "worst client: balanced accuracy %",
        "worst client: macro F1 %",
        "worst client: AUROC",
        "worst client: ECE",
    )
    assert section.by_method.head == ("method", "balanced accuracy %", "macro F1 %", "AUROC", "ECE", *worst)
    common = "50.0 ± 0.0", "25.0 ± 0.0", "0.125 ± 0.000"
    assert section.by_method.rows == [
        ("a", *common[:2], "0.800 ± 0.071", common[2], "50.0", "25.0", "0.500", "0.125"),
        ("b", *["–"] * 8),
    ]
    joined = join_measures_tables([("old", SMALL), ("new", fake_report(2, 1)), ("newer", fake_report(2, 1))])
    assert joined is not None
    assert joined.head == ("run", *section.by_method.head)
    assert [row[0] for row in joined.rows] == ["new"] * 4 + ["newer"] * 4
    assert list(section.by_class) == ["a"]
    assert section.by_class["a"].table.head == ("class", "sensitivity %", "specificity %")
    assert section.by_class["a"].table.rows == [("x", "50.0", "75.0"), ("y", "–", "100.0")]
    picture = section.by_class["a"].picture
    assert picture.count(">50</text>") == 2, "2 of 4 examples over both seeds"


def test_runs_of_older_versions_have_no_section_of_measures() -> None:
    assert build_measures_section(SMALL) is None
    assert join_measures_tables([("one", SMALL), ("two", SMALL)]) is None


def test_a_matrix_of_many_classes_is_drawn_without_numbers() -> None:
    many = tuple(f"class {i}" for i in range(100))
    confusion = tuple(tuple(2 * int(i == j) for j in range(100)) for i in range(100))
    by_class = (ClassScore(1.0, 1.0),) * 100
    measured = dataclasses.replace(trial("a", 0, 1.0), by_class=by_class, confusion=confusion)
    picture = draw_confusion(dataclasses.replace(SMALL, classes=many, trials=(measured,)), "a")
    assert "<image" in picture
    assert ">100</text>" not in picture
    assert len(picture) < 30_000


def test_the_radar_needs_three_costs() -> None:
    assert draw_radar(SMALL, {"x": {"a": 1.0, "b": 0.0}, "y": {"a": 1.0, "b": 2.0}, "z": {"a": 0.0, "b": 0.0}}) is None
    picture = draw_radar(SMALL, collect_costs(SMALL))
    assert picture is not None
    assert all(f">{name}</text>" in picture for name in ("bytes", "work", "FLOPs", "parameters", "sampling", "a", "b"))


def test_every_number_of_the_summary_generators_and_costs_is_explained() -> None:
    some = dataclasses.replace(JUDGED, client_match=0.25, clients_apart=0.9, certainty=0.5, memorisation_lpips=0.5)
    report = dataclasses.replace(with_own(), trials=(trial("a", 0, 0.2, quality=some),))
    generators = build_generator_table(report)
    assert generators is not None
    measures = build_measures_section(fake_report(2, 1))
    assert measures is not None
    shown = (*measures.by_method.head[:5], *measures.by_class["local"].table.head[1:])
    heads = (*generators.head, *build_cost_table(report).head, *HEADINGS, EPSILON, OWN, AUROC, *shown)
    names = set(heads) - {"method", "seeds"}
    assert {metric.name for metric in describe_metrics(names)} == names

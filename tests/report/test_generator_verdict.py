"""The verdict on a generator: provoked, and silent."""

import pytest

from genfed.report.generator_verdict import describe_ignored_labels, find_chance


def test_samples_at_chance_are_named() -> None:
    said = describe_ignored_labels(0.104, 0.1, 0.97, 0.12)
    assert said == (
        "the generator ignores labels: 10 % of its samples are of their class (by chance 10 %, of real examples 97 %)"
    )


@pytest.mark.parametrize(
    ("right_class", "chance", "real", "train_on_synthetic"),
    [
        (0.92, 0.1, 0.97, 0.9),  # good samples
        (0.275, 0.1, 0.97, None),  # just above the bound, 0.1 + 0.2·0.87
        (0.2, 0.1, 0.97, 0.64),  # blurred ones, from which a classifier learns all the same
        (0.1, 0.1, 0.18, 0.1),  # a reference classifier that knows no more than chance
        (0.75, 0.76, 0.85, 0.76),  # as above, with one class in three quarters of the examples
    ],
)
def test_all_else_is_silent(right_class: float, chance: float, real: float, train_on_synthetic: float | None) -> None:
    assert describe_ignored_labels(right_class, chance, real, train_on_synthetic) is None


def test_chance_is_the_largest_class() -> None:
    assert find_chance([30, 10, 0]) == 0.75

"""A verdict on a generator: whether its samples depend on the label that was asked for."""

from collections.abc import Sequence

IGNORED = 0.2
"""A generator ignores labels if its right class is nearer to chance than this share of the way to real examples."""
POOR = 0.5
"""Largest share of that way, for TSTR, with which labels count as ignored. Samples from which a classifier learns more
are blurred or noisy, but of their class."""


def describe_ignored_labels(
    right_class: float, chance: float, real: float, train_on_synthetic: float | None = None
) -> str | None:
    """Returns a sentence if a generator ignores the labels that it is given; None: it heeds them, or the reference
    classifier is too weak to say.

    >>> from genfed.report.generator_verdict import describe_ignored_labels
    >>> describe_ignored_labels(0.104, 0.1, 0.97)
    'the generator ignores labels: 10 % of its samples are of their class (by chance 10 %, of real examples 97 %)'
    >>> describe_ignored_labels(0.92, 0.1, 0.97) is None
    True

    Args:
        right_class: share of samples that the reference classifier gives the requested class, in [0, 1].
        chance: the same share for samples that do not depend on the label: the largest share of a class.
        real: accuracy of the reference classifier on held-out examples.
        train_on_synthetic: held-out accuracy of a network that was trained on samples alone. None: not measured.
    """
    way = real - chance
    if way < 0.1 or right_class - chance >= IGNORED * way:
        return None
    if train_on_synthetic is not None and train_on_synthetic - chance >= POOR * way:
        return None
    return (
        f"the generator ignores labels: {100 * right_class:.0f} % of its samples are of their class (by chance "
        f"{100 * chance:.0f} %, of real examples {100 * real:.0f} %)"
    )


def find_chance(counts: Sequence[int]) -> float:
    """Returns the largest share of a class, of the numbers of examples per class."""
    return max(counts) / sum(counts)

"""What every metric of a report means: for `genfed list metrics`, and for the legends of the page."""

from collections.abc import Iterable
from typing import Literal, NamedTuple


class MetricDescription(NamedTuple):
    """One metric, as a reader needs it to understand a number."""

    name: str
    """Heading of its column in a table."""
    meaning: str
    range: str
    """Smallest and largest value."""
    better: Literal["higher", "lower", "–"]


_SHARE, _UNIT = "0 to 100", "0 to 1"
ACCURACY = (
    MetricDescription(
        "accuracy %",
        "Share of test examples that are classified correctly after the final round, averaged over the clients of each "
        "architecture, then over architectures. ±: standard deviation over seeds.",
        _SHARE,
        "higher",
    ),
    MetricDescription(
        "over local",
        "Accuracy minus that of local training (every client alone) on the same clients, in percentage points: mean "
        "[lowest, highest] over seeds.",
        "-100 to 100",
        "higher",
    ),
    MetricDescription(
        "worst client %", "Accuracy of the client with the lowest accuracy, averaged over seeds.", _SHARE, "higher"
    ),
    MetricDescription(
        "own data %",
        "Accuracy of each client on held-out examples like its own training examples, averaged as accuracy is. Shown "
        "where clients' data differ.",
        _SHARE,
        "higher",
    ),
    MetricDescription(
        "backdoor success %",
        "Share of examples with the trigger of a simulated attack that are classified as the attacker's class.",
        _SHARE,
        "lower",
    ),
)
MEASURES = (
    MetricDescription(
        "balanced accuracy %",
        "Mean recall of the classes: a rare class counts as much as a frequent one. Averaged as accuracy is.",
        _SHARE,
        "higher",
    ),
    MetricDescription(
        "macro F1 %",
        "Mean over classes of the F1 score, the harmonic mean of precision and recall. Averaged as accuracy is.",
        _SHARE,
        "higher",
    ),
    MetricDescription(
        "AUROC",
        "Area under the ROC curve: the chance that an example of a class gets a higher probability of it than another "
        "example. With two classes that of the second, else the mean over classes. 0.5: the classifier guesses. "
        "Averaged as accuracy is.",
        _UNIT,
        "higher",
    ),
    MetricDescription(
        "ECE",
        "Expected calibration error: how far the probability of the predicted class lies from the share of correct "
        "predictions, in 15 bins. Averaged as accuracy is.",
        _UNIT,
        "lower",
    ),
    MetricDescription(
        "sensitivity %",
        "Share of the examples of a class that are classified as it (its recall), over all clients.",
        _SHARE,
        "higher",
    ),
    MetricDescription(
        "specificity %",
        "Share of the examples of other classes that are not classified as it, over all clients.",
        _SHARE,
        "higher",
    ),
)
PRIVACY = (
    MetricDescription(
        "ε",
        "Privacy budget spent under differential privacy, with its δ: that of the client that spent most, over all "
        "seeds. It bounds what any attacker can learn about one example (kinds dp_sgd and dp_sum) or one client "
        "(dp_fedavg). A dash: no client uploads anything, so nothing gets noise, and nothing is protected.",
        "0 to ∞",
        "lower",
    ),
    MetricDescription(
        "AUC",
        "Success of a membership attack: the chance that it gives a training example a higher score than an example "
        "that was not trained on. 0.5: the attack guesses.",
        _UNIT,
        "lower",
    ),
    MetricDescription(
        "TPR at 0.1 % FPR",
        "Share of training examples that a membership attack finds when it may take 0.1 % of the other examples for "
        "training examples.",
        _UNIT,
        "lower",
    ),
)
COSTS = (
    MetricDescription(
        "up", "Bytes that one client uploads in the whole training, averaged over clients.", "0 to ∞", "lower"
    ),
    MetricDescription(
        "down", "Bytes that one client downloads in the whole training, averaged over clients.", "0 to ∞", "lower"
    ),
    MetricDescription("bytes", "Up and down together.", "0 to ∞", "lower"),
    MetricDescription("seconds", "Wall time of one seed, evaluation included.", "0 to ∞", "lower"),
    MetricDescription("work", "Time that one client computes in training, averaged over clients.", "0 to ∞", "lower"),
    MetricDescription(
        "FLOPs",
        "Floating-point operations (matrix products and convolutions) of one client in training. Counted in the first "
        "round of each phase of the first seed, and taken for its other rounds.",
        "0 to ∞",
        "lower",
    ),
    MetricDescription(
        "parameters",
        "Numbers that one client must hold: in what it receives in a round, or in its classifier, whichever is larger.",
        "0 to ∞",
        "lower",
    ),
    MetricDescription(
        "sampling", "Seconds in which the server draws 1,000 examples from the trained generator.", "0 to ∞", "lower"
    ),
)
GENERATORS = (
    MetricDescription(
        "Fréchet distance",
        "Distance between generated and held-out examples in the features of a reference classifier, which is trained "
        "on all clients' real examples. Compare it within a run only: it is no FID, which uses Inception's features.",
        "0 to ∞",
        "lower",
    ),
    MetricDescription(
        "Fréchet of real",
        "The same distance for as many real training examples: what a perfect generator would reach.",
        "0 to ∞",
        "–",
    ),
    MetricDescription("precision", "Share of generated examples that lie near real ones: quality.", _UNIT, "higher"),
    MetricDescription("recall", "Share of real examples that lie near generated ones: variety.", _UNIT, "higher"),
    MetricDescription(
        "density",
        "Like precision, but outliers matter less: mean number of real neighborhoods that hold a generated example, "
        "over k = 5.",
        "0 to ∞",
        "higher",
    ),
    MetricDescription(
        "coverage",
        "Like recall, but outliers matter less: share of real examples with a generated example in their neighborhood.",
        _UNIT,
        "higher",
    ),
    MetricDescription(
        "right class %",
        "Share of generated examples that the reference classifier gives the requested class.",
        _SHARE,
        "higher",
    ),
    MetricDescription(
        "TSTR %",
        "Train on synthetic, test on real: test accuracy of a classifier trained on generated examples alone.",
        _SHARE,
        "higher",
    ),
    MetricDescription(
        "TRTR %", "Train on real, test on real: the same classifier trained on the real examples.", _SHARE, "–"
    ),
    MetricDescription(
        "MND",
        "Memorization: how many times nearer a training example is to a generated example than to a held-out one (mean "
        "nearest-neighbor distance ratio). Above 1: generated examples are close to training examples.",
        "0 to 1,000",
        "lower",
    ),
    MetricDescription("MND features", "MND by the reference classifier's features.", "0 to 1,000", "lower"),
    MetricDescription("MND LPIPS", "MND by LPIPS, a perceptual distance. Needs its weights.", "0 to 1,000", "lower"),
    MetricDescription(
        "spectra dB",
        "Distance of the spectra of generated series to those of held-out ones of the same class: mean difference of "
        "the power in octave bands, in decibels.",
        "0 to ∞",
        "lower",
    ),
    MetricDescription("spectra dB of real", "The same distance for as many real training series.", "0 to ∞", "–"),
    MetricDescription(
        "autocorrelation",
        "Distance of the autocorrelations of generated series to those of held-out ones of the same class: mean "
        "difference over lags up to half a window.",
        "0 to 2",
        "lower",
    ),
    MetricDescription("autocorrelation of real", "The same distance for as many real training series.", "0 to 2", "–"),
    MetricDescription(
        "teacher confidence %",
        "Mean probability that a client's uploaded classifier gives the requested class of the images generated for "
        "that client.",
        _SHARE,
        "higher",
    ),
    MetricDescription(
        "client match %",
        "Share of the images generated for a client that a network trained to tell clients apart gives to that client.",
        _SHARE,
        "higher",
    ),
    MetricDescription("real client match %", "Accuracy of that network on the clients' real examples.", _SHARE, "–"),
)
METRICS = (ACCURACY, MEASURES, GENERATORS, COSTS, PRIVACY)


def describe_metrics(names: Iterable[str]) -> list[MetricDescription]:
    """Returns the metrics with these names, in the order of `names`; names without a metric are skipped."""
    known = {metric.name: metric for group in METRICS for metric in group}
    return [known[name] for name in names if name in known]

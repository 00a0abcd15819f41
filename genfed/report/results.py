"""Results of a run as records. report.json holds a `Report`, and every table and figure is made from one."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, quantiles
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.preprocessing.source_summary import SourceSummary
from genfed.privacy.guarantee import Level, PrivacyGuarantee

Row = Mapping[str, Any]
"""A line of metrics.jsonl: one client in one round of a phase, or (`client` is None) the round as a whole."""
EVALUATE = "evaluate"
"""The phase in which classifiers are evaluated."""
TRIGGERED = "triggered"
"""The metric of an evaluation that says how often a backdoor works, in [0, 1]."""
QUALITY = "quality"
"""The phase of the row that holds a generator's metrics, after the last round."""

Share = Annotated[float, Field(ge=0, le=1)]


@settings
class Published:
    """A figure from a paper, shown beside the run's own."""

    accuracy: Annotated[float, Field(ge=0, le=100)]
    """Accuracy in percent."""
    source: str
    """Place of the figure, such as "arXiv 2412.18460, table II"."""
    metric: Literal["best round on test", "final round"] = "best round on test"
    """Kind of the figure. "best round on test": mean over models of each one's best round, chosen on the test part, as
    GeFL reports it (biased upwards). "final round": as genfed reports it. The run's own figure is of the same kind."""


@dataclass(frozen=True)
class Measures:
    """Measures of classifiers beside accuracy, after the final round; each is in [0, 1]. See docs/measures.md."""

    balanced_accuracy: Share
    """Mean recall of the classes."""
    f1: Share
    """Mean F1 score of the classes."""
    auroc: Share | None
    """Mean area under the ROC curve of one class against the others; with two classes that of the second. None: the
    held-out examples are of one class."""
    ece: Share
    """Expected calibration error. Lower is better; of the others, higher."""


@dataclass(frozen=True)
class ClassScore:
    """One class after the final round, counted over the held-out examples of all clients together."""

    sensitivity: Share | None
    """Share of its examples that are classified as the class, its recall, in [0, 1]. None: it has no example."""
    specificity: Share | None
    """Share of the other examples that are not classified as the class, in [0, 1]. None: there is no other example."""


@dataclass(frozen=True)
class ClientScore:
    """The accuracy of one client's classifier on the test part, after the final round."""

    client: int
    architecture: str
    examples: int
    accuracy: float
    """Accuracy in [0, 1]."""
    recall: tuple[float | None, ...]
    """Recall of each class, in [0, 1]; None: the test part lacks the class."""
    measures: Measures | None = None
    """None: not measured, by an older version."""


@dataclass(frozen=True)
class PersonalScore:
    """The accuracy of a classifier on held-out examples like those of one client; see docs/measures.md."""

    client: int
    architecture: str
    accuracy: float
    """Accuracy in [0, 1]."""


@dataclass(frozen=True)
class Point:
    """One value of a curve, after a round of a phase."""

    phase: str
    round: int
    step: int
    """Number of rounds before it, over all phases of the method."""
    value: float | None
    """None: not a finite number, such as a loss that diverged. An accuracy is never None."""


@dataclass(frozen=True)
class PhaseCost:
    """The cost of a phase over all its rounds. Evaluation has seconds, but its bytes are 0."""

    phase: str
    rounds: int
    up_bytes: float
    """Bytes that a client uploads, summed over rounds and averaged over clients."""
    down_bytes: float
    """Bytes that a client downloads, summed over rounds and averaged over clients."""
    client_seconds: float
    """Time in which clients computed, summed over clients and rounds."""
    seconds: float
    """Wall time of the phase's rounds."""
    flops: float | None = None
    """Floating-point operations of a client, summed over rounds and averaged over clients. Every round is assumed to
    need as many as the first. None: not counted."""


@dataclass(frozen=True)
class GeneratorQuality:
    """Metrics of a trial's generator; see docs/measures.md. Shares are in [0, 1]."""

    samples: int
    """Number of generated examples."""
    architecture: str
    """Architecture of the reference classifier, which is trained on all clients' real examples."""
    seconds: float
    """Wall time of generating them."""
    frechet: float
    """Fréchet distance to the held-out part, in the reference classifier's features."""
    frechet_real: float
    """The same distance for as many real training examples, to compare with."""
    precision: float
    recall: float
    density: float
    coverage: float
    right_class: float
    """Share of the samples that the reference classifier gives the requested class."""
    train_on_synthetic: float
    """Held-out accuracy of the same network, trained on the samples alone."""
    train_on_real: float
    """Held-out accuracy of the reference classifier."""
    memorisation: float
    """Mean nearest-neighbor distance ratio of the training examples. Above 1: memorization."""
    memorisation_features: float
    """The same ratio in the reference classifier's features."""
    memorisation_lpips: float | None = None
    """The same ratio with LPIPS as the distance. None: the run has no weights for it."""
    spectra: float | None = None
    """Distance of the spectra to those of held-out series, in decibels. None: the examples are no series."""
    spectra_real: float | None = None
    """The same distance for as many real training series, to compare with."""
    autocorrelation: float | None = None
    """Distance of the autocorrelations to those of held-out series. None: the examples are no series."""
    autocorrelation_real: float | None = None
    """The same distance for as many real training series, to compare with."""
    stored: bool = False
    """Whether the samples come from a set that the server stores; then `seconds` is the time of reading them."""
    certainty: float | None = None
    """Mean probability that a client's uploaded classifier gives the requested class of the images generated for that
    client. None: there are no such classifiers."""
    client_match: float | None = None
    """Share of the images generated for a client that a network trained to tell clients apart assigns to that client.
    None: images are not generated for clients."""
    clients_apart: float | None = None
    """Accuracy of that network on real examples of the clients that it was not trained on."""


@dataclass(frozen=True)
class TrialResult:
    """One method with one seed."""

    method: str
    """Its label in the config."""
    seed: int
    accuracy: float
    """Accuracy after the final round, in [0, 1]: the mean over architectures of the mean over their clients."""
    clients: tuple[ClientScore, ...]
    curve: tuple[Point, ...]
    """Accuracy at every evaluation; the last is `accuracy`."""
    losses: tuple[Point, ...]
    """Mean training loss over clients, by phase and round."""
    costs: tuple[PhaseCost, ...]
    failures: tuple[str, ...] = ()
    """A line for every reply that was excluded and every worker that died."""
    best: float | None = None
    """Accuracy of each client's best evaluated round, averaged as `accuracy` is. Only for comparison with papers that
    report it: it is too high, since the round is chosen on the part on which it is evaluated."""
    parameters: float | None = None
    """Peak number of parameters on a client (received or in its classifier, whichever is larger), averaged over
    clients. None: not counted in every phase."""
    quality: GeneratorQuality | None = None
    """Metrics of its generator. None: it has no generator, or it was not evaluated."""
    protection: PrivacyGuarantee | None = None
    """Differential privacy of the clients' examples, or of the clients. None: not requested."""
    own: tuple[PersonalScore, ...] = ()
    """Accuracy of every client on held-out examples like its own. Where clients are pooled, that of the pool's
    classifier of the client's architecture. A client without such examples has no entry. Empty: not measured."""
    triggered: float | None = None
    """Success of a simulated backdoor after the final round: share of held-out examples of other classes with the
    trigger that are classified as the attacker's class, averaged over clients. None: no backdoor was simulated."""
    measures: Measures | None = None
    """The clients' measures, averaged as `accuracy` is over those that have one. None: not measured."""
    worst_measures: Measures | None = None
    """Each measure of the client where it is worst. None: not measured."""
    by_class: tuple[ClassScore, ...] = ()
    """Scores of each class. Empty: not measured, or there is no confusion matrix."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Number of held-out examples by true and by predicted class, added up over clients; without those whose scores
    were not finite. Empty: not measured, or there are too many classes."""

    @property
    def personal_accuracy(self) -> float | None:
        """Accuracy on clients' own data, averaged as `accuracy` is. None: not measured."""
        return average_architectures((score.architecture, score.accuracy) for score in self.own) if self.own else None

    @property
    def personal_worst(self) -> float | None:
        """Accuracy on own data of the client where it is lowest. None: not measured."""
        return min((score.accuracy for score in self.own), default=None)

    @property
    def worst(self) -> float:
        """Accuracy of the client where it is lowest."""
        return min(c.accuracy for c in self.clients)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of the clients' accuracies."""
        values = [c.accuracy for c in self.clients]
        low, median, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return low, median, high

    @property
    def up_bytes(self) -> float:
        """Bytes that a client uploads in the whole trial, averaged over clients."""
        return sum(c.up_bytes for c in self.costs)

    @property
    def down_bytes(self) -> float:
        """Bytes that a client downloads in the whole trial, averaged over clients."""
        return sum(c.down_bytes for c in self.costs)

    @property
    def seconds(self) -> float:
        """Wall time of all rounds, evaluation included."""
        return sum(c.seconds for c in self.costs)

    @property
    def work_seconds(self) -> float:
        """Time in which a client computed in training, averaged over clients."""
        return sum(c.client_seconds for c in self.costs if c.phase != EVALUATE) / len(self.clients)

    @property
    def flops(self) -> float | None:
        """Floating-point operations of a client in the whole training, averaged over clients.

        None: not counted in every phase in which clients compute (a run may be resumed with other settings).
        """
        counted = [c.flops for c in self.costs if c.phase != EVALUATE and c.client_seconds]
        return sum(flops for flops in counted if flops is not None) if counted and None not in counted else None


@dataclass(frozen=True)
class Environment:
    """The software and the machine of a run."""

    command: str
    started: str
    """ISO 8601, UTC."""
    versions: dict[str, str]
    """Versions of genfed, Python, torch and the libraries used."""
    processor: str
    cores: int
    workers: int
    threads: int
    """Threads of each worker."""
    device: str
    precision: str


@dataclass(frozen=True)
class Report:
    """The results of a run: every method with every seed; for each seed all methods have the same clients.

    >>> import tempfile
    >>> import genfed
    >>> config = {
    ...     "name": "tiny",
    ...     "methods": ["local"],
    ...     "baselines": [],
    ...     "data": {"kind": "digits", "size": 8},
    ...     "federation": {"clients": 4, "max_examples": 80, "architectures": ["linear"]},
    ...     "defaults": {"training": {"epochs": 1}},
    ...     "compute": {"workers": 0},
    ... }
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = genfed.run(config, out=f"{folder}/tiny", command="tiny example")
    >>> (trial,) = report.of("local")
    >>> trial.up_bytes, 0 <= trial.worst <= trial.accuracy <= 1
    (0.0, True)
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False
    )

    name: str
    config: str
    """The resolved config, TOML."""
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    environment: Environment
    trials: tuple[TrialResult, ...]
    partition: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """Number of examples of each class at each client, by seed (as text)."""
    scored_on: str = "test"
    """Part on which classifiers were evaluated: "test" or "validation"."""
    published: dict[str, Published] = field(default_factory=dict)
    """Figures of papers, by the method's label."""
    skewed: bool = False
    """Whether clients' data differ by more than chance and number, so that accuracy on their own data says more."""
    column: str | None = None
    """Natural column by which clients were made and evaluated on their own data. None: there is none."""
    natural: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    """Values of that column at each client, by seed (as text)."""
    notes: tuple[str, ...] = ()
    """Warnings for the reader, such as that the run was attacked and how uploads were aggregated."""
    data_digest: dict[str, str] = field(default_factory=dict)
    """Digest of the examples of training and evaluation, by seed (as text). Empty: they lie at sites."""
    data_summary: SourceSummary = field(default_factory=SourceSummary)
    """What the data source read, and what looks wrong in it."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods' labels in the order of the config."""
        return tuple(dict.fromkeys(t.method for t in self.trials))

    @property
    def protected(self) -> "Level | None":
        """Unit that differential privacy protects. None: not requested."""
        return next((trial.protection.level for trial in self.trials if trial.protection), None)

    def of(self, method: str) -> tuple[TrialResult, ...]:
        """Returns the trials of a method, sorted by seed."""
        return tuple(sorted((t for t in self.trials if t.method == method), key=lambda t: t.seed))


def to_json(report: Report) -> str:
    """Returns the report as the text of report.json."""
    return pydantic.TypeAdapter(Report).dump_json(report, indent=1).decode()


def from_json(text: str, name: str = "the text") -> Report:
    """Reads the text of report.json; `name` stands for the file in error messages.

    Raises:
        GenfedError: the text is something else, or a report of another version.
    """
    try:
        return pydantic.TypeAdapter(Report).validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise GenfedError(f"{name} is not a genfed report: {where + ': ' if where else ''}{first['msg']}") from None


def average_architectures(scores: Iterable[tuple[str, float]]) -> float:
    """Returns the mean over architectures of the mean over their clients; a score is (architecture, accuracy)."""
    groups = defaultdict(list)
    for architecture, accuracy in scores:
        groups[architecture].append(accuracy)
    return fmean(fmean(group) for group in groups.values())

"""What a run came to, as records: `report.json` is a `Report`, and every table and picture is drawn from one."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, quantiles
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.privacy.guarantee import Level, PrivacyGuarantee

Row = Mapping[str, Any]
"""A line of metrics.jsonl: one client in one round of a phase, or (`client` is None) the round as a whole."""
EVALUATE = "evaluate"
"""The phase in which classifiers are scored."""
TRIGGERED = "triggered"
"""The metric of an evaluation that tells how often a backdoor works, in [0, 1]."""
QUALITY = "quality"
"""The row in which a generator is judged, after the last round."""


@settings
class Published:
    """A figure from a paper, to be set beside the run's own."""

    accuracy: Annotated[float, Field(ge=0, le=100)]
    """In percent."""
    source: str
    """Where it stands, such as "arXiv 2412.18460, table II"."""
    metric: Literal["best round on test", "final round"] = "best round on test"
    """"best round on test": each model's own best round, chosen on the test part, a mean (GeFL's, and biased upwards);
    "final round": what this library reports. The run's own is taken the same way."""


@dataclass(frozen=True)
class ClientScore:
    """One client's classifier on the test part, after the final round."""

    client: int
    architecture: str
    examples: int
    accuracy: float
    """In [0, 1]."""
    recall: tuple[float | None, ...]
    """Per class, in [0, 1]; None for a class that the test part lacks."""


@dataclass(frozen=True)
class PersonalScore:
    """A classifier on held-out examples like those of one client, after the final round; see docs/measures.md."""

    client: int
    architecture: str
    accuracy: float
    """In [0, 1]."""


@dataclass(frozen=True)
class Point:
    """One value of a curve, after a round of a phase."""

    phase: str
    round: int
    step: int
    """Rounds done before it, over all phases of the method."""
    value: float | None
    """None: not a finite number (a loss that diverged); an accuracy never is."""


@dataclass(frozen=True)
class PhaseCost:
    """What a phase cost over all its rounds. Scoring counts for its time and not for its bytes: they are 0."""

    phase: str
    rounds: int
    up_bytes: float
    """Sent by a client to the server, a mean over clients of the sum over rounds."""
    down_bytes: float
    """Sent by the server to a client, likewise."""
    client_seconds: float
    """Time in which clients worked, summed over clients and rounds."""
    seconds: float
    """Wall time of the phase's rounds."""
    flops: float | None = None
    """Floating-point operations of a client, a mean over clients of the sum over rounds, taken to be those of the first
    round in each; None: not counted."""


@dataclass(frozen=True)
class GeneratorQuality:
    """How good the examples of a trial's generator are; see docs/measures.md. Shares are in [0, 1]."""

    samples: int
    """Examples that were drawn."""
    architecture: str
    """Of the reference classifier, trained on all clients' real examples."""
    seconds: float
    """Wall time of drawing them."""
    frechet: float
    """The Fréchet distance to the held-out part, in the reference classifier's features."""
    frechet_real: float
    """The same of as many real training examples: what to compare it with."""
    precision: float
    recall: float
    density: float
    coverage: float
    right_class: float
    """Of the samples, those that the reference classifier takes for the class that was asked for."""
    train_on_synthetic: float
    """Accuracy on the held-out part of the same network trained on the samples alone."""
    train_on_real: float
    """Accuracy on the held-out part of the reference classifier."""
    memorisation: float
    """The mean nearest-neighbour distance ratio of the training examples; above 1 is memorisation."""
    memorisation_features: float
    """The same in the reference classifier's features."""
    memorisation_lpips: float | None = None
    """The same with LPIPS for the distance; None: the run has no weights for it."""
    stored: bool = False
    """They are of a set that the server keeps; `seconds` is the time of reading them."""
    certainty: float | None = None
    """The mean probability that the classifier which a client uploaded gives the class asked for, over the images made
    for that client; None: there are no such classifiers."""
    client_match: float | None = None
    """Of the images made for clients, those that a network which tells clients apart takes for their own client's;
    None: they stand for none."""
    clients_apart: float | None = None
    """That network's accuracy on real examples of the clients that it has not seen."""


@dataclass(frozen=True)
class TrialResult:
    """One method with one seed."""

    method: str
    """Its label in the config."""
    seed: int
    accuracy: float
    """After the final round: the mean over architectures of the mean over their clients, in [0, 1]."""
    clients: tuple[ClientScore, ...]
    curve: tuple[Point, ...]
    """Accuracy at every evaluation; the last is `accuracy`."""
    losses: tuple[Point, ...]
    """Mean training loss over clients, by phase and round."""
    costs: tuple[PhaseCost, ...]
    failures: tuple[str, ...] = ()
    """A line for every reply that was left out or every worker that died."""
    best: float | None = None
    """Each client's best evaluated round, a mean as `accuracy` is: for comparison with papers that report it, since
    what is chosen on the part that it is read on is too high."""
    parameters: float | None = None
    """Numbers that a client holds at once: in what it is sent, or in its classifier, whichever is more, at their most,
    a mean over clients; None: not counted in every phase."""
    quality: GeneratorQuality | None = None
    """Of its generator; None: it has none, or it was not judged."""
    protection: PrivacyGuarantee | None = None
    """Differential privacy of the clients' examples, or of the clients; None: none was asked for."""
    own: tuple[PersonalScore, ...] = ()
    """Every client on data like its own. Where clients are pooled (a ceiling), the pool's classifier of its
    architecture on data like its own. A client without such held-out examples is left out; empty: not measured."""
    triggered: float | None = None
    """After the final round, of held-out examples of other classes with a backdoor's trigger: the share that is taken
    for the class that it is to mean, a mean over clients; None: no such attack was simulated."""

    @property
    def personal_accuracy(self) -> float | None:
        """The mean over architectures of the mean over their clients, each on data like its own; None: not measured."""
        return _mean((score.architecture, score.accuracy) for score in self.own) if self.own else None

    @property
    def personal_worst(self) -> float | None:
        """The worst client on data like its own; None: not measured."""
        return min((score.accuracy for score in self.own), default=None)

    @property
    def worst(self) -> float:
        """The accuracy of the worst client."""
        return min(c.accuracy for c in self.clients)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Of the clients' accuracies: a quarter of them, half and three quarters lie at or below."""
        values = [c.accuracy for c in self.clients]
        low, median, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return low, median, high

    @property
    def up_bytes(self) -> float:
        """Sent by a client to the server over the whole trial, a mean over clients."""
        return sum(c.up_bytes for c in self.costs)

    @property
    def down_bytes(self) -> float:
        """Sent by the server to a client over the whole trial, a mean over clients."""
        return sum(c.down_bytes for c in self.costs)

    @property
    def seconds(self) -> float:
        """Wall time of all rounds, evaluation included."""
        return sum(c.seconds for c in self.costs)

    @property
    def work_seconds(self) -> float:
        """Time in which a client worked in training, a mean over clients."""
        return sum(c.client_seconds for c in self.costs if c.phase != EVALUATE) / len(self.clients)

    @property
    def flops(self) -> float | None:
        """Floating-point operations of a client over the whole training, a mean over clients; None: not counted in
        every phase in which clients work (a run may be resumed with other settings).
        """
        counted = [c.flops for c in self.costs if c.phase != EVALUATE and c.client_seconds]
        return sum(flops for flops in counted if flops is not None) if counted and None not in counted else None


@dataclass(frozen=True)
class Environment:
    """What it was run with."""

    command: str
    started: str
    """ISO 8601, UTC."""
    versions: dict[str, str]
    """Of genfed, Python, torch and the libraries used."""
    processor: str
    cores: int
    workers: int
    threads: int
    """Of each worker."""
    device: str
    precision: str


@dataclass(frozen=True)
class Report:
    """A whole run: every method with every seed, on the same clients per seed."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid", strict=True)

    name: str
    config: str
    """The resolved config, TOML."""
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    environment: Environment
    trials: tuple[TrialResult, ...]
    partition: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """By seed (as text): for every client, its examples of each class."""
    scored_on: str = "test"
    """The part that accuracies were read on: "test" or "validation"."""
    published: dict[str, Published] = field(default_factory=dict)
    """By label: what papers report."""
    skewed: bool = False
    """Whether clients differ in more than chance and the number of their examples, so that a score on data like their
    own says more than the common one."""
    column: str | None = None
    """The natural column by which clients were made and scored on data like their own; None: there is none."""
    natural: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    """By seed (as text): for every client, its values of that column."""
    notes: tuple[str, ...] = ()
    """What a reader must know before anything else: that the run was attacked, and how uploads were reduced."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Labels in the order of the config."""
        return tuple(dict.fromkeys(t.method for t in self.trials))

    @property
    def protected(self) -> "Level | None":
        """What differential privacy protects in it; None: none was asked for."""
        return next((trial.protection.level for trial in self.trials if trial.protection), None)

    def of(self, method: str) -> tuple[TrialResult, ...]:
        """The trials of a method, by seed."""
        return tuple(sorted((t for t in self.trials if t.method == method), key=lambda t: t.seed))


def to_json(report: Report) -> str:
    """`report.json`, indented."""
    return pydantic.TypeAdapter(Report).dump_json(report, indent=1).decode()


def from_json(text: str, name: str = "the text") -> Report:
    """Reads `to_json`; `name` is the file in messages.

    Raises:
        GenfedError: something else, or a report of another version.
    """
    try:
        return pydantic.TypeAdapter(Report).validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise GenfedError(f"{name} is not a genfed report: {where + ': ' if where else ''}{first['msg']}") from None


def _mean(scores: Iterable[tuple[str, float]]) -> float:
    """Of (architecture, accuracy): the mean over architectures of the mean over their clients."""
    groups = defaultdict(list)
    for architecture, accuracy in scores:
        groups[architecture].append(accuracy)
    return fmean(fmean(group) for group in groups.values())

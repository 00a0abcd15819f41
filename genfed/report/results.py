"""What a run came to, as records: `report.json` is a `Report`, and every table and picture is drawn from one."""

from dataclasses import dataclass, field


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
class Point:
    """One value of a curve, after a round of a phase."""

    phase: str
    round: int
    step: int
    """Rounds done before it, over all phases of the method."""
    value: float


@dataclass(frozen=True)
class PhaseCost:
    """What a phase cost over all its rounds."""

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


@dataclass(frozen=True)
class Trial:
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

    @property
    def worst(self) -> float:
        """The accuracy of the worst client."""
        return min(c.accuracy for c in self.clients)

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

    name: str
    config: str
    """The resolved config, TOML."""
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    environment: Environment
    trials: tuple[Trial, ...]
    partition: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """By seed (as text): for every client, its examples of each class."""
    scored_on: str = "test"
    """The part that accuracies were read on: "test" or "validation"."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Labels in the order of the config."""
        return tuple(dict.fromkeys(t.method for t in self.trials))

    def of(self, method: str) -> tuple[Trial, ...]:
        """The trials of a method, by seed."""
        return tuple(sorted((t for t in self.trials if t.method == method), key=lambda t: t.seed))

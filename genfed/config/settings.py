"""The settings of a run, table by table."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, InstanceOf

from genfed.audits.audit import Audit
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.settings import settings
from genfed.data.dataset import Source
from genfed.data.partition import IID, Partitioner
from genfed.privacy.settings import ClientPrivacy, Privacy
from genfed.report.results import Published
from genfed.robustness.attack import Attack
from genfed.robustness.robust_mean import AggregationRule
from genfed.secure_aggregation.settings import SecureAggregation


@settings
class Federation:
    """Who takes part, and with what."""

    clients: Annotated[int, Field(ge=1)] = 10
    """How many clients there are (K)."""
    architectures: tuple[str, ...] | dict[str, float] = ("cnn3",)
    """Names that are given out in turn (one name per client says it for each), or a table of name = weight; the user's
    own are "package.module:Class"."""
    examples: Annotated[int, Field(ge=1)] | None = None
    """Training examples that all clients have together, drawn at random for each seed; left out: the whole part."""
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the clients that take part in a round, drawn anew for each."""
    quorum: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Fraction of those asked that must answer; with fewer the run stops at its last checkpoint. Nobody need where
    `client_privacy.secret_sampling` draws who is asked."""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds that a client may take for a round before it is left out (with worker processes); left out: for ever."""


@settings
class Evaluation:
    """When and on what classifiers are scored. The last round always is."""

    every: Annotated[int, Field(ge=0)] = 10
    """Rounds between evaluations; 0: only the last."""
    part: Literal["test", "validation"] = "test"
    """Choose settings on "validation"; report "test"."""


@settings
class Metrics:
    """What is measured besides accuracy. The outcome of training does not depend on it."""

    samples: Annotated[int, Field(ge=0)] = 1000
    """Examples that each trial's generator is judged by, after its last round; 0: it is not judged."""
    architecture: str | None = None
    """Of the reference classifier, whose features are compared; it ends in a linear layer. Left out: cnn7-bn for images
    of 16×16 or more, else mlp."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Of its training on all real training examples, and of the same network's on the generated ones."""
    lpips: str | None = None
    """A .safetensors file with the state dict of `lpips.LPIPS(net="alex")`: memorisation is measured with that distance
    too, as GeFL has it. Left out: it is not."""
    flops: bool = True
    """Counts the arithmetic of clients, in the first round of each phase and for the first seed; that round takes up to
    twice its time."""


@settings
class Compute:
    """The machine."""

    workers: Annotated[int, Field(ge=0)] | None = None
    """Worker processes; 0: all in one process; left out: one per core, or per `threads` cores. The outcome is the same
    to the bit."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Of each process. Another number may change the last bits."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    """"cpu", "cuda" or "cuda:1"."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic of training ("bfloat16": mixed precision); weights are float32."""


@settings
class Config:
    """One run: some methods on the same clients, for each of some seeds."""

    name: str
    """Of the run; its results go to runs/NAME. Left out: the file's name."""
    methods: tuple[str, ...]
    """Labels: a method's name, or any word whose table [method.WORD] says `kind = "name"`."""
    beside: tuple[str, ...] = ("local", "centralised")
    """Further labels, run beside the others unless they are among them: floor and ceiling."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Each gives its own clients, initial weights and draws."""
    data_root: str = ""
    """Folder that a relative path in [data] starts from; empty: the working directory."""
    data: InstanceOf[Source]
    """`kind` names the source."""
    public: InstanceOf[Source] | None = None
    """Examples that anybody may see (their labels are not used); only a few methods need any. Left out: none."""
    partition: InstanceOf[Partitioner] = Field(default_factory=IID)
    """`kind` names how the training part is shared out."""
    federation: Federation = Field(default_factory=Federation)
    """The clients."""
    aggregation: InstanceOf[AggregationRule] | None = None
    """`kind` names what stands in the place of every mean of uploads; left out: the means that methods declare."""
    attack: InstanceOf[Attack] | None = None
    """`kind` names what a share of the clients does instead of its part, simulated; left out: all are honest."""
    secure: SecureAggregation | None = None
    """The server learns sums of uploads and no upload; left out: it sees them all."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """Scoring."""
    compute: Compute = Field(default_factory=Compute)
    """The machine."""
    quality: Metrics = Field(default_factory=Metrics)
    """Measures of generators and of costs."""
    published: dict[str, InstanceOf[Published]] = Field(default_factory=dict)
    """Per label a figure from a paper, to be set beside the run's own: [published.WORD]."""
    audits: tuple[str, ...] = ()
    """Attacks that are made on every method, with the first seed, after its last round: names (`genfed list audits`),
    or any words whose table [audit.WORD] says `kind = "name"`."""
    audit: dict[str, InstanceOf[Audit]] = Field(default_factory=dict)
    """A table of settings per audit, for those of `audits` and for `genfed audit`: [audit.WORD]."""
    privacy: Privacy | None = None
    """Differential privacy of every example; left out: none."""
    client_privacy: ClientPrivacy | None = None
    """Differential privacy of every client; left out: none."""
    method: dict[str, InstanceOf[Method[Any]]]
    """A table of settings per label."""

    def __post_init__(self) -> None:
        if twice := [seed for seed in self.seeds if self.seeds.count(seed) > 1]:
            raise GenfedError(f"seeds: {twice[0]} stands twice; each seed is one repetition")
        if not re.fullmatch(r"[^./\\\0][^/\\\0]*", self.name):
            raise GenfedError(f"name = {self.name!r}: it names a folder of runs/, so no / or \\, and no . at its start")

    @property
    def labels(self) -> tuple[str, ...]:
        """All methods of the run, in order."""
        return tuple(dict.fromkeys(self.methods + self.beside))

"""The settings of a run, table by table."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, InstanceOf

from genfed.audits.audit import Audit
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.settings import settings
from genfed.core.text import NAME, one_line
from genfed.data.dataset import Source
from genfed.data.partition import IID, Partitioner
from genfed.privacy.settings import DPSGD, DPFedAvg, DPSum, PrivacySettings
from genfed.report.results import Published
from genfed.robustness.attack import Attack
from genfed.robustness.robust_mean import AggregationRule
from genfed.secure_aggregation.settings import SecureAggregation


@settings
class Federation:
    """The clients, and how many of them take part in a round."""

    clients: Annotated[int, Field(ge=1)] = 10
    """Number of clients (K)."""
    architectures: tuple[str, ...] | dict[str, float] = ("cnn3",)
    """Classifier architectures of the clients. A list is assigned in turn (client 0 gets the first name, and so on); a
    table `name = weight` gives each name a share of the clients. Your own are "package.module:Class"."""
    max_examples: Annotated[int, Field(ge=1)] | None = None
    """Number of training examples of all clients together, drawn at random for each seed. Unset: all training
    examples."""
    client_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the clients that is selected for each round, drawn anew for every round. `local` and `centralised`
    train all clients in every round."""
    excluded: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Numbers of the clients that are left out, with their examples: the others keep their numbers, examples and
    architectures. `genfed forget` sets it. Refused where examples are encoded by what was computed from theirs too
    (`data.encoder` and `data.pixels` give it instead). Unset: none is. Not for sites: one that leaves does not join."""
    quorum: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Fraction of the selected clients that must answer. With fewer answers the run stops; it can be resumed from the
    last checkpoint. Not used under `privacy.secret_sampling`."""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds that a client may take for a round; a slower client is excluded from the round. Needs worker processes
    or sites. Unset: no limit."""


@settings
class Evaluation:
    """When and on which examples classifiers are evaluated. The last round is always evaluated."""

    every: Annotated[int, Field(ge=0)] = 10
    """Number of rounds between two evaluations. 0: only after the last round."""
    split: Literal["test", "validation"] = "test"
    """Held-out examples that the classifiers are evaluated on: use "validation" to choose settings, "test" for the
    results that you report."""


@settings
class Metrics:
    """What is measured besides accuracy. The outcome of training does not depend on it."""

    samples: Annotated[int, Field(ge=0)] = 1000
    """Number of generated examples by which each trial's generator is evaluated after the last round. 0: no
    evaluation of generators."""
    architecture: str | None = None
    """Architecture of the reference classifier, whose features are compared; its last layer must be linear. Unset:
    cnn7-bn for images of 16×16 or more, else mlp."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Number of epochs for which the reference classifier is trained on all real examples, and a copy of it on the
    generated ones."""
    lpips: str | None = None
    """Path of a .safetensors file with the state dict of `lpips.LPIPS(net="alex")`, to measure memorization by the
    LPIPS distance as well, as GeFL does. Unset: not measured."""
    flops: bool = True
    """Whether to count the floating-point operations of clients, in the first round of each phase with the first seed.
    Counting can double the time of that round."""


@settings
class Compute:
    """The machine that the run computes on."""

    workers: Annotated[int, Field(ge=0)] | None = None
    """Number of worker processes. 0: everything in one process. Unset: one per core, divided by `threads`. The outcome
    is the same to the bit."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of threads of each process. Another number may change the last bits of the outcome."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    """Device that networks are trained on: "cpu", "cuda" or "cuda:1"."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the arithmetic in training; "bfloat16" is mixed precision. Weights are always float32."""


@settings
class Config:
    """A run: methods that are trained on the same clients, once for each seed.

    >>> from genfed.config.reader import read_config
    >>> config = read_config({"name": "first", "methods": ["gefl"], "data": {"kind": "digits"}}, ["seeds=[0, 1]"])
    >>> config.labels, config.seeds, config.federation.clients
    (('gefl', 'local', 'centralised'), (0, 1), 10)
    """

    name: str
    """Name of the run; its results go to runs/NAME. Unset: the name of the file."""
    methods: tuple[str, ...]
    """Methods to run. Each is the name of a method, or a label of your own whose table [method.LABEL] sets
    `kind = "name"`. The name of your own method is "package.module:Class"."""
    baselines: tuple[str, ...] = ("local", "centralised")
    """Baselines that are run as well, unless `methods` names them: by default the expected floor and ceiling."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Seeds. Every method runs once for each seed, which has its own clients, initial weights and random numbers."""
    data_root: str = ""
    """Folder that relative paths in [data] and [public] start from. Empty: the working directory."""
    data: InstanceOf[Source]
    """Data source of the clients' examples; `kind` names it."""
    public: InstanceOf[Source] | None = None
    """Data source of public examples, whose labels are not used. Only a few methods need it. Unset: no public
    examples."""
    partition: InstanceOf[Partitioner] = Field(default_factory=IID)
    """How the training examples are divided among the clients; `kind` names the scheme."""
    federation: Federation = Field(default_factory=Federation)
    """Settings of the clients."""
    aggregation: InstanceOf[AggregationRule] | None = None
    """Robust rule that replaces every mean of uploads; `kind` names it. Unset: the means that the methods define."""
    attack: InstanceOf[Attack] | None = None
    """Simulated attack by some of the clients; `kind` names it. Unset: all clients are honest."""
    secure_aggregation: SecureAggregation | None = None
    """Secure aggregation: the server learns sums of uploads, but no single upload. Unset: the server sees every
    upload."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """Settings of the evaluation."""
    compute: Compute = Field(default_factory=Compute)
    """Settings of the machine."""
    metrics: Metrics = Field(default_factory=Metrics)
    """Settings of the metrics of generators and costs."""
    published: dict[str, InstanceOf[Published]] = Field(default_factory=dict)
    """Published results, shown next to the run's own in the report: a table [published.LABEL] per method."""
    audits: tuple[str, ...] = ()
    """Privacy audits of every method, after its last round with the first seed. Each is the name of an audit (`genfed
    list audits`), or a label of your own whose table [audit.LABEL] sets `kind = "name"`."""
    audit: dict[str, InstanceOf[Audit]] = Field(default_factory=dict)
    """Settings of the audits, for `audits` and for `genfed audit`: a table [audit.LABEL] per audit."""
    privacy: InstanceOf[PrivacySettings] | None = None
    """Differential privacy; `kind` names the mechanism: "dp_sgd" and "dp_sum" protect every example, "dp_fedavg"
    every client. Unset: no differential privacy."""
    method: dict[str, InstanceOf[Method[Any]]]
    """Settings of the methods: a table [method.LABEL] per method."""

    def __post_init__(self) -> None:
        if self.privacy is not None and not isinstance(self.privacy, DPSGD | DPFedAvg | DPSum):
            raise GenfedError(
                f"privacy.kind: {type(self.privacy).__name__} is a mechanism that runs do not apply; set "
                '"dp_sgd", "dp_sum" or "dp_fedavg"'
            )
        if twice := [seed for seed in self.seeds if self.seeds.count(seed) > 1]:
            raise GenfedError(f"seeds: {twice[0]} stands twice; each seed is one repetition")
        if not re.fullmatch(r"[^./\\][^/\\]*", self.name) or one_line(self.name, NAME) != self.name:
            raise GenfedError(
                f"name = {one_line(repr(self.name), NAME)}: it names a folder of runs/, so no / or \\, no . at its "
                f"start, and at most {NAME} characters that can be shown"
            )

    @property
    def example_privacy(self) -> DPSGD | None:
        """Differential privacy of every example in training. None: unset."""
        return self.privacy if isinstance(self.privacy, DPSGD) else None

    @property
    def client_privacy(self) -> DPFedAvg | None:
        """Differential privacy of every client. None: unset."""
        return self.privacy if isinstance(self.privacy, DPFedAvg) else None

    @property
    def sum_privacy(self) -> DPSum | None:
        """Differential privacy of every example in sums. None: unset."""
        return self.privacy if isinstance(self.privacy, DPSum) else None

    @property
    def labels(self) -> tuple[str, ...]:
        """All methods of the run, in order."""
        return tuple(dict.fromkeys(self.methods + self.baselines))

"""Judging the generators of a seed: samples, and a reference classifier of real examples that all methods share."""

import functools
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from genfed.config.settings import Config
from genfed.core.errors import GenfedError
from genfed.core.federated_data import FederatedData
from genfed.core.method import Method
from genfed.core.rng import stream
from genfed.core.task import Data, Task
from genfed.engines.client_runner import NewNetwork
from genfed.experiment.checks import check_architecture
from genfed.experiment.trial import Trial, trial_server
from genfed.metrics.generator_metrics import frechet_distance, memorization, network_features, precision_recall
from genfed.metrics.lpips import Lpips
from genfed.report.results import QUALITY
from genfed.training.evaluation import evaluate, predict
from genfed.training.fit import Objective, cross_entropy, fit
from genfed.training.pixels import normalize_pixels
from genfed.training.synthetic_dataset import NO_CLIENT, SyntheticBatch, choose_as_many, keeps_synthetic_dataset
from genfed.training.weights import load_weights

BATCH, LEARNING_RATE = 64, 1e-3
"""Of Adam, which trains the reference classifier."""
TRAINED, FRESH = 1000, 600
"""Training examples whose ratio is taken; real and generated ones among which their nearest is sought (GeFL's)."""


@dataclass(frozen=True)
class ReferenceClassifier:
    """A classifier of real examples, and what it makes of them."""

    network: nn.Module
    accuracy: float
    """On the held-out part, in [0, 1]."""
    held_out: Tensor
    """Features [n, d] of the held-out part."""
    trained: Tensor
    """Rows of the training examples whose ratio is taken."""


class GeneratorEvaluator:
    """Judges the generators and kept sets of one seed; its reference classifier is trained when it is first needed."""

    def __init__(self, config: Config, shards: FederatedData, seed: int, new_network: NewNetwork) -> None:
        self._config, self._shards, self._seed, self._samples = config, shards, seed, config.quality.samples
        self._new_network = new_network
        self._epochs, self._device = config.quality.epochs, torch.device(config.compute.device)
        self._architecture = reference_architecture(config, shards.task)
        self._lpips = None if config.quality.lpips is None else Lpips(config.quality.lpips)

    def __call__(self, trial: Trial, state: Any, step: int) -> dict[str, Any]:
        """The row of metrics.jsonl for a trial that ended in `state` after `step` rounds."""
        if trial.method.of_features:
            return self._in_features(trial, state)._row(trial, state, step)
        return self._row(trial, state, step)

    def _in_features(self, trial: Trial, state: Any) -> "GeneratorEvaluator":
        """Of the real examples' features, as the trial's clients have them in the end."""

        def of(data: Data) -> Data:
            return Data(trial.method.represent(trial_server(trial, 0, "quality"), state, data.x), data.y)

        train = of(self._shards.train)
        task = replace(self._shards.task, kind="features", shape=tuple(train.x.shape[1:]))
        config = replace(self._config, quality=replace(self._config.quality, lpips=None))
        shards = replace(self._shards, task=task, train=train, held_out=of(self._shards.held_out))
        return GeneratorEvaluator(config, shards, self._seed, self._new_network)

    def _row(self, trial: Trial, state: Any, step: int) -> dict[str, Any]:
        makes = trial.method.generates or trial.method.of_features
        train, held_out, reference = self._shards.train, self._shards.held_out, self._reference
        # Classes as often as the clients have them: else the measures would judge the choice of labels.
        y = train.y[torch.randint(len(train), (self._samples,), generator=self._stream("labels"))]
        begun = time.perf_counter()
        stored = None if makes else self._stored(trial, state, y)
        if stored is None:
            made = Data(trial.method.generate(trial_server(trial, 0, "quality"), state, y).float().cpu(), y)
        else:
            made = stored.data
        row = {
            "method": trial.label, "seed": trial.seed, "step": step, "phase": QUALITY, "round": 0, "client": None,
            "seconds": round(time.perf_counter() - begun, 6), "failed": {},
            "samples": len(made), "asked": self._samples, "stored": not makes, "features": trial.method.of_features,
            "architecture": self._architecture, "epochs": self._epochs, "lpips": self._lpips is not None,
        }  # fmt: skip
        if len(made) < 2:
            return row | {"lost": ["the server keeps fewer than 2 images of the clients' classes: they are not judged"]}
        of_made = network_features(reference.network, made.x)
        if not all(bool(torch.isfinite(vectors).all()) for vectors in (made.x, of_made)):
            why = "the generator's samples hold numbers that are not finite, or too large for a classifier"
            return row | {"lost": [f"{why}: they are not judged"]}
        made = Data(made.x.clone(), made.y)  # a method may draw in inference mode
        drawn = self._stream("rows")
        some_real = _some(len(held_out), len(made), drawn)
        fresh = _some(len(held_out), min(FRESH, len(made)), drawn)
        some_made = _some(len(made), len(fresh), drawn)
        of_trained = network_features(reference.network, train.x[reference.trained])
        taught = self._trained(made)
        pictures = [normalize_pixels(z) for z in (train.x[reference.trained], held_out.x[fresh], made.x[some_made])]
        by_lpips = {} if self._lpips is None else {"memorisation_lpips": self._lpips.memorisation(*pictures)}
        return row | {
            "frechet": frechet_distance(of_made, reference.held_out),
            "frechet_real": self._frechet_real(len(made)),
            **precision_recall(reference.held_out[some_real], of_made[: len(some_real)]),
            "right_class": self._accuracy(reference.network, made),
            "train_on_synthetic": self._accuracy(taught, held_out),
            "train_on_real": reference.accuracy,
            "memorisation": memorization(*(z.flatten(1) for z in pictures)),
            **by_lpips,
            "memorisation_features": memorization(of_trained, reference.held_out[fresh], of_made[some_made]),
            **({} if stored is None else self._for_clients(trial, state, stored)),
        }

    def _for_clients(self, trial: Trial, state: Any, made: SyntheticBatch) -> dict[str, float]:
        """Of the images that stand for clients: how sure their own clients' classifiers are of the class asked for,
        where the state has these; and the share that a network which tells clients apart takes for their own clients'.
        """
        of, server = made.wanted.clients, trial_server(trial, 0, "quality")
        kinds = {info.id: info.architecture for info in server.clients}
        told: dict[str, float] = {}
        sure = []
        for client, weights in getattr(state, "teachers", {}).items():
            own = made[of == client]
            network = load_weights(server.new_network(kinds[client], server.rng), weights)
            if len(own):
                chances = predict(network, own.images.to(server.device), server.precision).softmax(1).cpu()
                sure.append(chances.gather(1, own.wanted.labels[:, None]))
        if sure:
            told["certainty"] = float(torch.cat(sure).mean())
        if bool((of != NO_CLIENT).any()) and len(self._shards.clients) > 1:
            network, told["clients_apart"] = self._apart
            own = made[of != NO_CLIENT]
            told["client_match"] = self._accuracy(network, Data(own.images, own.wanted.clients))
        return told

    @functools.cached_property
    def _apart(self) -> tuple[nn.Module, float]:
        """A network that tells clients apart, trained on four fifths of the examples; its accuracy on the rest."""
        sizes = torch.tensor([stop - start for start, stop in self._shards.ranges])
        owned = Data(self._shards.train.x, torch.arange(len(sizes)).repeat_interleave(sizes))
        order = torch.randperm(len(owned), generator=self._stream("apart"))
        kept_back = max(1, len(owned) // 5)
        network = self._trained(owned[order[kept_back:]], tuple(str(info.id) for info in self._shards.clients))
        return network, self._accuracy(network, owned[order[:kept_back]])

    @functools.cached_property
    def _reference(self) -> ReferenceClassifier:
        train, held_out = self._shards.train, self._shards.held_out
        network = self._trained(train)
        trained = _some(len(train), TRAINED, self._stream("trained"))
        of_held_out = network_features(network, held_out.x)
        return ReferenceClassifier(network, self._accuracy(network, held_out), of_held_out, trained)

    def _frechet_real(self, samples: int) -> float:
        """The distance of as many training examples as there are samples to the held-out part."""
        as_many = _some(len(self._shards.train), samples, self._stream("as-many"))
        return frechet_distance(
            network_features(self._reference.network, self._shards.train.x[as_many]), self._reference.held_out
        )

    def _stored(self, trial: Trial, state: Any, y: Tensor) -> SyntheticBatch:
        """Of the set that the server keeps, at random: as many of each class as in y, or all where there are fewer."""
        server, drawn = trial_server(trial, 0, "quality"), self._stream("stored")
        rows = choose_as_many(state.synthetic.requested(server).labels, y, drawn)
        # Shuffled once more: some measures look at the first ones alone.
        made: SyntheticBatch = state.synthetic.read(server, rows[torch.randperm(len(rows), generator=drawn)])
        return made

    def _trained(self, data: Data, classes: tuple[str, ...] | None = None) -> nn.Module:
        """A network from the same initial weights, whatever it is trained on; of the task's classes, or others."""
        task = self._shards.task if classes is None else replace(self._shards.task, classes=classes)
        network = self._new_network(self._architecture, task, self._stream("weights"))
        network = network.to(self._device).train()
        adam = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
        player, there = Objective(cross_entropy(network), adam), data.to(self._device)
        fit([player], there, epochs=self._epochs, batch_size=BATCH, rng=self._stream("training"))
        return network

    def _accuracy(self, network: nn.Module, data: Data) -> float:
        counts = evaluate(network, data.to(self._device), int(data.y.max()) + 1)
        return int(counts.correct.sum()) / int(counts.total.sum())

    def _stream(self, purpose: str) -> torch.Generator:
        return stream(self._seed, "quality", purpose)


def reference_architecture(config: Config, task: Task) -> str:
    """Of the reference classifier: what the config says, or a small one that fits; of features always a small one."""
    if task.kind == "features":
        return "mlp"
    if config.quality.architecture is not None:
        return config.quality.architecture
    return "cnn7-bn" if task.kind == "image" and min(task.shape[1:]) >= 16 else "mlp"


def check_generator_quality(config: Config, shards: FederatedData, new_network: NewNetwork) -> None:
    """Refuses a reference classifier that cannot judge these examples.

    Raises:
        GenfedError: it does not fit them, or has no linear layer.
    """
    if not measures_generators(config):
        return
    if config.quality.lpips is not None:
        if shards.task.kind != "image" or shards.task.shape[0] not in (1, 3):
            raise GenfedError(f"quality.lpips: LPIPS is for grey and RGB images; examples are {shards.task.shape}")
        Lpips(config.quality.lpips)
    name = reference_architecture(config, shards.task)
    try:
        check_architecture(name, shards.task, shards.train, new_network)
    except GenfedError as error:
        raise GenfedError(f"quality.architecture: {error}") from None
    network = new_network(name, shards.task, torch.Generator().manual_seed(0))
    if not any(isinstance(module, nn.Linear) for module in network.modules()):
        raise GenfedError(f"quality.architecture = {name!r}: it has no linear layer, before which features are taken")


def measures_generators(config: Config) -> bool:
    """Whether anything of the run is judged."""
    return config.quality.samples > 0 and any(is_evaluated(method) for method in config.method.values())


def is_evaluated(method: Method[Any]) -> bool:
    """Whether the method has samples to judge, of examples or features, or its server keeps a set of them."""
    return method.of_features or has_samples(method)


def has_samples(method: Method[Any]) -> bool:
    """Whether it has examples to show: it makes them, or its server keeps a set of them."""
    return method.generates or keeps_synthetic_dataset(method)


def is_current(row: dict[str, Any], config: Config, task: Task) -> bool:
    """Whether a row of this kind was made with the config's settings."""
    if of_features := row.get("features", False):
        task = replace(task, kind="features")
    lpips = config.quality.lpips is not None and not of_features
    now = (config.quality.samples, reference_architecture(config, task), config.quality.epochs, lpips)
    return (row.get("asked", row["samples"]), row["architecture"], row["epochs"], row.get("lpips", False)) == now


def _some(n: int, most: int, rng: torch.Generator) -> Tensor:
    """At most so many of n rows, at random."""
    return torch.randperm(n, generator=rng)[:most]

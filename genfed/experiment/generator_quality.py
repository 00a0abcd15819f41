"""Evaluates the generators of a seed by their samples, with a reference classifier that all methods share."""

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from genfed.config.settings import Metrics
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
from genfed.metrics.series_metrics import autocorrelation_distance, spectrum_distance
from genfed.report.generator_verdict import describe_ignored_labels, find_chance
from genfed.report.results import QUALITY
from genfed.training.evaluation import evaluate, predict
from genfed.training.fit import Objective, cross_entropy, fit
from genfed.training.pixels import normalize_pixels
from genfed.training.synthetic_dataset import NO_CLIENT, SyntheticBatch, choose_as_many, keeps_synthetic_dataset
from genfed.training.weights import build_classifier

BATCH, LEARNING_RATE = 64, 1e-3
"""Batch size and learning rate of Adam, which trains the reference classifier."""
FEW = 200
"""Number of samples by which a generator is judged before the joint rounds."""
TRAINED, FRESH = 1000, 600
"""Numbers of training examples, and of real and generated ones, in the memorization ratio (GeFL's)."""


@dataclass(frozen=True)
class ReferenceClassifier:
    """A classifier trained on the real training examples, and what it computes of real examples."""

    network: nn.Module
    accuracy: float
    """Accuracy on the held-out examples, in [0, 1]."""
    held_out: Tensor
    """Features [n, d] of the held-out examples."""
    trained: Tensor
    """Rows of the training examples in the memorization ratio."""


class GeneratorEvaluator:
    """Evaluates the generators and synthetic sets of one seed. The reference classifier is trained at its first use."""

    def __init__(
        self, metrics: Metrics, device: torch.device, shards: FederatedData, seed: int, new_network: NewNetwork
    ) -> None:
        self._metrics, self._device, self._shards, self._seed = metrics, device, shards, seed
        self._new_network = new_network
        self._architecture = reference_architecture(metrics, shards.task)
        self._lpips = None if metrics.lpips is None else Lpips(metrics.lpips)

    def __call__(self, trial: Trial, state: Any, step: int) -> dict[str, Any]:
        """Returns the row of metrics for a trial that ended in `state` after `step` rounds."""
        if trial.method.of_features:
            return self._on_features(trial, state)._evaluate(trial, state, step)
        return self._evaluate(trial, state, step)

    def describe_labels(self, trial: Trial, state: Any) -> str | None:
        """Returns a sentence if the generator of a state ignores labels, by `FEW` samples; None: it heeds them."""
        if trial.method.of_features:
            return self._on_features(trial, state)._describe_labels(trial, state)
        return self._describe_labels(trial, state)

    def _describe_labels(self, trial: Trial, state: Any) -> str | None:
        y = self._shards.train.y
        drawn = y[torch.randint(len(y), (FEW,), generator=self._stream("few"))]
        x = trial.method.generate(trial_server(trial, 0, "quality"), state, drawn).float().cpu()
        if not bool(torch.isfinite(x).all()):
            return "the generator's samples hold numbers that are not finite"
        right = self._accuracy(self._reference.network, Data(x.clone(), drawn))
        return describe_ignored_labels(right, find_chance(torch.bincount(y).tolist()), self._reference.accuracy)

    def _on_features(self, trial: Trial, state: Any) -> "GeneratorEvaluator":
        """Returns an evaluator whose real examples are the features that the trial's clients compute in the end."""

        def to_features(data: Data) -> Data:
            return Data(trial.method.represent(trial_server(trial, 0, "quality"), state, data.x), data.y)

        train, held_out = to_features(self._shards.train), to_features(self._shards.held_out)
        task = replace(self._shards.task, kind="features", shape=tuple(train.x.shape[1:]))
        shards = replace(self._shards, task=task, train=train, held_out=held_out)
        metrics = replace(self._metrics, lpips=None)
        return GeneratorEvaluator(metrics, self._device, shards, self._seed, self._new_network)

    def _evaluate(self, trial: Trial, state: Any, step: int) -> dict[str, Any]:
        generates = trial.method.generates or trial.method.of_features
        begun = time.perf_counter()
        # Classes as often as the clients have them: else the metrics would depend on the choice of labels.
        y = self._shards.train.y
        y = y[torch.randint(len(y), (self._metrics.samples,), generator=self._stream("labels"))]
        stored = None if generates else self._choose_stored(trial, state, y)
        if stored is None:
            data = Data(trial.method.generate(trial_server(trial, 0, "quality"), state, y).float().cpu(), y)
        else:
            data = stored.data
        row = {
            "method": trial.label, "seed": trial.seed, "step": step, "phase": QUALITY, "round": 0, "client": None,
            "seconds": round(time.perf_counter() - begun, 6), "failed": {},
            "samples": len(data), "asked": self._metrics.samples, "stored": not generates,
            "features": trial.method.of_features, "architecture": self._architecture,
            "epochs": self._metrics.epochs, "lpips": self._lpips is not None,
        }  # fmt: skip
        if len(data) < 2:
            why = "the server stores fewer than 2 images of the clients' classes"
            return row | {"lost": [f"{why}: they are not evaluated"]}
        features = network_features(self._reference.network, data.x)
        if not all(bool(torch.isfinite(vectors).all()) for vectors in (data.x, features)):
            why = "the generator's samples hold numbers that are not finite, or too large for a classifier"
            return row | {"lost": [f"{why}: they are not evaluated"]}
        row |= self._measure(Data(data.x.clone(), data.y), features)  # a method may generate in inference mode
        return row if stored is None else row | self._measure_clients(trial, state, stored)

    def _measure(self, data: Data, features: Tensor) -> dict[str, float]:
        """Returns the metrics of generated examples, whose features by the reference classifier are `features`."""
        train, held_out, reference = self._shards.train, self._shards.held_out, self._reference
        draws = self._stream("rows")
        real = _choose_rows(len(held_out), len(data), draws)
        fresh = _choose_rows(len(held_out), min(FRESH, len(data)), draws)
        generated = _choose_rows(len(data), len(fresh), draws)
        trained_features = network_features(reference.network, train.x[reference.trained])
        student = self._train(data)
        pictures = [normalize_pixels(z) for z in (train.x[reference.trained], held_out.x[fresh], data.x[generated])]
        by_lpips = {} if self._lpips is None else {"memorisation_lpips": self._lpips.memorization(*pictures)}
        return {
            "frechet": frechet_distance(features, reference.held_out),
            "frechet_real": self._frechet_real(len(data)),
            **precision_recall(reference.held_out[real], features[: len(real)]),
            "right_class": self._accuracy(reference.network, data),
            "train_on_synthetic": self._accuracy(student, held_out),
            "train_on_real": reference.accuracy,
            "memorisation": memorization(*(z.flatten(1) for z in pictures)),
            **by_lpips,
            **self._measure_series(data),
            "memorisation_features": memorization(trained_features, reference.held_out[fresh], features[generated]),
        }

    def _measure_series(self, data: Data) -> dict[str, float]:
        """Returns the distances of generated series to held-out ones, and those of as many real ones; empty: the
        examples are no series.
        """
        if self._shards.task.kind != "series":
            return {}
        held_out = self._shards.held_out
        rows = _choose_rows(len(self._shards.train), len(data), self._stream("as-many"))
        return {
            f"{name}{suffix}": distance(held_out, some)
            for name, distance in (("spectra", spectrum_distance), ("autocorrelation", autocorrelation_distance))
            for suffix, some in (("", data), ("_real", self._shards.train[rows]))
        }

    def _measure_clients(self, trial: Trial, state: Any, batch: SyntheticBatch) -> dict[str, float]:
        """Returns the metrics of images that stand for clients. "certainty": mean probability of the requested class by
        the classifier of the image's client, where the state has these classifiers. "client_match": share of the images
        that a network which distinguishes clients assigns to their clients.
        """
        clients, server = batch.request.clients, trial_server(trial, 0, "quality")
        architectures = {info.id: info.architecture for info in server.clients}
        found: dict[str, float] = {}
        certainties = []
        for client, weights in getattr(state, "teachers", {}).items():
            own = batch[clients == client]
            network = build_classifier(server, architectures[client], weights)
            if len(own):
                probabilities = predict(network, own.images.to(server.device), server.precision).softmax(1).cpu()
                certainties.append(probabilities.gather(1, own.request.labels[:, None]))
        if certainties:
            found["certainty"] = float(torch.cat(certainties).mean())
        if bool((clients != NO_CLIENT).any()) and len(self._shards.clients) > 1:
            network, found["clients_apart"] = self._client_classifier
            own, ids = batch[clients != NO_CLIENT], torch.tensor([info.id for info in self._shards.clients])
            places = torch.searchsorted(ids, own.request.clients)  # where a client is excluded, ids have gaps
            found["client_match"] = self._accuracy(network, Data(own.images, places))
        return found

    @functools.cached_property
    def _client_classifier(self) -> tuple[nn.Module, float]:
        """Returns a network that distinguishes clients, trained on four fifths of the examples, and its accuracy on the
        rest.
        """
        sizes = torch.tensor([stop - start for start, stop in self._shards.ranges])
        owned = Data(self._shards.train.x, torch.arange(len(sizes)).repeat_interleave(sizes))
        order = torch.randperm(len(owned), generator=self._stream("apart"))
        held_out = max(1, len(owned) // 5)
        network = self._train(owned[order[held_out:]], tuple(str(info.id) for info in self._shards.clients))
        return network, self._accuracy(network, owned[order[:held_out]])

    @functools.cached_property
    def _reference(self) -> ReferenceClassifier:
        train, held_out = self._shards.train, self._shards.held_out
        network = self._train(train)
        trained = _choose_rows(len(train), TRAINED, self._stream("trained"))
        features = network_features(network, held_out.x)
        return ReferenceClassifier(network, self._accuracy(network, held_out), features, trained)

    def _frechet_real(self, samples: int) -> float:
        """Returns the distance of as many training examples as there are samples to the held-out examples."""
        rows = _choose_rows(len(self._shards.train), samples, self._stream("as-many"))
        return frechet_distance(
            network_features(self._reference.network, self._shards.train.x[rows]), self._reference.held_out
        )

    def _choose_stored(self, trial: Trial, state: Any, y: Tensor) -> SyntheticBatch:
        """Returns random images of the set that the server stores: as many of each class as in y, or all of a smaller
        class.
        """
        server, draws = trial_server(trial, 0, "quality"), self._stream("stored")
        rows = choose_as_many(state.synthetic.requested(server).labels, y, draws)
        # Shuffled once more: some metrics look at the first ones only.
        batch: SyntheticBatch = state.synthetic.read(server, rows[torch.randperm(len(rows), generator=draws)])
        return batch

    def _train(self, data: Data, classes: tuple[str, ...] | None = None) -> nn.Module:
        """Returns a trained network; initial weights do not depend on the data. `classes` None: those of the task."""
        task = self._shards.task if classes is None else replace(self._shards.task, classes=classes)
        network = self._new_network(self._architecture, task, self._stream("weights"))
        network = network.to(self._device).train()
        adam = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
        objective, there = Objective(cross_entropy(network), adam), data.to(self._device)
        fit([objective], there, epochs=self._metrics.epochs, batch_size=BATCH, rng=self._stream("training"))
        return network

    def _accuracy(self, network: nn.Module, data: Data) -> float:
        counts = evaluate(network, data.to(self._device), int(data.y.max()) + 1)
        return int(counts.correct.sum()) / int(counts.total.sum())

    def _stream(self, purpose: str) -> torch.Generator:
        return stream(self._seed, "quality", purpose)


def reference_architecture(metrics: Metrics, task: Task) -> str:
    """Returns the architecture of the reference classifier: as set, else a small one that fits; of features always a
    small one.
    """
    if task.kind == "features":
        return "mlp"
    if metrics.architecture is not None:
        return metrics.architecture
    if task.kind == "series":
        return "cnn1d"
    return "cnn7-bn" if task.kind == "image" and min(task.shape[1:]) >= 16 else "mlp"


def check_generator_quality(
    metrics: Metrics, methods: Mapping[str, Method[Any]], shards: FederatedData, new_network: NewNetwork
) -> None:
    """Refuses settings with which the generators of `methods` cannot be evaluated on these examples.

    Raises:
        GenfedError: the reference classifier does not fit the examples or has no linear layer, or LPIPS cannot be used.
    """
    if not metrics.samples or not any(is_evaluated(method) for method in methods.values()):
        return
    if metrics.lpips is not None:
        if shards.task.kind != "image" or shards.task.shape[0] not in (1, 3):
            raise GenfedError(f"metrics.lpips: LPIPS is for grey and RGB images; examples are {shards.task.shape}")
        Lpips(metrics.lpips)
    name = reference_architecture(metrics, shards.task)
    try:
        check_architecture(name, shards.task, shards.train, new_network)
    except GenfedError as error:
        raise GenfedError(f"metrics.architecture: {error}") from None
    network = new_network(name, shards.task, torch.Generator().manual_seed(0))
    if not any(isinstance(module, nn.Linear) for module in network.modules()):
        raise GenfedError(f"metrics.architecture = {name!r}: it has no linear layer, before which features are taken")


def is_evaluated(method: Method[Any]) -> bool:
    """Returns whether the method generates examples or features, or its server stores a synthetic set."""
    return method.of_features or has_samples(method)


def has_samples(method: Method[Any]) -> bool:
    """Returns whether the method generates examples, or its server stores a synthetic set."""
    return method.generates or keeps_synthetic_dataset(method)


def is_current(row: Mapping[str, Any], metrics: Metrics, task: Task) -> bool:
    """Returns whether a row was measured with these settings."""
    if of_features := row.get("features", False):
        task = replace(task, kind="features")
    lpips = metrics.lpips is not None and not of_features
    now = (metrics.samples, reference_architecture(metrics, task), metrics.epochs, lpips)
    return (row.get("asked", row["samples"]), row["architecture"], row["epochs"], row.get("lpips", False)) == now


def _choose_rows(n: int, most: int, rng: torch.Generator) -> Tensor:
    """Returns at most `most` of n rows, at random."""
    return torch.randperm(n, generator=rng)[:most]

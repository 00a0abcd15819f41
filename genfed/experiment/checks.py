"""Refuses before training what would fail in it: clients, devices, architectures, augmentation."""

import dataclasses
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from genfed.config.settings import Config
from genfed.core.errors import GenfedError, describe_error
from genfed.core.federated_data import FederatedData
from genfed.core.files import keep_directory
from genfed.core.method import Method
from genfed.core.task import Data, Task
from genfed.data.dataset import Dataset
from genfed.data.fitted import describe_fitted_without
from genfed.engines.client_runner import NewNetwork
from genfed.experiment.partitioning import count_classes
from genfed.training.augmentation import KINDS
from genfed.training.classifier import Training
from genfed.training.pixels import normalize_pixels
from genfed.training.series_augmentation import AXES

CHECK_SECONDS = 120.0
"""Seconds in which an architecture makes a network and scores two examples."""


def check_clients(config: Config, shards: FederatedData, new_network: NewNetwork) -> None:
    """Refuses before training what would fail in it.

    Raises:
        GenfedError: an architecture does not fit the examples, a method needs more examples or classes than a client
            has, a method cannot augment the examples, or the device is missing.
    """
    check_device(config.compute.device)
    if config.federation.timeout is not None and config.compute.workers == 0:
        raise GenfedError("federation.timeout needs worker processes: compute.workers is 0")
    for name in sorted({c.architecture for c in shards.clients}):
        check_architecture(name, shards.task, shards.train, new_network)
    counts = count_classes(shards)
    few = min(shards.clients, key=lambda info: info.examples)
    for label, method in config.method.items():
        if few.examples < method.minimum_examples:
            raise GenfedError(
                f"{label} needs {method.minimum_examples} examples at every client, and client {few.id} has "
                f"{few.examples}: choose another partition, more examples or fewer clients"
            )
        check_augmentation(label, method, shards.task)
        if method.needs_public and config.public is None:
            raise GenfedError(f"{label} needs public examples: name a data source in the table [public]")
        if method.needs_every_class and (missing := _missing_class(counts)) is not None:
            client, place = missing
            raise GenfedError(
                f"{label} needs every class at every client, and client {client} has no example of "
                f"{shards.task.classes[place]!r}: choose another partition or method"
            )


def check_excluded(config: Config, dataset: Dataset, kept: Data) -> None:
    """Refuses to exclude clients whose examples are in how all others are encoded.

    Args:
        config: the config of the run.
        dataset: its data set.
        kept: the training examples of the other clients.

    Raises:
        GenfedError: the encoding of the examples was computed from those of the excluded clients, too.
    """
    if config.federation.excluded and (fitted := describe_fitted_without(config.data, dataset, kept)):
        raise GenfedError(
            f"federation.excluded = {list(config.federation.excluded)}: the run would keep something of them: {fitted}"
        )


def check_augmentation(label: str, method: Method[Any], task: Task) -> None:
    """Refuses augmentation that is for another kind of examples, and augmentation that a method does not do.

    Raises:
        GenfedError: the method's settings ask for it.
    """
    for field in dataclasses.fields(method):  # type: ignore[arg-type]
        training = getattr(method, field.name)
        if not isinstance(training, Training) or training.augmentation == "none":
            continue
        what = f'method.{label}.{field.name}.augmentation = "{training.augmentation}"'
        if field.name in method.unaugmented:
            raise GenfedError(f'{what}: this method does not augment there; only "none" is allowed')
        if task.kind not in KINDS[training.augmentation]:
            able = ", ".join(f'"{name}"' for name in ("none", *(n for n, kinds in KINDS.items() if task.kind in kinds)))
            raise GenfedError(f"{what}: the examples are {task.noun}, where only {able} is allowed")
        if training.augmentation == "rotate" and task.shape[0] % AXES:
            raise GenfedError(f"{what}: {task.shape[0]} channels; a multiple of {AXES} (x, y, z) is allowed")


def has_device(device: str) -> bool:
    """Returns whether this machine has a device: "cpu", "cuda" or "cuda:1"."""
    return device == "cpu" or int(device.partition(":")[2] or 0) < torch.cuda.device_count()


def check_device(device: str) -> None:
    """Refuses a GPU that this machine does not have.

    Raises:
        GenfedError: the device is such a GPU.
    """
    if not has_device(device):
        count = torch.cuda.device_count()
        raise GenfedError(f'compute.device = {device!r}: this machine has {count} CUDA devices; use "cpu"')


def check_architecture(name: str, task: Task, data: Data, new_network: NewNetwork) -> None:
    """Refuses a network that does not map two of these examples to one score per class.

    Raises:
        GenfedError: the network fails, returns something else, or takes too long.
    """
    scores = run_within(CHECK_SECONDS, f"architecture {name}", lambda: _score_two(name, task, data, new_network))
    expected = (min(2, len(data)), len(task.classes))
    if not isinstance(scores, Tensor) or tuple(scores.shape) != expected:
        found = f"scores of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise GenfedError(f"architecture {name} gives {found} where scores of shape {expected} are expected")


def _score_two(name: str, task: Task, data: Data, new_network: NewNetwork) -> object:
    network = new_network(name, task, torch.Generator().manual_seed(0)).eval()
    try:
        with torch.no_grad():
            scores: object = network(normalize_pixels(data.x[:2]))
            return scores
    except (GenfedError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a user's own code may fail in any way
        about = describe_error(error)
        raise GenfedError(f"architecture {name} does not fit examples of shape {task.shape} ({about})") from error


T = TypeVar("T")


def run_within(seconds: float, what: str, work: Callable[[], T]) -> T:
    """Returns what `work` returns, which may be a user's own code. It is left behind where it takes too long.

    Raises:
        GenfedError: it takes longer than `seconds`; the text names `what`.
    """
    done: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def attempt() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:
            done.put((None, error))

    with keep_directory():
        threading.Thread(target=attempt, name=what, daemon=True).start()  # a daemon: it may never end
        try:
            result, error = done.get(timeout=seconds)
        except queue.Empty:
            raise GenfedError(f"{what} took longer than {seconds:g} s to be made and to score two examples") from None
    if error is not None:
        raise error
    return cast(T, result)


def _missing_class(counts: tuple[tuple[int, ...], ...]) -> tuple[int, int] | None:
    """Returns the first client and class without an example. None: every client has every class."""
    return next(((k, c) for k, row in enumerate(counts) for c, n in enumerate(row) if n == 0), None)

"""Classifies new examples by a trained classifier of a run."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from genfed.artifacts.export import find_trained, load_model, read_model_card
from genfed.artifacts.trained_model import TrainedModel
from genfed.config.reader import read_source
from genfed.core.errors import GenfedError
from genfed.core.files import atomic_write, make_folder
from genfed.core.task import Task
from genfed.core.text import csv_cell, one_line
from genfed.data.dataset import Examples, Source
from genfed.data.encoder import Encoder
from genfed.training.evaluation import predict


@dataclass(frozen=True)
class Predictor:
    """A classifier, and how its examples are read."""

    network: nn.Module
    task: Task
    precision: Literal["float32", "bfloat16"]
    source: Source
    """Reads new examples."""
    encoder: Encoder | None
    """How raw examples become x. None: they are used as they are."""
    trained: TrainedModel | None
    """The classifier in its run. None: it comes from an exported folder."""

    def rows(self, path: str, warn: Callable[[str], None] = lambda line: None) -> Iterator[list[object]]:
        """Yields a head, then for every example its name, its class and the probability of each class. `warn` is called
        with a line for each kind of value that does not fit how the training examples were read.
        """
        for i, chunk in enumerate(self.source.read(path, self.task, self.encoder)):
            if i == 0:
                yield [chunk.column, "label", *(f"p_{name}" for name in self.task.classes)]
            for line in chunk.warnings:
                warn(line)
            yield from self._classify(chunk)

    def _classify(self, chunk: Examples) -> list[list[object]]:
        scores = predict(self.network, chunk.x, self.precision)
        if len(invalid := torch.nonzero(~scores.isfinite().all(1))):
            name = one_line(chunk.names[int(invalid[0])])
            raise GenfedError(f"{name}: the classifier's scores are not finite numbers, so that they name no class")
        best, probabilities = scores.argmax(1).tolist(), scores.softmax(1).tolist()
        return [
            [name, self.task.classes[c], *(f"{p:.6g}" for p in row)]
            for name, c, row in zip(chunk.names, best, probabilities, strict=True)
        ]


def load_predictor(run: Path, method: str | None, seed: int | None, client: int | None) -> Predictor:
    """Returns a classifier of a run, or of the folder that `genfed export` wrote.

    Args:
        run: the folder.
        method: label of the method. None: the only one.
        seed: seed of the trial. None: the first.
        client: number of the client. None: the first.

    Raises:
        GenfedError: there is no such run, trial or client, several methods and none is named, or a file is damaged.
    """
    if (run / "model.json").is_file():
        if (method, seed, client) != (None, None, None):
            raise GenfedError(f"{run} holds one model: remove --method, --seed and --client")
        # Whoever calls this limits where code is searched for (`search_code`).
        about, (network, task) = read_model_card(run), load_model(run, trust_code=True)
        return Predictor(network, task, about.precision, read_source(about.data), about.encoder, None)
    found = find_trained(run, method, seed, 0 if client is None else client)
    config = found.chosen.config
    return Predictor(
        found.network,
        found.chosen.at.task,
        config.compute.precision,
        config.data,
        found.chosen.run.read_encoder(),
        found,
    )


def write_predictions(model: Predictor, inputs: str, out: Path, warn: Callable[[str], None] = lambda line: None) -> int:
    """Classifies what `inputs` holds into a CSV file and returns the number of examples.

    Args:
        model: The classifier.
        inputs: The file or folder of examples.
        out: The CSV file to write.
        warn: Called with a line for each kind of value that does not fit how the training examples were read.

    Raises:
        GenfedError: `out` exists, the examples cannot be read or do not fit, or a score is not finite.
    """
    out = out.absolute()  # a user's own code may change the working directory
    if out.exists():
        raise GenfedError(f"{out} exists already; give another --out")
    make_folder(out.parent)
    n = -1
    # A file's name may hold bytes that are not text.
    with atomic_write(out) as part, part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        for row in model.rows(inputs, warn):
            table.writerow([csv_cell(value) for value in row])
            n += 1
    return n

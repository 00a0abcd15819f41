"""What a run works on: its data sets, its clients, the architectures that it knows."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from genfed.config.architectures import Architectures
from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.federated_data import FederatedData
from genfed.core.files import keep_directory
from genfed.core.record import digest, pack
from genfed.core.task import Data, Task
from genfed.data.dataset import Dataset, Source
from genfed.data.encoder import digest_encoder
from genfed.data.huggingface import HuggingFace
from genfed.experiment.trial import new_server
from genfed.preprocessing.source_summary import SourceSummary


@dataclass(frozen=True)
class RunInputs:
    """What a run works on, as far as it is known before the first round."""

    config: Config
    task: Task
    clients: tuple[ClientInfo, ...]
    """The clients of one seed, for checks."""
    architectures: Mapping[int, Architectures]
    """The known architectures, by seed."""
    public: Tensor | None = None
    """Unlabeled public examples, [n, *task.shape]. None: the run has none."""
    summary: SourceSummary = field(default_factory=SourceSummary)
    """What was read from the data sources."""
    encoder: str = ""
    """Digest of the file that says how raw examples become x. Empty: there is none, or sites read them."""

    def initial_server(self) -> Server:
        """Returns the server on which `Method.init` is tried before the first round."""
        seed = self.config.seeds[-1]
        new_network = self.architectures[seed].new
        return new_server(
            self.task, self.clients, self.config.compute, new_network, seed, 0, "init", public=self.public
        )


@dataclass(frozen=True)
class PublicExamples:
    """Public examples, as a record."""

    x: Tensor


def load_data(config: Config) -> Dataset:
    """Reads the data set of the clients."""
    return load_source(config.data, config.data_root)


_OTHER_SCALE = {
    "image": "its pixels are on another scale than the clients', so one image would give different numbers; set pixels "
    "and background of both to the same values",
    "series": "its channels are on another scale than the clients', so one window would give different numbers; set "
    "encoder of both to the same encoder.json",
    "table": "its columns are encoded differently than the clients', so one row would give different numbers; set "
    "encoder of both to the same encoder.json (`genfed run` on a table writes it into the run's folder)",
}
"""What is wrong where public examples are not encoded as the clients' are, by kind."""


def load_public(config: Config, task: Task, encoder: str = "") -> Tensor | None:
    """Reads the training part of the public data set, without labels. None: the config has none.

    Args:
        config: The config of the run.
        task: The task of the clients.
        encoder: Digest of how the clients' raw examples become x. Empty: unknown.

    Raises:
        GenfedError: its examples are of another kind or shape than the clients', or are encoded in another way.
    """
    if config.public is None:
        return None
    public = load_source(config.public, config.data_root)
    if (public.task.kind, public.task.shape) != (task.kind, task.shape):
        raise GenfedError(
            f"public: {public.task.kind} examples of shape {public.task.shape}, where the clients' are {task.kind} "
            f"examples of shape {task.shape}; set its size and channels, or choose another source"
        )
    if task.kind in _OTHER_SCALE and encoder and digest_encoder(public.encoder, task.kind) != encoder:
        raise GenfedError(f"public: {_OTHER_SCALE[task.kind]}")
    return public.train.x


S = TypeVar("S", bound=Source)
PATHS = ("path", "validation_path", "test_path", "encoder")
"""Settings of data sources that name files or folders."""


def load_source(source: Source, root: str) -> Dataset:
    """Reads a data source whose relative paths start from `root`."""
    with keep_directory():
        return _load(source, root)


def _load(source: Source, root: str) -> Dataset:
    return locate_source(source, root).load()


def locate_source(source: S, root: str) -> S:
    """Returns a data source whose relative paths start from `root`; empty: from the working directory."""
    if root:
        given = {name: getattr(source, name, None) for name in PATHS}
        paths: dict[str, str | tuple[str, ...]] = {
            name: str(Path(root) / path) for name, path in given.items() if isinstance(path, str)
        }
        several = {name: path for name, path in given.items() if isinstance(path, tuple)}
        paths |= {name: tuple(str(Path(root) / each) for each in path) for name, path in several.items()}
        if isinstance(source, HuggingFace) and not Path(str(paths["path"])).exists():
            del paths["path"]  # a hub's name is no path
        return replace(source, **paths)  # type: ignore[type-var]
    return source


_UNTRAINED = ("own", "held_out_counts")
"""Fields of `FederatedData` that training does not use."""


def data_fingerprint(shards: FederatedData, public: Tensor | None) -> str:
    """Returns a fingerprint of the data of a seed. Fields that training does not use do not count."""
    packed = pack(replace(shards, own={}))
    fields = {name: value for name, value in json.loads(packed.skeleton).items() if name not in _UNTRAINED}
    fingerprint = digest(packed._replace(skeleton=json.dumps(fields)))
    return fingerprint + ("" if public is None else digest(pack(PublicExamples(public))))


def digest_pool(shards: FederatedData) -> str:
    """Returns a digest of the training and the held-out examples, the same however they are divided among clients."""
    return "".join(_digest_rows(part) for part in (shards.train, shards.held_out))


def _digest_rows(data: Data) -> str:
    """Returns a digest that does not depend on the order of the rows."""
    x, y = data.x.flatten(1).contiguous().numpy(), data.y.numpy()
    rows = (hashlib.blake2b(x[i].tobytes() + y[i].tobytes(), digest_size=8).digest() for i in range(len(y)))
    return f"{sum(int.from_bytes(row, 'little') for row in rows) % 2**64:016x}"

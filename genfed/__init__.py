"""genfed: generative federated learning.

Clients train on data that they keep, a server joins what they upload, and generators stand in for data that no other
party may see. genfed runs published methods and your own on the same clients, and reports what each gains and costs.

How to begin:

- Run a config: `genfed.run("config.toml")` returns a `Report`; `genfed run config.toml` does the same in a shell.
- Write a method: derive from `Method`, or from a base (`from genfed.methods.bases import FederatedAveraging`), and name
  it in the config by `kind = "package.module:Class"`. docs/own.md goes through one.
- Use your own data: the table [data] of a config names a folder of images, a table or arrays. `genfed list data` shows
  every kind.

The public names:

- Runs: `run`, `Config`, `Report`, `load_model` (reads an exported classifier), `GenfedError` (any error of yours or of
  the data, in one line).
- What a method consists of: `Method`, `settings`, `Phase`, `Repeat`, `Reply`, `Reduced`, `Empty`.
- How uploads are reduced: `Mean`, `Sum`, `Collect`.
- What server and clients work with: `Server`, `Client`, `ClientInfo`, `Slot`, `Shard`, `Task`, `Data`.
- Training: `Training`, `train`, `Objective`, `fit`, `normalize_pixels`.
- Tables: `Synthesizer` (fit to the rows of silos, then draw rows).
- Weights: `Model`, `initial_weights`, `load_weights`, `weights_of`.
- Generators and synthetic data: `Generator`, `GeneratorNetwork`, `SampleRequest`, `SyntheticDataset`, `synthesis`,
  `train_student`.

Names are imported when they are first used, so that the command line answers without loading torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from genfed._version import __version__ as __version__

if TYPE_CHECKING:
    from genfed.artifacts.export import load_model
    from genfed.artifacts.synthesizer import Synthesizer
    from genfed.config.settings import Config
    from genfed.core.aggregate import ClientInfo, Collect, Mean, Sum
    from genfed.core.client import Client, Server, Slot
    from genfed.core.errors import GenfedError
    from genfed.core.method import Method
    from genfed.core.phase import Empty, Phase, Reduced, Repeat, Reply
    from genfed.core.settings import settings
    from genfed.core.store import Shard
    from genfed.core.task import Data, Task
    from genfed.experiment.run import run
    from genfed.generators.generator import Generator, GeneratorNetwork
    from genfed.report.results import Report
    from genfed.training.classifier import Training, train
    from genfed.training.fit import Objective, fit
    from genfed.training.pixels import normalize_pixels
    from genfed.training.synthetic_dataset import SampleRequest, SyntheticDataset, synthesis
    from genfed.training.synthetic_teaching import train_student
    from genfed.training.weights import Model, initial_weights, load_weights, weights_of

_HOMES = {
    "genfed.artifacts.export": ("load_model",),
    "genfed.artifacts.synthesizer": ("Synthesizer",),
    "genfed.config.settings": ("Config",),
    "genfed.core.aggregate": ("ClientInfo", "Collect", "Mean", "Sum"),
    "genfed.core.client": ("Client", "Server", "Slot"),
    "genfed.core.errors": ("GenfedError",),
    "genfed.core.method": ("Method",),
    "genfed.core.phase": ("Empty", "Phase", "Reduced", "Repeat", "Reply"),
    "genfed.core.settings": ("settings",),
    "genfed.core.store": ("Shard",),
    "genfed.core.task": ("Data", "Task"),
    "genfed.experiment.run": ("run",),
    "genfed.generators.generator": ("Generator", "GeneratorNetwork"),
    "genfed.report.results": ("Report",),
    "genfed.training.classifier": ("Training", "train"),
    "genfed.training.fit": ("Objective", "fit"),
    "genfed.training.pixels": ("normalize_pixels",),
    "genfed.training.synthetic_dataset": ("SyntheticDataset", "SampleRequest", "synthesis"),
    "genfed.training.synthetic_teaching": ("train_student",),
    "genfed.training.weights": ("Model", "initial_weights", "load_weights", "weights_of"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Client",
    "ClientInfo",
    "Collect",
    "Config",
    "Data",
    "Empty",
    "Generator",
    "GeneratorNetwork",
    "GenfedError",
    "Mean",
    "Method",
    "Model",
    "Objective",
    "Phase",
    "Reduced",
    "Repeat",
    "Reply",
    "Report",
    "SampleRequest",
    "Server",
    "Shard",
    "Slot",
    "Sum",
    "Synthesizer",
    "SyntheticDataset",
    "Task",
    "Training",
    "fit",
    "initial_weights",
    "load_model",
    "load_weights",
    "normalize_pixels",
    "run",
    "settings",
    "synthesis",
    "train",
    "train_student",
    "weights_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'genfed' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)

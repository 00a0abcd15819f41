"""genfed: generative federated learning.

`genfed.run("config.toml")` runs a config and returns its report; what a method's author needs is here too. Names are
imported when they are first used, so that the command line answers without loading torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from genfed._version import __version__ as __version__

if TYPE_CHECKING:
    from genfed.artifacts.export import load_model
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

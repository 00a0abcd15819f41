"""genfed: generative federated learning.

`genfed.run("config.toml")` runs a config and returns its report; what a method's author needs is here too. Names are
imported when they are first used, so that the command line answers without loading torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genfed.app.config import Config
    from genfed.app.export import load_model
    from genfed.app.run import run
    from genfed.core.aggregate import ClientInfo, Collect, Mean, Sum
    from genfed.core.errors import GenfedError
    from genfed.core.method import Client, Data, Method, Nothing, Phase, Reduced, Repeat, Reply, Server, Slot, Task
    from genfed.core.settings import settings
    from genfed.core.store import Shard
    from genfed.generators.generator import Generator, GeneratorNetwork
    from genfed.learn.aggregation import aggregate
    from genfed.learn.fit import Player, fit, scaled
    from genfed.learn.synthetic import SyntheticSet, Wanted, synthesis
    from genfed.learn.training import Training, train
    from genfed.learn.weights import Model, initial_weights, load_weights, weights_of
    from genfed.report.results import Report

__version__ = "0.1.0"

_HOMES = {
    "genfed.app.config": ("Config",),
    "genfed.app.export": ("load_model",),
    "genfed.app.run": ("run",),
    "genfed.core.aggregate": ("ClientInfo", "Collect", "Mean", "Sum"),
    "genfed.core.errors": ("GenfedError",),
    "genfed.core.method": (
        *("Client", "Data", "Method", "Nothing", "Phase", "Reduced", "Repeat", "Reply", "Server", "Slot", "Task"),
    ),
    "genfed.core.settings": ("settings",),
    "genfed.core.store": ("Shard",),
    "genfed.generators.generator": ("Generator", "GeneratorNetwork"),
    "genfed.learn.aggregation": ("aggregate",),
    "genfed.learn.fit": ("Player", "fit", "scaled"),
    "genfed.learn.synthetic": ("SyntheticSet", "Wanted", "synthesis"),
    "genfed.learn.training": ("Training", "train"),
    "genfed.learn.weights": ("Model", "initial_weights", "load_weights", "weights_of"),
    "genfed.report.results": ("Report",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Client",
    "ClientInfo",
    "Collect",
    "Config",
    "Data",
    "Generator",
    "GeneratorNetwork",
    "GenfedError",
    "Mean",
    "Method",
    "Model",
    "Nothing",
    "Phase",
    "Player",
    "Reduced",
    "Repeat",
    "Reply",
    "Report",
    "Server",
    "Shard",
    "Slot",
    "Sum",
    "SyntheticSet",
    "Task",
    "Training",
    "Wanted",
    "aggregate",
    "fit",
    "initial_weights",
    "load_model",
    "load_weights",
    "run",
    "scaled",
    "settings",
    "synthesis",
    "train",
    "weights_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'genfed' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)

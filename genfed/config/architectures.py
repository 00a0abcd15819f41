"""Classifier architectures by name."""

import importlib
import importlib.metadata
from collections.abc import Callable

import torch
from torch import nn

from genfed.config.registry import _CLASSIFIERS, _custom, _modules, explain_unknown
from genfed.core.errors import GenfedError, first_line
from genfed.core.rng import seeded
from genfed.core.task import Task


def architectures() -> dict[str, Callable[[Task], nn.Module]]:
    """Every architecture of the zoo."""
    found: dict[str, Callable[[Task], nn.Module]] = {}
    for info in _modules(importlib.import_module(_CLASSIFIERS)):
        found |= getattr(importlib.import_module(f"{_CLASSIFIERS}.{info.name}"), "ARCHITECTURES", {})
    for point in importlib.metadata.entry_points(group="genfed.architectures"):
        found[point.name] = point.load()
    return found


def new_network(architecture: str, task: Task, rng: torch.Generator) -> nn.Module:
    """A classifier by name, or by "package.module:Class" that is called with the task; initialised from `rng`.

    Raises:
        GenfedError: no such architecture, or it does not fit the task.
    """
    make = _maker(architecture)
    try:
        with seeded(rng):
            return make(task)
    except GenfedError:
        raise
    except Exception as error:  # a user's own code may fail in any way
        about = f"{type(error).__name__}: {first_line(error)}"
        raise GenfedError(f"architecture {architecture} cannot be made of the task alone ({about})") from error


_makers: dict[str, Callable[[Task], nn.Module]] = {}


def lend(architecture: str, make: Callable[[Task], nn.Module]) -> None:
    """From now on `new_network` makes this architecture so: one that this process cannot import."""
    _makers[architecture] = make


def _maker(architecture: str) -> Callable[[Task], nn.Module]:
    if architecture not in _makers:
        if ":" in architecture:
            _makers[architecture] = _custom(architecture, nn.Module)
        else:
            known = architectures()
            if architecture not in known:
                raise GenfedError(explain_unknown(architecture, known, "no such architecture"))
            _makers[architecture] = known[architecture]
    return _makers[architecture]

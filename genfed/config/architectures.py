"""Classifier architectures by name."""

import functools
import importlib
from collections.abc import Callable, Mapping

import torch
from torch import nn

from genfed.config.registry import explain_unknown, import_class, list_entry_points, list_modules
from genfed.core.errors import GenfedError, describe_error
from genfed.core.files import keep_directory
from genfed.core.rng import seeded
from genfed.core.task import Task

_PACKAGE = "genfed.classifiers"
Factory = Callable[[Task], nn.Module]
"""Makes a network for a task."""


class Architectures:
    """The architectures that one trial knows: genfed's own, those of installed packages, and the overrides."""

    def __init__(self, overrides: Mapping[str, Factory] | None = None) -> None:
        """Starts with `overrides`: factories by name, which come before all others; None: no overrides."""
        self._factories = dict(overrides or {})

    def names(self) -> tuple[str, ...]:
        """Returns the known names, sorted; "package.module:Class" can name any other."""
        return tuple(sorted(self._listed.keys() | self._factories.keys()))

    def factory(self, name: str) -> Factory:
        """Returns what makes the networks of an architecture.

        Raises:
            GenfedError: there is no such architecture.
        """
        if name not in self._factories:
            if ":" in name:
                self._factories[name] = import_class(name, nn.Module)
            elif name not in self._listed:
                raise GenfedError(explain_unknown(name, self.names(), "no such architecture"))
            else:
                self._factories[name] = self._listed[name]
        return self._factories[name]

    def new(self, name: str, task: Task, rng: torch.Generator) -> nn.Module:
        """Returns a new classifier, initialized from `rng`; "package.module:Class" is called with the task.

        Raises:
            GenfedError: there is no such architecture, or it does not fit the task.
        """
        make = self.factory(name)
        try:
            with seeded(rng), keep_directory():
                return make(task)
        except (GenfedError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a user's own code may fail in any way
            about = describe_error(error)
            raise GenfedError(f"architecture {name} cannot be made of the task alone ({about})") from error

    @functools.cached_property
    def _listed(self) -> dict[str, Factory]:
        found: dict[str, Factory] = {}
        for info in list_modules(importlib.import_module(_PACKAGE)):
            found |= getattr(importlib.import_module(f"{_PACKAGE}.{info.name}"), "ARCHITECTURES", {})
        for point in list_entry_points("genfed.architectures"):
            found[point.name] = point.load()
        return found

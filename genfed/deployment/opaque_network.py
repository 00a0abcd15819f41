"""Architectures that only a site knows: the server has their weights and cannot run them."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genfed.config.architectures import Architectures
from genfed.core.errors import GenfedError
from genfed.core.record import digest, pack, unpack
from genfed.core.task import Task
from genfed.deployment.roster import SiteDescription, SiteRoster
from genfed.training.weights import Model


class OpaqueNetwork(nn.Module):
    """A network whose weights the server knows, but not what it computes. If all weights are below `extractor` and
    `header`, it has these two parts, so that its extractor can be averaged.
    """

    def __init__(self, architecture: str, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._name, self._weights = architecture, dict(weights)
        if {key.partition(".")[0] for key in weights} == {"extractor", "header"}:
            for part in ("extractor", "header"):
                under = {k.partition(".")[2]: v for k, v in weights.items() if k.startswith(f"{part}.")}
                self._modules[part] = OpaqueNetwork(architecture, under)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Returns the weights."""
        return dict(self._weights)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses: weights are loaded in order to run the network."""
        raise self._refusal()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise self._refusal() from None

    def forward(self, *args: Any) -> Any:
        raise self._refusal()

    def _refusal(self) -> GenfedError:
        return GenfedError(
            f"it must run {self._name}, which only its site knows: use one of `genfed list architectures`, or gefl"
        )


def ask_architectures(roster: SiteRoster, sites: Sequence[SiteDescription], task: Task, seed: int) -> Architectures:
    """Returns the architectures of one seed's trials. Networks that only a site knows are opaque; the site sends
    their initial weights.

    Raises:
        GenfedError: there is no such architecture, or two sites have different ones of one name.
    """
    zoo = Architectures()
    found: dict[str, tuple[str, dict[str, Tensor]]] = {}
    for site in sites:
        name = site.architecture
        if not site.info(0).personal:
            zoo.new(name, task, torch.Generator())  # refuses an unknown name
            continue
        weights = unpack(Model, roster.ask(site.name, {"ask": "initial", "seed": seed})[1]).classifier
        if name in found and digest(pack(Model(found[name][1]))) != digest(pack(Model(weights))):
            raise GenfedError(f"sites {found[name][0]} and {site.name} both name {name}, and theirs differ: rename one")
        found[name] = site.name, weights
    return Architectures({name: functools.partial(_new_opaque, name, weights) for name, (_, weights) in found.items()})


def _new_opaque(name: str, weights: dict[str, Tensor], task: Task) -> nn.Module:
    return OpaqueNetwork(name, weights)

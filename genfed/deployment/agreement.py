"""Whether the sites agree with one another and with the run, and the task that they agree on."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import TypeAdapter

from genfed.config.settings import Config
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.phase import flatten_phases
from genfed.core.record import pack
from genfed.core.task import Task
from genfed.deployment.roster import SiteDescription
from genfed.experiment.inputs import RunInputs

PROCESS = 500 * 2**20
"""Measured memory in bytes of a site's process before any work: torch and Flower."""


def find_disagreements(config: Config, sites: Sequence[SiteDescription]) -> list[str]:
    """Returns the reasons for which the run would be refused, a line each. Empty: there are none."""
    if not sites:
        return ["no site has joined yet"]
    lines = [*describe_label_sets(sites)]
    if len(sites) < config.federation.clients:
        lines.insert(0, f"{len(sites)} of {config.federation.clients} sites have joined")
    shapes: dict[str, list[str]] = {}
    for site in sites:
        shapes.setdefault(f"{site.kind} examples of shape {site.shape}", []).append(site.name)
    if len(shapes) > 1:
        lines.append(
            "examples differ: " + ", ".join(f"{', '.join(names)} has {what}" for what, names in shapes.items())
        )
    elif unlike := _describe_encoders(sites):
        lines.append(unlike)
    split = config.evaluation.split
    if other := [site.name for site in sites if site.part != split]:
        lines.append(
            f'evaluation.split = "{split}", and {", ".join(other)} would be evaluated on another part: set `part` of '
            f'SITE.toml to "{split}", or the other in the run'
        )
    few = min(sites, key=lambda site: site.examples)
    for label, method in config.method.items():
        if few.examples < method.minimum_examples:
            lines.append(
                f"{label} needs {method.minimum_examples} examples at every client, and {few.name} has {few.examples}"
            )
        if method.needs_architectures and (own := [site for site in sites if site.info(0).personal]):
            lines.append(
                f"{label} runs each architecture at the server or at other sites, and only site {own[0].name} knows "
                f"{own[0].architecture}: use one of `genfed list architectures`, or gefl, gefl_f or fgl"
            )
        if method.needs_public and config.public is None:
            lines.append(f"{label} needs public examples: name a data source in the table [public]")
    return lines


def warn_of_memory(inputs: RunInputs, sites: Sequence[SiteDescription]) -> list[str]:
    """Returns a line for each site and method with a phase that needs more memory than the site has free. It needs at
    least the memory of a process, of the message, as much again for gradients and twice as much for the optimizer's
    moments, and of the examples.
    """
    example = torch.Size(inputs.task.shape).numel() * 4
    lines = []
    for label, method in inputs.config.method.items():
        server = inputs.initial_server()
        state = _initial_state(label, method, server, sites)
        for info, site in zip(inputs.clients, sites, strict=True):
            sizes = {}
            for phase in flatten_phases(method.phases()):
                if phase.work is not None and phase.send is not None:
                    with contextlib.suppress(Exception):  # it sends the result of an earlier phase
                        sizes[phase.name] = pack(phase.send(server, state, info)).nbytes
            largest = max(sizes, key=lambda name: sizes[name], default="")
            need = PROCESS + 4 * sizes.get(largest, 0) + example * (site.examples + site.held_out)
            if 0 < site.memory < need:
                lines.append(
                    f"{site.name} has {site.memory / 2**30:.1f} GiB of memory free, and phase {largest} of {label} "
                    f"needs {need / 2**30:.1f} GiB or more"
                )
    return lines


def _initial_state(label: str, method: Method[Any], server: Server, sites: Sequence[SiteDescription]) -> Any:
    """Returns the state before the first round.

    Raises:
        GenfedError: the method refuses; the line names it, and the site whose own architecture is the reason.
    """
    try:
        return method.init(server)
    except GenfedError as error:
        own = [site for site in sites if site.info(0).personal and site.architecture in str(error)]
        raise GenfedError(f"{label}: {error}" + (f" (site {own[0].name})" if own else "")) from None


def describe_label_sets(sites: Sequence[SiteDescription]) -> list[str]:
    """Returns a line on how the label sets of the sites differ. Empty: they are the same."""
    sets = Counter(site.classes for site in sites)
    if len(sets) == 1:
        return []
    if len({frozenset(classes) for classes in sets}) == 1:
        return ["the sites name the same classes in different orders: give all the same list `classes` in SITE.toml"]
    everywhere = set.intersection(*(set(site.classes) for site in sites))
    anywhere = set.union(*(set(site.classes) for site in sites))
    if not everywhere:
        return ["label sets do not overlap: " + "; ".join(f"{site.name} has {_join(site.classes)}" for site in sites)]
    parts = []
    for site in sites:
        others = Counter(name for other in sites if other is not site for name in other.classes)
        lacks = sorted(anywhere - set(site.classes))
        alone = sorted(name for name in site.classes if not others[name])
        if lacks and alone and len(lacks) >= len(alone):
            near = ", ".join(f"{name!r}" for name in alone)
            parts.append(f"{site.name} alone has {near} (renamed?) and lacks {_join(lacks)}")
        elif lacks:
            parts.append(f"{site.name} lacks {_join(lacks)}")
        elif alone:
            parts.append(f"{site.name} alone has {_join(alone)}")
    return [
        "label sets differ: "
        + "; ".join(parts)
        + "; a site without examples of a class names all of them in `classes` of its SITE.toml"
    ]


def _describe_encoders(sites: Sequence[SiteDescription]) -> str | None:
    """Returns a line on sites whose raw examples become x in different ways. None: all do so in one way."""
    alike: dict[str, list[str]] = {}
    for site in sites:
        alike.setdefault(site.encoder, []).append(site.name)
    if len(alike) == 1:
        return None
    who = _join_groups(list(alike.values()))
    if sites[0].kind == "table":
        return (
            f"tables are encoded differently at {who}: each fits columns, codes and scales to its own rows, so one "
            "feature would mean different things; make one encoder.json (`genfed run` on a table writes it into the "
            "run's folder), and name it in data.encoder of every SITE.toml"
        )
    if sites[0].kind == "series":
        return (
            f"channels are scaled differently at {who}: each fits means and deviations to its own windows, so one "
            "window would give different numbers; make one encoder.json (`genfed run` on series writes it into the "
            "run's folder), and name it in data.encoder of every SITE.toml"
        )
    return (
        f"pixels are scaled differently at {who}: one image would give different numbers; store the images of all "
        "sites in one type and range, or set data.pixels and data.background to the same values in every SITE.toml"
    )


def _join_groups(groups: Sequence[Sequence[str]]) -> str:
    shown = " and ".join("/".join(names[:8]) + ("/…" if len(names) > 8 else "") for names in groups[:8])
    return shown + (f" and {len(groups) - 8} more" if len(groups) > 8 else "")


def _join(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def agreed_task(sites: Sequence[SiteDescription]) -> Task:
    """Returns the task of sites that agree."""
    first = sites[0]
    return TypeAdapter(Task).validate_python({"kind": first.kind, "shape": first.shape, "classes": first.classes})


def number_sites(sites: Sequence[SiteDescription]) -> tuple[ClientInfo, ...]:
    """Returns the sites as clients, numbered in their order."""
    return tuple(site.info(i) for i, site in enumerate(sites))

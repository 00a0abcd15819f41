"""Architectures by name."""

import torch
from torch import nn

from genfed.config.architectures import Architectures
from genfed.core.task import Task
from genfed.deployment.opaque_network import OpaqueNetwork

TASK = Task("table", (4,), ("no", "yes"))


def opaque(task: Task) -> nn.Module:
    """A network that the server cannot run."""
    return OpaqueNetwork("mlp", {})


def test_an_override_holds_for_its_own_trial_alone() -> None:
    """A server that cannot run a site's network must not take that network from other trials of the process."""
    before, with_override = Architectures(), Architectures({"mlp": opaque})
    assert isinstance(with_override.new("mlp", TASK, torch.Generator()), OpaqueNetwork)
    for known in (before, Architectures()):
        assert known.new("mlp", TASK, torch.Generator())(torch.zeros(3, 4)).shape == (3, 2)


def test_an_override_is_listed_and_others_stay_known() -> None:
    known = Architectures({"theirs:Net": opaque})
    assert set(known.names()) == {*Architectures().names(), "theirs:Net"}
    assert "mlp" in known.names()
    assert isinstance(known.new("mlp", TASK, torch.Generator()), nn.Module)

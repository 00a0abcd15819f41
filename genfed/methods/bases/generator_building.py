"""Generators built from weights, for images and for feature vectors."""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from genfed.core.client import Client, Server
from genfed.core.task import Task, Weights
from genfed.generators.generator import Generator, GeneratorNetwork, check_size, kept_weights


def maps_task(task: Task) -> Task:
    """Returns the task in the form for generators: feature vectors become channels of 1×1."""
    if task.kind != "features" or len(task.shape) == 3:
        return task
    return replace(task, shape=(math.prod(task.shape), 1, 1))


def build_generator(generator: Generator, where: Client | Server, task: Task, weights: Weights) -> GeneratorNetwork:
    """Returns the generator of examples of `task` with these weights, on the device of `where`. Parts that are not
    uploaded, and so missing, get the initial weights that all clients share.
    """
    check_size(generator, maps_task(task))
    with SkipInitialization():
        network = generator.new(maps_task(task), where.rng)
    if network.state_dict().keys() != weights.keys():
        # At every client, the parts that are not uploaded begin with the common initial weights too.
        network = generator.new(maps_task(task), where.common("generator"))
        weights = kept_weights(network) | weights
    network.load_state_dict(weights)
    return network.to(where.device)


class SkipInitialization(TorchFunctionMode):
    """Skips the random initialization of new tensors, which takes a tenth of the time of sampling."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.uniform_, Tensor.normal_):
            return args[0]
        return func(*args, **(kwargs or {}))

"""The phase of GeFL and GeFL-F in which clients add up what a generator is estimated from, instead of training it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from genfed.core.aggregate import ClientInfo, Sum
from genfed.core.client import Client, Server, Slot
from genfed.core.phase import Phase, Reduced, Reply
from genfed.core.task import Data, Task, Weights
from genfed.generators.statistics_generator import StatisticsGenerator
from genfed.methods.bases.feature_statistics import (
    Statistics,
    expect_statistics,
    measure_features,
    screen_statistics,
)

S = TypeVar("S")


@dataclass(frozen=True)
class SumsRequest:
    """What a client is sent before it adds up its examples, or their features."""

    extractor: Weights
    """The extractor of the features. Empty: the examples themselves are added up."""
    largest: int
    """Number of examples of the largest client, which decides how many bits a sum needs."""
    present: Weights
    """The generator that was estimated in the pass before. Empty: this is the first pass."""


def sums_phase(
    name: str,
    generator: StatisticsGenerator,
    update: Callable[[Server, S, Reduced], S],
    send: Callable[[Server, S, ClientInfo], SumsRequest],
    encode: Callable[[Client, Weights], tuple[Task, Data]],
    find_task: Callable[[Server], Task],
    slots: tuple[Slot[Any], ...] = (),
) -> Phase[S]:
    """Returns the phase in which clients add up what this generator measures, once for each of its passes.

    Args:
        name: name of the phase.
        generator: the generator.
        update: estimates from the sums over all clients.
        send: as in `Phase`.
        encode: returns what a client adds up, given the extractor: its examples or their features, and their task.
        find_task: returns this task on the server.
        slots: slots that `encode` needs.
    """

    def measure(client: Client, sent: SumsRequest) -> Reply[Statistics]:
        task, examples = encode(client, sent.extractor)
        if "factor" not in sent.extractor:  # whitened features of few examples are large, and clipped
            generator.check_examples(examples.x)
        return measure_features(generator, examples, task, sent.largest, sent.present)

    def screen(server: Server, info: ClientInfo, upload: Statistics) -> None:
        screen_statistics(generator, upload, find_task(server), info, server.round)

    return Phase(
        name,
        update,
        send,
        measure,
        aggregate={"statistics": Sum()},
        rounds=generator.passes,
        slots=slots,
        screen=screen,
        expected=lambda server: expect_statistics(server, generator, find_task(server)),
        by_class=True,
        changes_classifier=False,
        smallest_class=generator.minimum_class_count,
    )

"""Inversion of sums: the examples of a client, from the sums by class that it uploads.

A sum over one example is that example, and the mean of a few is a picture of their average. Nothing is searched for:
the attack is a division.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from genfed.audits.audit import Audit, Case, ClientExamples, NotPossible
from genfed.audits.findings import Estimate, Findings, Picture, Reading
from genfed.audits.membership_metrics import mean_with_interval
from genfed.audits.uploaded_sums import describe_added, find_sums, mean_of_classes, read_added, vectors_as_uploaded
from genfed.core.settings import settings
from genfed.core.task import Data, Task
from genfed.encoders.identity import Identity
from genfed.generators.statistics_generator import StatisticsGenerator
from genfed.training.pixels import denormalize_pixels

NEARER, RATIO, SAME = "nearer than a held-out one", "distance over that of a held-out one", "share that is one example"
SHOWN = 10
"""Maximum number of classes in the picture."""


@dataclass(frozen=True)
class SmallClass:
    """A class of which a client adds up few examples, and what it is compared with."""

    client: int
    label: int
    mean: Tensor
    """What the server computes from the upload [d]."""
    members: Tensor
    """The client's examples of the class [k, d]."""
    others: Tensor
    """As many held-out ones [k, d]."""

    def nearest(self) -> Tensor:
        """Returns the member and the held-out example that are nearest to the mean [2, d]."""
        return torch.stack([of[torch.cdist(self.mean[None], of).argmin()] for of in (self.members, self.others)])

    def ratio(self) -> float:
        """Returns the distance to the nearest member, divided by that to the nearest held-out example."""
        near, far = (self.nearest() - self.mean).norm(dim=1).tolist()
        return float(near / max(far, 1e-12))


@settings
class InversionSums(Audit):
    """Reads examples of a client off the sums by class that it uploads, where a class has few."""

    sees = ("uploads",)
    attacker = (
        "The server, or anyone who reads what a client sends: they divide the sum of a class by the number of its "
        "examples, both of which are in the upload."
    )

    largest: Annotated[int, Field(ge=1)] = 5
    """Largest number of examples of a class at a client whose mean is attacked."""
    clients: Annotated[int, Field(ge=1)] = 50
    """Maximum number of clients whose uploads are attacked."""

    def examine(self, case: Case) -> Findings:
        sums = find_sums(case)
        generator = sums.generator
        holdings = [holding for holding in case.holdings if sums.phase in holding.rounds][: self.clients]
        train, held_out = (read_added(case, data, sums) for data in (case.train, case.held_out))
        task = describe_added(case, train)
        found = [each for holding in holdings for each in self._attack(case, holding, generator, task, train, held_out)]
        if not found:
            raise NotPossible(
                f"no client of {case.label} uploads the sum of a class of 1 to {self.largest} examples, of which twice "
                "as many are held out"
            )
        run = [each for each, _, _ in found]
        numbers = [
            self._measure(case, name, classes)
            for name, classes in zip(
                ("this run", "planted leak", "nothing to find"), zip(*found, strict=True), strict=True
            )
        ]
        picture = picture_classes(case, run)
        sizes = {"clients": len(holdings), "small classes": len(run)}
        reading = Reading("means of small classes", NEARER, 0.0, *numbers)
        return Findings((reading,), sizes, self._notes(run), () if picture is None else (picture,))

    def _attack(
        self,
        case: Case,
        holding: ClientExamples,
        generator: StatisticsGenerator,
        task: Task,
        train: Data,
        held_out: Data,
    ) -> Iterator[tuple[SmallClass, SmallClass, SmallClass]]:
        """Yields for each small class of a client what its upload shows, what one of a single example shows, and what
        one of held-out examples shows.

        Args:
            case: the trial.
            holding: the client.
            generator: the generator for which clients add up.
            task: the task of what they add up.
            train: what they add up, of all clients.
            held_out: the same of held-out examples.
        """
        mine, alike = train[holding.rows], replace(generator, minimum_class_count=0)
        for label, (count, mean) in mean_of_classes(generator, mine, task).items():
            rows = self._draw_held_out(case, holding, label, 2 * count)
            if count > self.largest or rows is None:
                continue
            own, other, fresh = (mine[mine.y == label], *(held_out[part] for part in rows.tensor_split(2)))
            client, vectors = holding.client.id, [vectors_as_uploaded(alike, data, task) for data in (own, other)]
            single, unrelated = (mean_of_classes(alike, data, task)[label][1] for data in (own[:1], fresh))
            yield (
                SmallClass(client, label, mean, *vectors),
                SmallClass(client, label, single, vectors[0][:1], vectors[1][:1]),
                SmallClass(client, label, unrelated, *vectors),
            )

    def _draw_held_out(self, case: Case, holding: ClientExamples, label: int, count: int) -> Tensor | None:
        """Returns `count` rows of held-out examples of a class, as a client's are. None: there are fewer."""
        rows = torch.nonzero(case.held_out.y == label).flatten()
        if holding.like is not None:
            rows = rows[torch.isin(rows, holding.like)]
        draws = case.rng("inversion_sums", holding.client.id, label)
        return rows[torch.randperm(len(rows), generator=draws)[:count]] if len(rows) >= count else None

    def _measure(self, case: Case, name: str, found: Sequence[SmallClass]) -> dict[str, Estimate]:
        ratios = torch.tensor([each.ratio() for each in found], dtype=torch.float64)
        values = {NEARER: 1 - ratios, RATIO: ratios, SAME: (ratios == 0).double()}
        return {
            number: mean_with_interval(value, case.rng("inversion_sums", "bootstrap", name, number))
            for number, value in values.items()
        }

    def _notes(self, run: Sequence[SmallClass]) -> tuple[str, ...]:
        lines = []
        for size in sorted({len(each.members) for each in run}):
            ratios = [each.ratio() for each in run if len(each.members) == size]
            lines.append(f"{size}: {sum(ratios) / len(ratios):.2f} ({len(ratios)})")
        nearest = sorted(run, key=SmallClass.ratio)[:SHOWN]
        shown = (f"client {e.client}, class {e.label}, {len(e.members)}: {e.ratio():.2f}" for e in nearest)
        return (
            "Distance of a class's mean to the nearest of the client's examples of it, divided by that to the nearest "
            f"of as many held-out ones; by number of examples (of how many classes): {', '.join(lines)}.",
            f"The nearest: {'; '.join(shown)}.",
            "Planted leak: uploads of one example of each of these classes. Nothing to find: uploads of as many other "
            "held-out examples.",
            "With several examples a mean is no example, but it is nearer to each of its own than to others.",
        )


def picture_classes(case: Case, found: Sequence[SmallClass]) -> Picture | None:
    """Returns the picture for the report. None: what is added up are no pixels."""
    encoder = getattr(case.method, "encoder", None)
    pixels = case.features is None or (
        isinstance(encoder, Identity) and getattr(case.method, "whitening", "none") == "none"
    )
    if case.task.kind != "image" or not pixels:
        return None
    shown = sorted(found, key=lambda each: len(each.members))[:SHOWN]
    channels, width = case.task.shape[0], len(shown[0].mean)
    side = math.isqrt(width // channels)
    shape = case.task.shape if math.prod(case.task.shape) == width else (channels, side, side)
    images = torch.stack([torch.stack([each.mean, *each.nearest()]) for each in shown], 1).float()
    return Picture(
        "Means of classes of few examples, from uploads; the nearest of the client's examples; and the nearest of as "
        "many held-out ones.",
        ("mean in the upload", "client's example", "held-out example"),
        denormalize_pixels(images.reshape(3, len(shown), *shape).clamp(-1, 1)),
    )

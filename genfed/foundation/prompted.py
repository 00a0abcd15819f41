"""What FGL and its kin share: clients upload conditions of the public diffusion model, never text, and the server makes
images of them.
"""

import itertools
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.aggregate import Collect
from genfed.core.errors import GenfedError
from genfed.core.method import Client, Nothing, Phase, Reduced, Reply, Server
from genfed.core.settings import settings
from genfed.foundation.describe import likeliest
from genfed.foundation.model import FoundationModel
from genfed.foundation.oneshot import Asked, OneShot, State
from genfed.foundation.settings import fitted
from genfed.learn.fit import scaled


@dataclass(frozen=True)
class Told:
    """All that a client sends: no text, no name of a file."""

    conditions: Tensor
    """Embeddings [m, tokens, width], or numbers of classes [m]."""
    labels: Tensor
    """int64 [m]."""


@settings
class ByConditions(OneShot):
    """Clients tell what they have as conditions, and images are made of all of these."""

    @abstractmethod
    def tell(self, client: Client, sent: Nothing) -> Reply[Told]:
        """What a client uploads."""

    def uploads(self) -> list[Phase[State]]:
        return [
            Phase(
                "tell",
                self.collect,
                lambda server, state, info: Nothing(),
                self.tell,
                aggregate={"conditions": Collect(), "labels": Collect()},
                changes_classifier=False,
            )
        ]

    def collect(self, server: Server, state: State, reduced: Reduced) -> State:
        """All that clients told, one after another: their proportions stay."""
        told: dict[int, Tensor] = reduced["conditions"]
        labels: dict[int, Tensor] = reduced["labels"]
        clients = sorted(told)
        asked = Asked(
            torch.cat([told[client] for client in clients]),
            torch.cat([labels[client] for client in clients]),
            torch.cat([torch.full_like(labels[client], client) for client in clients]),
        )
        return replace(state, asked=asked)


def check_embeddings(model: FoundationModel, method: str) -> None:
    """Refuses a foundation that is asked by numbers of classes, where a method computes with embeddings.

    Raises:
        GenfedError: it is class-conditional.
    """
    if model.kind == "class":
        raise GenfedError(
            f"{method} computes with embeddings of prompts, and foundation {model.name} is class-conditional: it has "
            "none; use fgl, or a text-to-image model"
        )


@settings
class ByPrompts(ByConditions):
    """Prompts for what clients have, as embeddings, and images of them."""

    level: Literal["class", "instance"] = "class"
    """"class": a prompt for each class that a client has; "instance": one for each example, with the words of
    `attributes` that fit it best."""
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("an image of {class}",)
    """Prompts; {class} is the name of the class, {WORD} a word of `attributes`. Client i has template i, counted round
    and round: a domain's own words, where each client is a domain."""
    aliases: dict[str, str] = Field(default_factory=dict)
    """Other words for names of classes that would mislead: { orange = "fruit: orange" }."""
    attributes: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """For level "instance": what may stand in the place of {WORD}. The client chooses for each example, by the public
    diffusion model itself (every combination is tried)."""
    # differs from the paper: there a captioner, BLIP-2, writes the instance's prompt.
    probes: Annotated[int, Field(ge=1)] = 4
    """Noisy versions of an example that this choice looks at."""

    def init(self, server: Server) -> State:
        model = self.foundation.load(server.task, server.device, server.precision)
        if unknown := [name for name in self.aliases if name not in server.task.classes]:
            raise GenfedError(f"aliases: {unknown[0]!r} is no class; there are: {', '.join(server.task.classes)}")
        if self.attributes and self.level == "class":
            raise GenfedError('attributes are for level = "instance": a class has none of its own')
        if "class" in self.attributes:
            raise GenfedError("attributes.class: {class} is the name of the class; choose another word")
        for client in range(len(self.templates)):
            for name in server.task.classes:
                model.condition(self.texts(client, self.aliases.get(name, name)))
        return super().init(server)

    def texts(self, client: int, name: str) -> list[str]:
        """The prompts that there are for a class: one for each combination of attributes."""
        template = self.templates[client % len(self.templates)]
        combinations = itertools.product(*self.attributes.values())
        try:
            return [
                template.format(**dict(zip(self.attributes, c, strict=True)), **{"class": name}) for c in combinations
            ]
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            known = ", ".join(f"{{{word}}}" for word in ("class", *self.attributes))
            raise GenfedError(f"templates: {template!r} cannot be filled in; there are: {known}") from None

    def tell(self, client: Client, sent: Nothing) -> Reply[Told]:
        """The embeddings of the client's prompts."""
        model = self.foundation.load(client.task, client.device, client.precision)
        conditions, labels = [], []
        for label in torch.unique(client.data.y).tolist():
            name = client.task.classes[label]
            texts = self.texts(client.info.id, self.aliases.get(name, name))
            asked = model.condition(texts).cpu()
            if self.level == "instance":
                asked = asked[self.chosen(model, client, label, texts)]
            conditions.append(self.of_class(asked))
            labels += [label] * len(conditions[-1])
        return Reply(Told(torch.cat(conditions), torch.tensor(labels)), weight=len(client.data))

    def chosen(self, model: FoundationModel, client: Client, label: int, texts: list[str]) -> Tensor:
        """Which text fits each of the client's examples of the class."""
        images = fitted(scaled(client.data.x[client.data.y == label]), model.image_shape)
        return likeliest(model, images, texts, probes=self.probes, rng=client.rng)

    def of_class(self, conditions: Tensor) -> Tensor:
        """What is uploaded of the conditions of one class."""
        return conditions

"""What FGL and its kin share: clients upload conditions of the public diffusion model, never text, and the server makes
images of them.
"""

import functools
import itertools
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.aggregate import ClientInfo, Collect
from genfed.core.errors import GenfedError
from genfed.core.method import Client, Nothing, Phase, Reduced, Reply, Server
from genfed.core.settings import settings
from genfed.foundation.captions import Captioner, captioned, load_captioner
from genfed.foundation.describe import likeliest
from genfed.foundation.model import FoundationModel
from genfed.foundation.oneshot import Asked, OneShot, State, check_labels, words_in
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

    bare = "conditions made of its examples"

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
                check=self.check,
            )
        ]

    def check(self, server: Server, info: ClientInfo, told: Told) -> None:
        """Refuses what no images can be made of.

        Raises:
            GenfedError: a class that the server does not know, something else than a condition for each label, or more
                than it has examples.
        """
        labels, conditions = told.labels, told.conditions
        check_labels(labels, server)
        if len(labels) > info.examples:
            raise GenfedError(f"{len(labels)} conditions from a client of {info.examples} examples")
        model = self.foundation.load(server.task, server.device, server.precision)
        none = model.unconditional(1)
        found, allowed = (conditions.dtype, tuple(conditions.shape)), (none.dtype, (len(labels), *none.shape[1:]))
        if found != allowed:
            raise GenfedError(f"conditions are {found[0]} {found[1]}; {allowed[0]} {allowed[1]} are allowed")
        if model.kind == "class" and not bool(((conditions >= 0) & (conditions <= int(none))).all()):
            raise GenfedError(f"conditions are classes that {model.name} does not know: it has {int(none)}")

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
    """"class": a prompt for each class that a client has; "instance": one for each example, with its caption or with
    the words of `attributes` that fit it best."""
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("an image of {class}",)
    """Prompts; {class} is the name of the class, {caption} what `captioner` says of the example, {WORD} a word of
    `attributes`. Client i has template i, counted round and round: a domain's own words, where each client is a
    domain."""
    aliases: dict[str, str] = Field(default_factory=dict)
    """Other words for names of classes that would mislead: { orange = "fruit: orange" }."""
    attributes: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """For level "instance": what may stand in the place of {WORD}. The client chooses for each example, by the public
    diffusion model itself (every combination is tried)."""
    # differs from the paper: there a captioner always writes the instance's prompt (BLIP-2).
    probes: Annotated[int, Field(ge=1)] = 4
    """Noisy versions of an example that this choice looks at."""
    captioner: str | None = None
    """For level "instance", in the place of `attributes`: what writes {caption} for each example, on the client. A
    directory of transformers with an image-to-text model, or a Hugging Face hub's name; None: there are no captions."""
    caption_tokens: Annotated[int, Field(ge=1)] = 20
    """Of the captioner, in a caption at most. Words at its end that the text encoder would not read are left out."""

    def init(self, server: Server) -> State:
        model = self.foundation.load(server.task, server.device, server.precision)
        if unknown := [name for name in self.aliases if name not in server.task.classes]:
            raise GenfedError(f"aliases: {unknown[0]!r} is no class; there are: {', '.join(server.task.classes)}")
        if self.attributes and self.level == "class":
            raise GenfedError('attributes are for level = "instance": a class has none of its own')
        if "class" in self.attributes:
            raise GenfedError("attributes.class: {class} is the name of the class; choose another word")
        if self.captioner is not None:
            self.check_captioner(model, server)
        for client, template in enumerate(self.templates):
            for name in server.task.classes:
                model.condition(self.texts(client, self.aliases.get(name, name)))
            if not words_in(template) & {"class", "caption"}:
                raise GenfedError(f"templates: {template!r} has no {{class}}: all classes would be told alike")
        if self.level == "instance" and not (self.attributes or self.captioner):
            raise GenfedError('level = "instance" needs attributes or a captioner, or all of a class are told alike')
        for word in self.attributes:
            if not any(word in words_in(template) for template in self.templates):
                raise GenfedError(f"attributes.{word}: no template has {{{word}}}")
        return super().init(server)

    def check_captioner(self, model: FoundationModel, server: Server) -> None:
        """Refuses a captioner that cannot be opened, or has nothing to say here."""
        if self.level == "class":
            raise GenfedError('captioner is for level = "instance": a class has no caption')
        if self.attributes:
            raise GenfedError("captioner and attributes: an example is described by one of them; leave the other out")
        if not any("{caption}" in template for template in self.templates):
            raise GenfedError(f"captioner {self.captioner}: no template has {{caption}}")
        if model.kind == "class" or server.task.shape[0] not in (1, 3):
            what = "a text-to-image foundation" if model.kind == "class" else "grey or RGB images"
            raise GenfedError(f"captioner {self.captioner}: captions need {what}")
        self.opened(server)

    def opened(self, where: Client | Server) -> Captioner:
        """The captioner."""
        assert self.captioner is not None
        return load_captioner(self.captioner, self.caption_tokens, where.device)

    def template(self, client: int) -> str:
        """The client's own."""
        return self.templates[client % len(self.templates)]

    def texts(self, client: int, name: str) -> list[str]:
        """The prompts that there are for a class: one for each combination of attributes, without a caption."""
        combinations = itertools.product(*self.attributes.values())
        return [
            self.prompt(client, name, "", **dict(zip(self.attributes, words, strict=True))) for words in combinations
        ]

    def prompt(self, client: int, name: str, caption: str, /, **words: str) -> str:
        """The client's template, filled in."""
        template = self.template(client)
        words = {"class": name} | words | ({} if self.captioner is None else {"caption": caption})
        try:
            return template.format(**words)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            known = ", ".join(f"{{{word}}}" for word in words)
            if "{caption}" in template and self.captioner is None:
                known += "; {caption} needs a captioner"
            raise GenfedError(f"templates: {template!r} cannot be filled in; there are: {known}") from None

    def tell(self, client: Client, sent: Nothing) -> Reply[Told]:
        """The embeddings of the client's prompts."""
        model = self.foundation.load(client.task, client.device, client.precision)
        captions = self.captions(client)
        conditions, labels = [], []
        for label in torch.unique(client.data.y).tolist():
            name = self.aliases.get(client.task.classes[label], client.task.classes[label])
            rows = torch.nonzero(client.data.y == label).flatten()
            if captions:
                own = [captions[row] for row in rows.tolist()]
                asked = captioned(model, functools.partial(self.prompt, client.info.id, name), own)
            else:
                asked = self.described(model, client, rows, self.texts(client.info.id, name))
            conditions.append(self.of_class(asked))
            labels += [label] * len(conditions[-1])
        return Reply(Told(torch.cat(conditions), torch.tensor(labels)), weight=len(client.data))

    def captions(self, client: Client) -> list[str]:
        """One for each of the client's examples; none where its template has no place for them."""
        if self.captioner is None or "{caption}" not in self.template(client.info.id):
            return []
        return self.opened(client)(scaled(client.data.x), precision=client.precision)

    def described(self, model: FoundationModel, client: Client, rows: Tensor, texts: list[str]) -> Tensor:
        """The condition of a class's text, or of the one that fits best for each of the client's examples."""
        asked = model.condition(texts).cpu()
        if self.level == "class":
            return asked
        return asked[likeliest(model, client.data.x[rows], texts, probes=self.probes, rng=client.rng)]

    def of_class(self, conditions: Tensor) -> Tensor:
        """What is uploaded of the conditions of one class."""
        return conditions

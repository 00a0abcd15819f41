"""The base of methods whose clients upload prompts."""

import functools
import itertools
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Empty, Reply
from genfed.core.settings import settings
from genfed.foundation.captioning import Captioner, embed_captions, load_captioner
from genfed.foundation.model import FoundationModel
from genfed.foundation.prompts import find_placeholders
from genfed.foundation.zero_shot_classifier import classify_by_noise
from genfed.methods.bases.condition_upload import ConditionUpload, ConditionUploadMethod
from genfed.methods.bases.server_synthesis import ServerSynthesisState
from genfed.training.pixels import normalize_pixels


@settings
class PromptUploadMethod(ConditionUploadMethod):
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

    def init(self, server: Server) -> ServerSynthesisState:
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
                model.encode_condition(self.texts(client, self.aliases.get(name, name)))
            if not find_placeholders(template) & {"class", "caption"}:
                raise GenfedError(f"templates: {template!r} has no {{class}}: all classes would be told alike")
        if self.level == "instance" and not (self.attributes or self.captioner):
            raise GenfedError('level = "instance" needs attributes or a captioner, or all of a class are told alike')
        for word in self.attributes:
            if not any(word in find_placeholders(template) for template in self.templates):
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

    def upload_conditions(self, client: Client, sent: Empty) -> Reply[ConditionUpload]:
        """The embeddings of the client's prompts."""
        model = self.foundation.load(client.task, client.device, client.precision)
        captions = self.captions(client)
        conditions, labels = [], []
        for label in torch.unique(client.data.y).tolist():
            name = self.aliases.get(client.task.classes[label], client.task.classes[label])
            rows = torch.nonzero(client.data.y == label).flatten()
            if captions:
                own = [captions[row] for row in rows.tolist()]
                asked = embed_captions(model, functools.partial(self.prompt, client.info.id, name), own)
            else:
                asked = self.described(model, client, rows, self.texts(client.info.id, name))
            conditions.append(self.of_class(asked))
            labels += [label] * len(conditions[-1])
        return Reply(ConditionUpload(torch.cat(conditions), torch.tensor(labels)), weight=len(client.data))

    def captions(self, client: Client) -> list[str]:
        """One for each of the client's examples; none where its template has no place for them."""
        if self.captioner is None or "{caption}" not in self.template(client.info.id):
            return []
        return self.opened(client)(normalize_pixels(client.data.x), precision=client.precision)

    def described(self, model: FoundationModel, client: Client, rows: Tensor, texts: list[str]) -> Tensor:
        """The condition of a class's text, or of the one that fits best for each of the client's examples."""
        asked = model.encode_condition(texts).cpu()
        if self.level == "class":
            return asked
        return asked[classify_by_noise(model, client.data.x[rows], texts, probes=self.probes, rng=client.rng)]

    def of_class(self, conditions: Tensor) -> Tensor:
        """What is uploaded of the conditions of one class."""
        return conditions

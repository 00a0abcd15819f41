"""Base of methods whose clients upload the embeddings of prompts."""

import functools
import itertools
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.aggregate import ClientInfo
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
    """Base of methods whose clients upload the embeddings of prompts for their classes or their examples."""

    level: Literal["class", "instance"] = "class"
    """"class": one prompt for each class that a client has. "instance": one for each example, with its caption or with
    the words of `attributes` that fit it best."""
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("an image of {class}",)
    """Prompts. {class} is the name of the class, {caption} the caption of the example, {WORD} a word of `attributes`.
    Client i has template i modulo their number: a domain's own words, if each client is a domain."""
    aliases: dict[str, str] = Field(default_factory=dict)
    """Other words for class names that would mislead: { orange = "fruit: orange" }."""
    attributes: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Words that may replace {WORD}, for level "instance". The client chooses for each example with the public
    diffusion model; it tries every combination."""
    # differs from the paper: there a captioner always writes the instance's prompt (BLIP-2).
    probes: Annotated[int, Field(ge=1)] = 4
    """Noisy versions of an example by which a client chooses attributes."""
    captioner: str | None = None
    """Model that writes {caption} for each example on the client, for level "instance" without `attributes`: a
    directory of transformers with an image-to-text model, or a name on the Hugging Face hub. None: no captions."""
    caption_tokens: Annotated[int, Field(ge=1)] = 20
    """Maximum number of the captioner's tokens in a caption. Words that the text encoder would not read are dropped."""

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
                raise GenfedError(f"templates: {template!r} has no {{class}}: all classes would have the same prompt")
        if self.level == "instance" and not (self.attributes or self.captioner):
            raise GenfedError('level = "instance" needs attributes or a captioner, or prompts of a class do not differ')
        for word in self.attributes:
            if not any(word in find_placeholders(template) for template in self.templates):
                raise GenfedError(f"attributes.{word}: no template has {{{word}}}")
        return super().init(server)

    def check_captioner(self, model: FoundationModel, server: Server) -> None:
        """Refuses a captioner that cannot be opened, or that the other settings do not use."""
        if self.level == "class":
            raise GenfedError('captioner is for level = "instance": a class has no caption')
        if self.attributes:
            raise GenfedError("captioner and attributes: an example is described by one of them; unset the other")
        if not any("{caption}" in template for template in self.templates):
            raise GenfedError(f"captioner {self.captioner}: no template has {{caption}}")
        if model.kind == "class" or server.task.shape[0] not in (1, 3):
            what = "a text-to-image foundation" if model.kind == "class" else "grey or RGB images"
            raise GenfedError(f"captioner {self.captioner}: captions need {what}")
        self.open_captioner(server)

    def open_captioner(self, where: Client | Server) -> Captioner:
        """Returns the captioner, on the device of `where`."""
        assert self.captioner is not None
        return load_captioner(self.captioner, self.caption_tokens, where.device)

    def template(self, client: int) -> str:
        """Returns the template of a client."""
        return self.templates[client % len(self.templates)]

    def texts(self, client: int, name: str) -> list[str]:
        """Returns the prompts for a class: one for each combination of attributes, without a caption."""
        combinations = itertools.product(*self.attributes.values())
        return [
            self.prompt(client, name, "", **dict(zip(self.attributes, words, strict=True))) for words in combinations
        ]

    def prompt(self, client: int, name: str, caption: str, /, **words: str) -> str:
        """Returns the client's template with the words filled in."""
        template = self.template(client)
        words = {"class": name} | words | ({} if self.captioner is None else {"caption": caption})
        try:
            return template.format(**words)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            known = ", ".join(f"{{{word}}}" for word in words)
            if "{caption}" in template and self.captioner is None:
                known += "; {caption} needs a captioner"
            raise GenfedError(f"templates: {template!r} cannot be filled in; there are: {known}") from None

    def most_conditions(self, server: Server, info: ClientInfo) -> int:
        """Returns how many conditions a client may upload: one for each class, or for each of its examples."""
        return super().most_conditions(server, info) if self.level == "class" else info.examples

    def upload_conditions(self, client: Client, sent: Empty) -> Reply[ConditionUpload]:
        """Returns the embeddings of the client's prompts."""
        model = self.foundation.load(client.task, client.device, client.precision)
        captions = self.captions(client)
        conditions, labels = [], []
        for label in torch.unique(client.data.y).tolist():
            name = self.aliases.get(client.task.classes[label], client.task.classes[label])
            rows = torch.nonzero(client.data.y == label).flatten()
            if captions:
                own = [captions[row] for row in rows.tolist()]
                found = embed_captions(model, functools.partial(self.prompt, client.info.id, name), own)
            else:
                found = self.choose_conditions(model, client, rows, self.texts(client.info.id, name))
            conditions.append(self.reduce_class(found))
            labels += [label] * len(conditions[-1])
        return Reply(ConditionUpload(torch.cat(conditions), torch.tensor(labels)), weight=len(client.data))

    def captions(self, client: Client) -> list[str]:
        """Returns one caption for each of the client's examples. Empty: its template has no {caption}."""
        if self.captioner is None or "{caption}" not in self.template(client.info.id):
            return []
        return self.open_captioner(client)(normalize_pixels(client.data.x), precision=client.precision)

    def choose_conditions(self, model: FoundationModel, client: Client, rows: Tensor, texts: list[str]) -> Tensor:
        """Returns the condition of a class's text or, for each example of `rows`, of the text that fits it best."""
        conditions = model.encode_condition(texts).cpu()
        if self.level == "class":
            return conditions
        return conditions[classify_by_noise(model, client.data.x[rows], texts, probes=self.probes, rng=client.rng)]

    def reduce_class(self, conditions: Tensor) -> Tensor:
        """Returns what is uploaded of the conditions of one class."""
        return conditions

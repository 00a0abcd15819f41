"""Prompts for classes, from templates."""

import string
from collections.abc import Sequence

from torch import Tensor

from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.foundation.settings import Foundation


def embed_class_prompts(foundation: Foundation, prompt: str, where: Client | Server) -> Tensor:
    """Encodes the prompt with the name of each class, in the order of the task, on the CPU.

    Raises:
        GenfedError: the prompt cannot be filled in, or is too long for the text encoder.
    """
    model = foundation.load(where.task, where.device, where.precision)
    return model.encode_condition(fill_prompts(prompt, where.task.classes)).cpu()


def fill_prompts(template: str, names: Sequence[str]) -> list[str]:
    """Returns the template with {class} replaced by each name.

    Raises:
        GenfedError: the template has other braces, or no {class}.
    """
    try:
        filled = [template.format(**{"class": name}) for name in names]
    except (KeyError, IndexError, ValueError, AttributeError, TypeError):
        about = "{class} is all that may stand in braces"
        raise GenfedError(f"the prompt {template!r} cannot be filled in; {about}") from None
    if "class" not in find_placeholders(template):
        raise GenfedError(f"the prompt {template!r} has no {{class}}: all classes would have the same prompt")
    return filled


def find_placeholders(template: str) -> set[str]:
    """Returns the names in the braces of a valid template."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}

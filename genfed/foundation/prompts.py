"""Prompts of classes, from templates."""

import string
from collections.abc import Sequence

from torch import Tensor

from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.foundation.settings import Foundation


def by_name(foundation: Foundation, prompt: str, where: Client | Server) -> Tensor:
    """The condition of each class, in the order of the task, on the CPU: the prompt with its name.

    Raises:
        GenfedError: the prompt cannot be filled in, or is longer than the text encoder reads.
    """
    model = foundation.load(where.task, where.device, where.precision)
    return model.condition(prompts(prompt, where.task.classes)).cpu()


def prompts(template: str, names: Sequence[str]) -> list[str]:
    """The template with each name in the place of {class}.

    Raises:
        GenfedError: the template has other braces, or all classes would be asked for alike.
    """
    try:
        filled = [template.format(**{"class": name}) for name in names]
    except (KeyError, IndexError, ValueError, AttributeError, TypeError):
        about = "{class} is all that may stand in braces"
        raise GenfedError(f"the prompt {template!r} cannot be filled in; {about}") from None
    if "class" not in words_in(template):
        raise GenfedError(f"the prompt {template!r} has no {{class}}: all classes would be asked for alike")
    return filled


def words_in(template: str) -> set[str]:
    """What stands in the braces of a template that can be filled in."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}

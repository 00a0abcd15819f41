"""JSON that another party wrote, read within bounds."""

import json
import re
from typing import Any

from genfed.core.errors import RecordError

LONGEST = 2**26
"""Maximum length of a text in characters (64 Mi)."""
DEEPEST = 64
"""Maximum number of lists and tables inside one another."""
MOST = 2**22
"""Maximum number of values in a text (4 Mi)."""
_OTHER = bytes(set(range(256)) - set(b"[]{}"))
# a string that never ends is one mark too: else each quotation mark in it would be searched to the end
_MARK = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[][{},]', re.DOTALL)


def read_json(text: str, *, longest: int = LONGEST, most: int = MOST) -> Any:
    """Returns the value of a text in JSON. It is measured before it is parsed.

    Args:
        text: the text.
        longest: maximum length in characters.
        most: maximum number of values.

    Raises:
        RecordError: it is too long, has too many values, is nested too deeply, or is not JSON. The message completes
            "it is …".
    """
    if len(text) > longest:
        raise RecordError(f"longer than {longest} characters")
    _measure(text, most)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a whole number of thousands of digits is a ValueError too
        kind = type(error).__name__
    raise RecordError(f"not JSON ({kind})")


def _measure(text: str, most: int) -> None:
    """Refuses too many values, and too deep ones. A text without them that is no JSON passes."""
    if sum(map(text.count, "[{,")) < most and _is_flat(text):
        return
    depth, count = 0, 1
    for mark in _MARK.finditer(text):
        match text[mark.start()]:
            case "[" | "{":
                depth, count = depth + 1, count + 1
            case "]" | "}":
                depth -= 1
            case ",":
                count += 1
        if depth > DEEPEST:
            raise RecordError(f"nested too deeply: more than {DEEPEST} lists or tables inside one another")
        if count > most:
            raise RecordError(f"too large: it has more than {most} values")


def _is_flat(text: str) -> bool:
    """Returns whether no more than `DEEPEST` brackets are inside one another, those in strings among them. It is fast;
    False: they must be counted.
    """
    brackets = text.encode("utf-8", "replace").translate(None, _OTHER)
    for _ in range(DEEPEST):
        if not brackets:
            return True
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return not brackets

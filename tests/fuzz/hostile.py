"""What another party may send: any JSON, valid messages with changes, and the limits within which they are answered."""

import contextlib
import copy
import math
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

few = settings(max_examples=max(4, settings.default.max_examples // 4))  # type: ignore[union-attr]
"""For tests whose examples take a tenth of a second."""
fewer = settings(max_examples=max(4, settings.default.max_examples // 20))  # type: ignore[union-attr]
"""For tests whose examples take seconds."""
TEXT = st.text(max_size=20) | st.sampled_from(["", "\0", "\x1b[2J", "a\nb", "\u202e", "=1+1", "../x", "x" * 5000])
NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, -1, 2**31, 2**63, -(2**63), 2**64, 10**400, 1e308, 5e-324, math.nan, math.inf, True])
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXT
JSON: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5), max_leaves=12
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of a value of JSON and of all in it."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(found for key, part in inner for found in places(part, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, valid: Any, most: int = 2) -> Any:
    """A value of JSON with up to `most` parts replaced, removed or doubled."""
    node = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, most))):
        *path, last = draw(st.sampled_from([place for place in places(node) if place] or [(None,)]))
        if last is None:
            return draw(JSON)
        inside = node
        for key in path:
            inside = inside[key]
        match draw(st.sampled_from(["replace", "remove", "double", "add"])):
            case "replace":
                inside[last] = draw(JSON)
            case "remove":
                del inside[last]
            case "double":
                if isinstance(inside, list):
                    inside.append(copy.deepcopy(inside[last]))
                else:
                    inside[draw(TEXT)] = copy.deepcopy(inside[last])
            case "add":
                if isinstance(inside, list):
                    inside.append(draw(JSON))
                else:
                    inside[draw(TEXT)] = draw(JSON)
    return node


@contextlib.contextmanager
def bounded(seconds: float = 5.0, megabytes: float = 32.0) -> Iterator[None]:
    """Fails if the block takes more time of a processor, or more memory of Python and numpy."""
    tracemalloc.start()
    begun = time.process_time()
    try:
        yield
        used, (_, most) = time.process_time() - begun, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < seconds, f"took {used:.1f} s"
    assert most < megabytes * 1e6, f"took {most / 1e6:.0f} MB"


def refused_in_short(error: Exception) -> None:
    """Fails if a refusal has no text, or is as long as what was refused."""
    assert str(error)
    assert len(str(error)) < 20_000

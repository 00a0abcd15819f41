"""Exact copies of examples: found by a digest of each example, and described."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from genfed.preprocessing.pixel_scale import to_bytes
from genfed.preprocessing.source_summary import SourceSummary, count_of

_ORDER = ("test", "validation", "train")
"""The part that comes first keeps the example, the others have the copies."""


def digest_examples(x: Tensor | Iterable[NDArray[Any]]) -> list[bytes]:
    """Returns a digest of each example of x [n, …]; equal examples of one type have equal ones."""
    examples = x.numpy() if isinstance(x, Tensor) else x
    return [hashlib.blake2b((example + 0).tobytes(), digest_size=16).digest() for example in examples]  # −0 is 0


def digest_images(x: Tensor) -> list[bytes]:
    """Returns a digest of each image of x [n, C, H, W]: pixels uint8, or float32 in [−1, 1]. An image of bytes has the
    same one in a part of bytes, and in a part that is of floats because other images lie between bytes.
    """
    if x.dtype == torch.uint8:
        return digest_examples(x)
    return digest_examples(image if (same := to_bytes(image, -1, 1)) is None else same for image in x.numpy())


def find_copies(y: Mapping[str, Tensor], keys: Mapping[str, Sequence[bytes]]) -> dict[str, Tensor]:
    """Returns, for each given part with keys, whether each example is a copy [n] of one that comes before it: the test
    part comes first, then validation, then train.

    Args:
        y: The labels [n] by part. Examples with different labels are no copies.
        keys: A digest of each example by part.
    """
    seen, copies = set[tuple[bytes, int]](), {}
    for part in (part for part in _ORDER if part in keys):
        found = []
        for key in zip(keys[part], y[part].tolist(), strict=True):
            found.append(key in seen)
            seen.add(key)
        copies[part] = torch.tensor(found, dtype=torch.bool)
    return copies


def describe_torn(y: Mapping[str, Tensor], keys: Mapping[str, Sequence[bytes]], noun: str, what: str) -> SourceSummary:
    """Warns of equal examples with different labels.

    Args:
        y: The labels [n] by given part.
        keys: A digest of each example by given part.
        noun: What an example is, such as "image".
        what: What is equal, such as "pixels".
    """
    labels = dict[bytes, int]()
    pairs = ((key, label) for part in keys for key, label in zip(keys[part], y[part].tolist(), strict=True))
    torn = len({key for key, label in pairs if labels.setdefault(key, label) != label})
    if not torn:
        return SourceSummary()
    doubt = f"{count_of(torn, noun)} of several classes: the same {what} stand under different labels"
    return SourceSummary((), (doubt,))


def describe_copies(
    count: int,
    removed: bool,
    y: Mapping[str, Tensor],
    keys: Mapping[str, Sequence[bytes]],
    rows: Mapping[str, tuple[str, Tensor]],
) -> SourceSummary:
    """Describes the copies of a data set.

    Args:
        count: Their number.
        removed: Whether they were removed.
        y: The labels [n] by given part.
        keys: A digest of each example by given part.
        rows: By part of the data set, its origin: a given part, and the rows taken from it.
    """
    if not count:
        return SourceSummary()
    copied = count_of(count, "example is an exact copy", "examples are exact copies") + " of another"
    if removed:
        return SourceSummary((f"{copied}: removed (deduplicate)",))
    known = {
        part: [(keys[given][row], int(y[given][row])) for row in chosen.tolist()]
        for part, (given, chosen) in rows.items()
    }
    trained = set(known["train"])
    same = {part: sum(key in trained for key in known[part]) for part in ("validation", "test")}
    shared = [f"{n:,} of {len(known[part]):,} {part} examples are in train too" for part, n in same.items() if n]
    where = "".join(f"; {line}" for line in shared)
    total = sum(map(len, y.values()))
    mend = "unless they are different cases, set data.deduplicate = true to remove them"
    return SourceSummary((), (f"{copied}, among {total:,}{where}: {mend}",))

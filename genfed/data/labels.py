"""Conversion of raw labels to 0..k−1 and class names."""

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.data.cells import MISSING_WORDS
from genfed.data.numerals import NO_VALUE
from genfed.preprocessing.source_summary import SourceSummary, list_some, show

_WIDEST = 10_000
_OFTEN_CLASSES = {"none", "nil", "null", "refused", "not done"}
_NO_LABEL = {
    word
    for word in {*NO_VALUE, *map(str.casefold, MISSING_WORDS)} - _OFTEN_CLASSES
    if sum(map(str.isalpha, word)) > 1 or word in MISSING_WORDS
}
"""Labels in small letters that may mean that there is none; - and x are often classes."""
Labels = NDArray[np.int64] | NDArray[np.str_] | NDArray[np.object_]


def encode_labels(
    found: Mapping[str, NDArray[np.generic]], names: Sequence[str] | None, where: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Numbers the classes by sorted value. Returns y int64 [n] by part, and the names of the classes.

    Args:
        found: The raw labels [n], integers or strings, by part.
        names: Names of the classes in the order of their sorted values, or the values themselves in another order.
            None: the values, sorted.
        where: Text that begins an error message, such as the name of the file.

    Raises:
        GenfedError: labels are of another kind, a part is empty, there are fewer than two classes, "train" lacks a
            class, or the number of names is wrong.
    """
    plain = {part: _to_plain(labels, f"{where}: labels of {part}") for part, labels in found.items()}
    if len({labels.dtype.kind == "U" for labels in plain.values()}) > 1:
        raise GenfedError(f"{where}: labels are numbers in one part and text in another")
    values = np.unique(np.concatenate(list(plain.values())))
    if len(values) < 2:
        raise GenfedError(f"{where}: there is one class only ({values[0]}); at least 2 are needed")
    for part, labels in plain.items():
        if len(lacking := np.setdiff1d(labels, plain["train"])):
            raise GenfedError(f"{where}: class {str(lacking[0])!r} is in the {part} part and not in train")
    if names is not None and len(names) != len(values):
        raise GenfedError(f"{where}: classes names {len(names)} classes and the labels have {len(values)}")
    if names is not None and set(names) & (known := set(map(str, values))):
        if set(names) != known:
            some = min(set(names) - known)
            raise GenfedError(f"{where}: classes has {some!r}, which is no label, beside others that are")
        values = np.array(sorted(values, key=lambda value: names.index(str(value))), dtype=values.dtype)
        places = {value: place for place, value in enumerate(values.tolist())}
        y = {part: torch.tensor([places[value] for value in labels.tolist()]) for part, labels in plain.items()}
        return y, tuple(names)
    y = {part: torch.from_numpy(np.searchsorted(values, labels).astype(np.int64)) for part, labels in plain.items()}
    return y, tuple(names or map(str, values))


def name_labels(found: Mapping[str, NDArray[np.generic]], names: Mapping[str, str]) -> dict[str, NDArray[np.generic]]:
    """Returns labels with the classes that they are given, as texts.

    Args:
        found: The raw labels [n] by part.
        names: The class of some labels; "1-4" stands for the whole numbers from 1 to 4.

    Raises:
        GenfedError: no label is one that is named, or a range is empty.

    >>> name_labels({"train": np.array([0, 1, 4, 9])}, {"0": "well", "1-4": "ill"})["train"].tolist()
    ['well', 'ill', 'ill', '9']
    """
    known = dict(names)
    for text, name in names.items():
        if (span := re.fullmatch(r"(-?\d+)-(-?\d+)", text)) is not None:
            low, high = int(span[1]), int(span[2])
            if low > high or high - low > _WIDEST:
                raise GenfedError(f"data.labels: {text!r} is no range; one such as '1-4' is allowed")
            known |= {str(value): name for value in range(low, high + 1)}
    there = {str(value) for labels in found.values() for value in np.unique(labels)}
    for text in names:
        span = re.fullmatch(r"(-?\d+)-(-?\d+)", text)
        some = {str(value) for value in range(int(span[1]), int(span[2]) + 1)} if span else set()
        if text not in there and not some & there:
            raise GenfedError(f"data.labels: no row has the label {text!r}; labels are {list_some(sorted(there), 8)}")
    return {
        part: np.array([known.get(text, text) for text in map(str, labels.tolist())], dtype=np.str_)
        for part, labels in found.items()
    }


def describe_names(
    found: Mapping[str, NDArray[np.generic]], y: Mapping[str, Tensor], classes: Sequence[str]
) -> SourceSummary:
    """Says which label has which class name. Nothing: the labels are the names.

    Args:
        found: The raw labels [n] by part, as for `encode_labels`.
        y: What it made of them.
        classes: The names of the classes.
    """
    labels, places = _to_plain(found["train"], "labels"), y["train"].numpy()
    pairs = [(str(labels[np.argmax(places == c)]), name) for c, name in enumerate(classes)]
    if all(label == name for label, name in pairs):
        return SourceSummary()
    return SourceSummary((f"class names: {list_some((f'{show(a)} → {show(b)}' for a, b in pairs), 20)}",))


def doubt_classes(classes: Sequence[str], named: Collection[str], setting: str) -> SourceSummary:
    """Warns of classes that may be examples without a label, such as "unknown".

    Args:
        classes: The labels.
        named: Those that the settings name, so that there is no doubt.
        setting: The setting in which a class can be named.
    """
    doubtful = [show(name) for name in classes if name.casefold() in _NO_LABEL and name not in named]
    if not doubtful:
        return SourceSummary()
    words = f"class {list_some(map(repr, doubtful))} is learned like the others; if it means that there is no label"
    return SourceSummary((), (f"{words}, leave out its rows; if it is a class, name it in {setting}",))


def _to_plain(labels: NDArray[np.generic], where: str) -> Labels:
    """Converts labels to int64 or str [n], or to Python integers where 64 bits with a sign are too few."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise GenfedError(f"{where} have shape {labels.shape}; one label per example is allowed, (n,)")
    if not len(labels):
        raise GenfedError(f"{where}: there are no examples")
    if labels.dtype.kind == "S":
        try:
            return np.char.decode(labels.astype(np.bytes_), "utf-8")
        except UnicodeDecodeError:
            raise GenfedError(
                f'{where} are bytes that are not UTF-8; store texts instead, such as np.char.decode(y, "latin-1")'
            ) from None
    if labels.dtype.kind == "U" or (labels.dtype.kind == "O" and all(isinstance(value, str) for value in labels)):
        return labels.astype(np.str_)
    whole = labels.dtype.kind in "biu" or (labels.dtype.kind == "f" and bool(np.all(np.mod(labels, 1) == 0)))
    if whole or (labels.dtype.kind == "O" and all(type(value) is int for value in labels)):
        least, most = int(labels.min()), int(labels.max())
        if least >= -(2**63) and most < 2**63:
            return labels.astype(np.int64)
        return np.array([int(value) for value in labels.tolist()], dtype=object)
    raise GenfedError(f"{where} are of type {labels.dtype} or not whole; integers and strings are allowed")

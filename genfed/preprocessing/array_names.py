"""Names of the arrays of an .npz file: which hold examples and labels, and of which part."""

from collections.abc import Sequence
from dataclasses import dataclass

from genfed.core.errors import GenfedError
from genfed.preprocessing.checks import require_known
from genfed.preprocessing.part_names import PARTS, read_part_name, split_words

_X = ("x", "image", "images", "imgs", "img", "pixels", "data", "input", "inputs", "features", "samples", "examples")
_Y = ("y", "label", "labels", "target", "targets")


@dataclass(frozen=True)
class NamedArray:
    """An array of examples or labels."""

    name: str
    stem: str
    """Its name without the part, in small letters: "x" of x_train."""
    part: str | None
    """None: its name speaks of no part."""


@dataclass(frozen=True)
class ExampleArrays:
    """The arrays of an .npz file that are read."""

    parts: dict[str, tuple[str, str]]
    """Names of the examples and the labels, by part; "train" alone: they are not divided."""
    unlabelled: tuple[str, ...]
    """Names of examples of a part that has no labels."""
    divided: bool
    """Whether names speak of parts."""


def find_arrays(names: Sequence[str], where: str) -> ExampleArrays:
    """Finds the examples and labels of each part: x_train and y_train, train_images and train_labels, trainX and so on;
    or x and y.

    Raises:
        GenfedError: there are none, or several arrays have the same role.
    """
    xs, ys = _list(names, _X), _list(names, _Y)
    divided = any(array.part in PARTS for array in xs)
    x, y = _choose(xs, divided, where, "x"), _choose(ys, divided, where, "y")
    if "train" not in x:
        if divided:
            raise GenfedError(f"{where}: there is {next(iter(x.values()))} and no x_train")
        require_known("x", names, f"{where}: array")
    for part, name in x.items():
        if part == "train" and part not in y:
            require_known("y_train" if divided else "y", names, f"{where}: array")
            raise GenfedError(f"{where}: there are no labels for {name}")
    parts = {part: (x[part], y[part]) for part in PARTS if part in x and part in y}
    return ExampleArrays(parts, tuple(name for part, name in x.items() if part not in y), divided)


def choose_examples(names: Sequence[str], where: str) -> str:
    """Returns the name of the one array of examples: x, or images or the like, of whichever part.

    Raises:
        GenfedError: there is none, or several.
    """
    if "x" in names:
        return "x"
    found = [array.name for array in _list(names, _X)]
    if len(found) > 1:
        raise GenfedError(f"{where}: {', '.join(found[:6])} are there; which holds the examples? Call it x")
    return found[0] if found else require_known("x", names, f"{where}: array")


def is_like_examples(name: str) -> bool:
    """Returns whether a name is one that examples or labels have, of whichever part."""
    return bool(_list([name], _X + _Y)) or read_part_name(name) is not None


def _list(names: Sequence[str], stems: Sequence[str]) -> list[NamedArray]:
    found = []
    for name in names:
        part = read_part_name(name)
        words = split_words(name) if part is None else part.rest
        if len(words) == 1 and words[0] in stems:
            found.append(NamedArray(name, words[0], None if part is None else part.part))
    return found


def _choose(arrays: Sequence[NamedArray], divided: bool, where: str, plain: str) -> dict[str, str]:
    """Returns the names by part. Of several stems the plain one, x or y, is chosen."""
    here = [array for array in arrays if (array.part in PARTS if divided else array.part is None)]
    stems = list(dict.fromkeys(array.stem for array in here))
    if len(stems) > 1 and plain not in stems:
        pair = [next(array.name for array in here if array.stem == stem) for stem in stems[:2]]
        raise GenfedError(f"{where}: {pair[0]} and {pair[1]} are there; which is {plain}? Call it {plain}")
    found: dict[str, str] = {}
    exact = {f"{plain}_{part}" if divided else plain: part for part in PARTS if divided or part == "train"}
    for array in sorted(here, key=lambda array: array.name not in exact):  # the exact names first
        part = array.part or "train"
        if array.stem != (plain if plain in stems else stems[0]) or found.get(part) in exact:
            continue
        if part in found:
            raise GenfedError(f"{where}: {found[part]} and {array.name} are both {plain} of {part}; keep one of them")
        found[part] = array.name
    return found

"""Names of folders, arrays and splits that say which part of a data set they hold."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from genfed.core.errors import GenfedError

PARTS = ("train", "validation", "test")
_SPELLINGS = {
    "train": "train training trn",
    "validation": "validation validate validating valid val dev devel development",
    "test": "test testing tst",
}
_UNCLEAR = "eval evaluation holdout heldout unseen unlabeled unlabelled unsupervised trainval pred prediction"
_UNTOLD = "set sets data dataset datasets split splits image images imgs img pictures photos part seg folder"
_STEMS = "x y label labels target targets feature features pixels input inputs sample samples"
UNCLEAR = "unclear"
"""The part of a name that speaks of one, but not of which."""
_WORDS = {word: part for part, words in (*_SPELLINGS.items(), (UNCLEAR, _UNCLEAR)) for word in words.split()}
_LONGEST_FIRST = sorted(_WORDS, key=len, reverse=True)
_PLAIN = _UNTOLD.split()
_ARRAYS = _STEMS.split()


@dataclass(frozen=True)
class PartName:
    """A name that speaks of a part."""

    part: str
    """ "train", "validation", "test" or "unclear"."""
    rest: tuple[str, ...]
    """The other words of the name, in small letters and without numbers."""

    @property
    def own(self) -> tuple[str, ...]:
        """The other words, without those that say nothing, such as "set" and "images"."""
        return tuple(word for word in self.rest if word not in _PLAIN)


def read_part_name(name: str) -> PartName | None:
    """Reads which part a name speaks of. None: it speaks of none.

    >>> from genfed.preprocessing.part_names import read_part_name
    >>> read_part_name("Training"), read_part_name("xVal")
    (PartName(part='train', rest=()), PartName(part='validation', rest=('x',)))
    >>> read_part_name("seg_train").own, read_part_name("contest")
    ((), None)
    """
    words, parts = split_words(name), []
    rest: list[str] = []
    for word in words:
        found, other = _read_word(word)
        parts += [found] if found else []
        rest += [other] if other else []
    if not parts:
        return None
    return PartName(parts[0] if len(set(parts)) == 1 else UNCLEAR, tuple(rest))


def split_words(name: str) -> list[str]:
    """Returns the words of a name in small letters: xTrain, x_train and x-train are x, train."""
    return [word.lower() for word in re.findall(r"[^\W\d_]?[^\W\d_A-Z]+|[A-Z]+(?![a-z])", name)]


def _read_word(word: str) -> tuple[str | None, str]:
    """Returns the part that a word speaks of, and the rest of the word."""
    if word in _WORDS:
        return _WORDS[word], ""
    for part in _LONGEST_FIRST:
        for rest in (word.removeprefix(part), word.removesuffix(part)):
            if rest != word and rest in _PLAIN + _ARRAYS:
                return _WORDS[part], rest
    return None, word


def find_parts(names: Iterable[str], where: str) -> dict[str, str]:
    """Returns the names that are parts beside one another, with the part of each: train and at least one other, alike
    but for the part. Empty: none are.

    Args:
        names: Names of folders or splits.
        where: Text that begins an error message.

    Raises:
        GenfedError: two names are one part.
    """
    read = {name: said for name in names if (said := read_part_name(name)) is not None}
    for own in dict.fromkeys(part.own for part in read.values()):
        alike = {name: said.part for name, said in read.items() if said.own == own}
        if "train" not in alike.values() or len(set(alike.values())) < 2:
            continue
        for part in PARTS:
            if len(same := [name for name, other in alike.items() if other == part]) > 1:
                raise GenfedError(f"{where}: {same[0]} and {same[1]} both look like the {part} part; keep one of them")
        return alike
    return {}

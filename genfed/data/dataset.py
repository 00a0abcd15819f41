"""What a data source gives: labelled parts and, where there are any, natural columns to partition by."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.task import Data, Task
from genfed.data.features import Encoder


@dataclass(frozen=True)
class Dataset:
    """A whole data set. The test part is never seen in training; choices are made on the validation part."""

    task: Task
    train: Data
    validation: Data
    test: Data
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Natural columns (domain, subject, hospital): one value per training example."""
    encoder: Encoder | None = None
    """What a table's training rows taught; None: nothing was learned."""
    validation_columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Natural columns of the validation part, where they are known."""
    test_columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Natural columns of the test part, where they are known."""


@dataclass(frozen=True)
class Examples:
    """Examples without labels."""

    names: tuple[str, ...]
    """Of each: its file below the folder that was read, or its row, from 0."""
    column: Literal["file", "row"]
    """What the names are."""
    x: Tensor
    """As `Data.x` has them, [n, *shape]."""


class Source(ABC):
    """The settings of a kind of data source (one file each)."""

    @abstractmethod
    def load(self) -> Dataset:
        """Reads it.

        Raises:
            GenfedError: a missing, unreadable or empty file; the message names it and what is expected.
        """

    def read(self, path: str, task: Task, encoder: Encoder | None) -> Iterator[Examples]:
        """Reads other examples, made as `load` makes them for `task`, in pieces; `encoder` is what `load` gave.

        Raises:
            GenfedError: a missing or unreadable file, or examples that do not fit the task.
        """
        raise GenfedError(f"{type(self).__name__} reads no new examples: give it a method `read` (genfed.data.dataset)")

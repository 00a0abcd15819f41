"""Data sets: three labelled parts and, where they exist, natural columns for the partition; and their sources."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.task import Data, Task
from genfed.data.encoder import Encoder
from genfed.preprocessing.source_summary import SourceSummary


@dataclass(frozen=True)
class Dataset:
    """A whole data set. Training never uses the test part; choices are made on the validation part."""

    task: Task
    train: Data
    validation: Data
    test: Data
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Natural columns such as domain, subject or hospital, by name: one value per training example."""
    encoder: Encoder | None = None
    """How raw examples become x, fitted to the training examples; None: they are used as they are."""
    validation_columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Natural columns of the validation part; empty: unknown."""
    test_columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Natural columns of the test part; empty: unknown."""
    summary: SourceSummary = field(default_factory=SourceSummary)
    """What was read, and what looks wrong in it."""
    fitted: str = ""
    """What of x was computed from all training examples, and the setting that gives it instead. Empty: nothing, or what
    `describe_fitted` finds by itself."""
    split_off: tuple[str, ...] = ()
    """Parts that were split off from the training examples: which these are depends on all of them."""


@dataclass(frozen=True)
class Examples:
    """Examples without labels."""

    names: tuple[str, ...]
    """Name of each example: its file, relative to the folder that was read, or its row number from 0."""
    column: Literal["file", "row"]
    """Kind of the names."""
    x: Tensor
    """The examples [n, *shape], with the types of `Data.x`."""
    warnings: tuple[str, ...] = ()
    """A line for each kind of value that does not fit how the training examples were read."""


class Source(ABC):
    """Settings of one kind of data source (one file each)."""

    @property
    def origin(self) -> str:
        """What the examples are made of, where another source makes examples of the same. Empty: no other one does."""
        return ""

    @abstractmethod
    def load(self) -> Dataset:
        """Reads the data set.

        Raises:
            GenfedError: a file is missing, unreadable or empty; the message names it and what is expected.
        """

    def read(self, path: str, task: Task, encoder: Encoder | None) -> Iterator[Examples]:
        """Reads examples without labels, chunk by chunk, processed in the same way as `load` processes the data set.

        Args:
            path: The file or folder.
            task: The task that the examples must fit.
            encoder: The encoder of the data set that `load` returned.

        Raises:
            GenfedError: a file is missing or unreadable, or the examples do not fit the task.
        """
        raise GenfedError(
            f"{type(self).__name__} reads no new examples: give it a method `read` (docs/own.md, data source)"
        )

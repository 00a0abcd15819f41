"""What a data source gives: labelled parts and, where there are any, natural columns to partition by."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from genfed.core.method import Data, Task


@dataclass(frozen=True)
class Dataset:
    """A whole data set. The test part is never seen in training; choices are made on the validation part."""

    task: Task
    train: Data
    validation: Data
    test: Data
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Natural columns (domain, subject, hospital): one value per training example."""


class Source(ABC):
    """The settings of a kind of data source (one file each)."""

    @abstractmethod
    def load(self) -> Dataset:
        """Reads it.

        Raises:
            GenfedError: a missing, unreadable or empty file; the message names it and what is expected.
        """

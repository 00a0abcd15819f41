"""Tables in CSV or Parquet files."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from genfed.core.errors import GenfedError, first_line, require
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.data.dataset import Dataset, Examples
from genfed.data.encoder import Encoder
from genfed.data.features import TableSchema
from genfed.data.labels import describe_names, doubt_classes, encode_labels
from genfed.data.table_source import RawTable, TableSource, encode_rows, read_label_column, read_natural
from genfed.data.text_file import read_text_file
from genfed.preprocessing.checks import check_fit, require_distinct, require_known, require_path

_CSV, _PARQUET = (".csv", ".tsv", ".txt", ".data"), (".parquet", ".pq")


@settings
class Table(TableSource):
    """A table with a label column. Numbers are scaled, days and times are numbers, categories become one-hot codes,
    missing values are filled in. How is decided by the training rows, and kept for every other file.
    """

    path: str
    """The file: .csv, .tsv, .txt or .data (text), .parquet or .pq."""
    label: str
    """Column to predict: whole numbers or text."""
    validation_path: str | None = None
    """File with the validation rows; None: they are split off from `path`."""
    test_path: str | None = None
    """File with the test rows; None: they are split off from `path`."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, in the order of their sorted labels; None: the labels themselves."""
    names: tuple[str, ...] | None = None
    """Columns of a text file without a header; None: its first line names them."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Character between the columns of a text file; None: a tab in .tsv, else a comma, or the semicolon, tab or bar of
    a first line without a comma."""
    encoding: str | None = None
    """Encoding of a text file, such as "latin-1"; None: UTF-8, or what the file's first bytes say."""

    def load(self) -> Dataset:
        paths = {"train": self.path, "validation": self.validation_path, "test": self.test_path}
        tables = {part: self.read_table(path) for part, path in paths.items() if path is not None}
        for table in tables.values():
            for name in (self.label, *self.natural_names):
                require_known(name, table.names, f"{table.where}: column")
        labels = read_label_column(tables, self.label)
        y, classes = encode_labels(labels, self.classes, self.path)
        natural = read_natural(tables, self.natural_names)
        made = self.build_table(tables, y, classes, self.label, natural)
        doubts = doubt_classes(classes, (*(self.classes or ()), *(self.not_missing or ())), "data.not_missing")
        return replace(made, summary=made.summary + describe_names(labels, y, classes) + doubts)

    def read(self, path: str, task: Task, encoder: Encoder | None) -> Iterator[Examples]:
        """Reads the rows of a file that has the feature columns; other columns, such as the label, are ignored."""
        if not isinstance(encoder, TableSchema):
            raise GenfedError(
                f"{path}: rows must be encoded like the training rows, but the run's folder has no encoder.json; "
                "resuming the run (--resume) writes it"
            )
        found = encode_rows(self.read_table(path, encoder), encoder)
        check_fit(tuple(found.x.shape[1:]), task, path)
        yield found

    def read_table(self, path: str, schema: TableSchema | None = None) -> RawTable:
        """Reads a file, with the words for missing values of a given schema.

        Raises:
            GenfedError: it is missing, of another type, unreadable or empty.
        """
        require("pyarrow", extra="tables", what="a table")
        file, kind = require_path(path), Path(path).suffix.lower()
        words = self.missing_words(schema)
        if kind not in _CSV + _PARQUET:
            raise GenfedError(f"{path}: unknown file type {kind!r}; {', '.join(_CSV + _PARQUET)} are allowed")
        if kind in _CSV:
            try:
                text = read_text_file(file, self.encoding, self.delimiter, self.names)
            except (GenfedError, OSError) as error:
                raise GenfedError(f"{path}: not a readable table: {first_line(error)}") from None
            table = RawTable(path, text.table, False, words, text.delimiter, text.notes, text.doubts)
        else:
            table = RawTable(path, _read_parquet(path, file), True, words)
        require_distinct(table.columns.column_names, f"{path}: ")
        if not table.columns.num_rows:
            raise GenfedError(f"{path}: there are no rows")
        return table


def _read_parquet(path: str, file: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
        return table.rename_columns([" ".join(name.split()) for name in table.column_names])
    except (OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
        raise GenfedError(f"{path}: not a readable table ({first_line(error)})") from None

"""Tables in CSV or Parquet files."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydantic import Field

from genfed.core.errors import GenfedError, first_line, require
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.data.dataset import Dataset, Examples
from genfed.data.encoder import Encoder
from genfed.data.features import TableSchema, TableSummary
from genfed.data.labels import describe_names, doubt_classes, encode_labels, name_labels
from genfed.data.table_source import RawTable, TableSource, encode_rows, read_label_column, read_natural
from genfed.data.text_file import read_text_file
from genfed.preprocessing.checks import check_fit, require_distinct, require_known, require_path
from genfed.preprocessing.source_summary import count_of

_CSV, _PARQUET = (".csv", ".tsv", ".txt", ".data", ".test"), (".parquet", ".pq")
FILE = "file"
"""Name of the natural column that says which file a row is of."""


@settings
class Table(TableSource):
    """A table with a label column. Numbers are scaled, days and times are numbers, categories become one-hot codes,
    missing values are filled in. How is decided by the training rows, and kept for every other file.
    """

    path: str | tuple[str, ...]
    """The file: .csv, .tsv, .txt, .data or .test (text), .parquet or .pq. A folder, or several files: their rows
    together, with columns of the same names; `columns = ["file"]` then says for each row which file it is of (its name
    without the ending), so that a partition can make each file a client."""
    label: str
    """Column to predict: whole numbers or text."""
    validation_path: str | None = None
    """File with the validation rows; None: they are split off from `path`."""
    test_path: str | None = None
    """File with the test rows; None: they are split off from `path`."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, in the order of their sorted labels; None: the labels themselves."""
    labels: dict[str, str] | None = None
    """Class of some labels, such as {"0" = "healthy", "1-4" = "ill"} (whole numbers from 1 to 4) or {"yes." = "yes"};
    other labels are classes themselves. None: all are."""
    names: tuple[str, ...] | None = None
    """Columns of a text file without a header; None: its first line names them."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Character between the columns of a text file; None: a tab in .tsv, else a comma, or the semicolon, tab or bar of
    a first line without a comma."""
    encoding: str | None = None
    """Encoding of a text file, such as "latin-1"; None: UTF-8, or what the file's first bytes say."""

    def load(self) -> Dataset:
        return self.load_by(None)

    def load_by(self, agreed: TableSchema | None) -> Dataset:
        """Reads the data set by a schema that several sites agreed on. None: by that of the settings, or of the
        training rows.

        Raises:
            GenfedError: see `load`.
        """
        tables, labels, natural = self._read_parts()
        y, classes = encode_labels(labels, self.classes, tables["train"].where)
        made = self.build_table(tables, y, classes, self.label, natural, agreed)
        doubts = doubt_classes(classes, (*(self.classes or ()), *(self.not_missing or ())), "data.not_missing")
        return replace(made, summary=made.summary + describe_names(labels, y, classes) + doubts)

    def summarize(self, least: int) -> TableSummary:
        """Returns what a site says of its columns; see `summarize_table`."""
        tables, labels, natural = self._read_parts()
        y, classes = encode_labels(labels, self.classes, tables["train"].where)
        return self.summarize_table(tables["train"], y, classes, self.label, natural, least)

    def _read_parts(
        self,
    ) -> tuple[dict[str, RawTable], dict[str, NDArray[Any]], dict[str, dict[str, list[str]]]]:
        """Returns the tables, labels and natural columns of the given parts.

        Raises:
            GenfedError: a file cannot be read, or a column is not there.
        """
        paths = {"train": self.path, "validation": self.validation_path, "test": self.test_path}
        tables = {part: self.read_table(path) for part, path in paths.items() if path is not None}
        for table in tables.values():
            for name in (self.label, *self.natural_names):
                require_known(name, table.names, f"{table.where}: column")
        labels = read_label_column(tables, self.label)
        if self.labels is not None:
            labels = name_labels(labels, self.labels)
        return tables, labels, read_natural(tables, self.natural_names)

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

    def read_table(self, path: str | tuple[str, ...], schema: TableSchema | None = None) -> RawTable:
        """Reads a file, a folder or several files, with the words for missing values of a given schema.

        Raises:
            GenfedError: one is missing, of another type, unreadable or empty, or they do not fit together.
        """
        require("pyarrow", extra="tables", what="a table")
        if isinstance(path, str) and not Path(path).is_dir():
            return self._read_file(path, schema)
        files = path if isinstance(path, tuple) else list_tables(path)
        where = path if isinstance(path, str) else f"{path[0]} and {count_of(len(path) - 1, 'other file')}"
        return join_tables({file: self._read_file(file, schema) for file in files}, where, FILE in self.natural_names)

    def _read_file(self, path: str, schema: TableSchema | None) -> RawTable:
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


def list_tables(folder: str) -> tuple[str, ...]:
    """Returns the tables in a folder, sorted by name.

    Raises:
        GenfedError: there is none.
    """
    found = sorted(file for file in Path(folder).iterdir() if file.suffix.lower() in _CSV + _PARQUET)
    if not found:
        raise GenfedError(f"{folder}: there is no table in the folder; {', '.join(_CSV + _PARQUET)} are allowed")
    return tuple(map(str, found))


def join_tables(tables: Mapping[str, RawTable], where: str, with_file: bool) -> RawTable:
    """Returns the rows of several files as one table. A column that a file lacks is missing in its rows.

    Args:
        tables: The tables by file.
        where: What names them all in messages.
        with_file: Whether a column "file" says which file a row is of.

    Raises:
        GenfedError: some are text files and others not, columns have unlike types, or there is a column "file" already.
    """
    import pyarrow

    first = next(iter(tables.values()))
    if len({table.typed for table in tables.values()}) > 1:
        raise GenfedError(f"{where}: some files are text and others Parquet; one kind is allowed")
    parts = []
    for file, table in tables.items():
        columns = table.columns
        if with_file:
            if FILE in table.names:
                raise GenfedError(f"{file}: it has a column {FILE!r} already; rename it")
            columns = columns.append_column(FILE, pyarrow.array([Path(file).stem] * columns.num_rows))
        parts.append(columns)
    try:
        joined = pyarrow.concat_tables(parts, promote_options="default")
    except pyarrow.ArrowException as error:
        raise GenfedError(f"{where}: a column has unlike types in its files: {first_line(error)}") from None
    notes = tuple(f"{file}: {note}" for file, table in tables.items() for note in table.notes)
    doubts = tuple(f"{file}: {doubt}" for file, table in tables.items() for doubt in table.doubts)
    return RawTable(where, joined, first.typed, first.missing, first.delimiter, notes, doubts)


def _read_parquet(path: str, file: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
        return table.rename_columns([" ".join(name.split()) for name in table.column_names])
    except (OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
        raise GenfedError(f"{path}: not a readable table ({first_line(error)})") from None

"""Tables in CSV or Parquet files."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from genfed.core.errors import GenfedError, first_line, require
from genfed.core.settings import settings
from genfed.core.task import Data, Task
from genfed.data.checks import require_known, require_path
from genfed.data.dataset import Dataset, Examples
from genfed.data.encoder import Encoder
from genfed.data.features import MISSING, Columns, fit_encoder
from genfed.data.labels import encode_labels
from genfed.data.split import SplitSource

_CSV, _PARQUET = (".csv", ".tsv", ".txt", ".data"), (".parquet", ".pq")
_MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL")


@settings
class Table(SplitSource):
    """A table with a label column. Numbers are scaled, categories become one-hot codes, missing values are filled in;
    the statistics for this come from the training rows.
    """

    path: str
    """The file: .csv, .tsv, .txt or .data (text), .parquet or .pq."""
    label: str
    """Column to predict: whole numbers or text."""
    validation_path: str | None = None
    """File with the validation rows; None: they are split off from `path`."""
    test_path: str | None = None
    """File with the test rows; None: they are split off from `path`."""
    numeric: tuple[str, ...] | None = None
    """Columns used as numbers; None: every column of numbers."""
    categorical: tuple[str, ...] | None = None
    """Columns used as categories; None: every column of text or booleans."""
    columns: tuple[str, ...] | None = None
    """Natural columns to partition by, such as ["hospital"]; they are not features. None: none."""
    drop: tuple[str, ...] | None = None
    """Columns to exclude; None: none."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, in the order of their sorted labels; None: the labels themselves."""
    scale: Literal["standard", "range"] = "standard"
    """Scaling of numbers over the training rows: to mean 0 and variance 1 ("standard") or to [−1, 1] ("range")."""
    missing: tuple[str, ...] | None = None
    """Texts that mark a missing value; None: the empty text, ?, NA, N/A, NaN, nan, null, NULL."""
    names: tuple[str, ...] | None = None
    """Columns of a text file without a header; None: its first line names them."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Character between the columns of a text file; None: a tab in .tsv, else a comma."""

    def load(self) -> Dataset:
        paths = {"train": self.path, "validation": self.validation_path, "test": self.test_path}
        tables = {part: self._read(path) for part, path in paths.items() if path is not None}
        numeric, categorical = self._choose_features(tables["train"])
        for part, table in tables.items():
            for name in (self.label, *numeric, *categorical, *(self.columns or [])):
                require_known(name, table.column_names, f"{paths[part]}: column")
        labels = {part: self._read_labels(table) for part, table in tables.items()}
        y, classes = encode_labels(labels, self.classes, self.path)
        features = {part: self._read_columns(table, numeric, categorical) for part, table in tables.items()}
        encoder = fit_encoder(features["train"].select(self.cut(y, classes).rows["train"][1]), self.scale, self.path)
        data = {part: Data(encoder(columns, self.path), y[part]) for part, columns in features.items()}
        natural = {}
        for part, table in tables.items():
            there = replace(self, path=paths[part] or self.path)  # so that messages name the file
            natural[part] = {name: there._read_natural(table, name) for name in self.columns or []}
        return self.build_dataset("table", data, classes, natural["train"], encoder, natural)

    def read(self, path: str, task: Task, encoder: Encoder | None) -> Iterator[Examples]:
        """Reads the rows of a file that has the feature columns; other columns, such as the label, are ignored."""
        if encoder is None:
            raise GenfedError(
                f"{path}: rows must be encoded like the training rows, but the run's folder has no encoder.json; "
                "resuming the run (--resume) writes it"
            )
        there = replace(self, path=path)  # so that messages name the file
        table = there._read(
            path, as_text=[name for name, texts in encoder.categories.items() if not _is_read_alike(texts)]
        )
        for name in (*encoder.numbers, *encoder.categories):
            require_known(name, table.column_names, f"{path}: column")
        x = encoder(there._read_columns(table, encoder.numbers, encoder.categories), path)
        yield Examples(tuple(map(str, range(len(x)))), "row", x)

    def _read_columns(self, table: Any, numeric: Iterable[str], categorical: Iterable[str]) -> Columns:
        return Columns(
            {name: self._read_numbers(table, name) for name in numeric},
            {name: self._read_texts(table, name) for name in categorical},
        )

    def _read(self, path: str, as_text: Sequence[str] = ()) -> Any:
        """Reads the file as a pyarrow table; in a text file, the columns `as_text` are never read as numbers."""
        require("pyarrow", extra="tables", what="a table")
        import pyarrow
        from pyarrow import parquet

        file, kind = require_path(path), Path(path).suffix.lower()
        if kind not in _CSV + _PARQUET:
            raise GenfedError(f"{path}: unknown file type {kind!r}; {', '.join(_CSV + _PARQUET)} are allowed")
        try:
            table = self._read_text_file(file, as_text) if kind in _CSV else parquet.read_table(file)
        except (OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
            raise GenfedError(f"{path}: not a readable table ({first_line(error)})") from None
        if twice := {name for name in table.column_names if table.column_names.count(name) > 1}:
            raise GenfedError(f"{path}: column {min(twice)!r} appears twice")
        if not table.num_rows:
            raise GenfedError(f"{path}: there are no rows")
        return table

    def _read_text_file(self, file: Path, as_text: Sequence[str]) -> Any:
        from pyarrow import csv, string

        # pyarrow infers the type of a column from the first block, so the block is the whole file
        block = min(max(file.stat().st_size + 1, 2**16), 2**31 - 1)
        markers = self._markers
        table = csv.read_csv(
            file,
            csv.ReadOptions(block_size=block, column_names=self.names),
            csv.ParseOptions(delimiter=self.delimiter or ("\t" if file.suffix.lower() == ".tsv" else ",")),
            # many files have a space after the comma; numbers are trimmed, markers are not
            csv.ConvertOptions(
                null_values=[*markers, *(f" {m}" for m in markers)],
                strings_can_be_null=True,
                column_types={f"{space}{name}": string() for name in as_text for space in ("", " ")},
            ),
        )
        return table.rename_columns([name.strip() for name in table.column_names])

    @property
    def _markers(self) -> Sequence[str]:
        return _MISSING if self.missing is None else self.missing

    def _choose_features(self, table: Any) -> tuple[list[str], list[str]]:
        """Returns the columns used as numbers and those used as categories."""
        from pyarrow import types

        for name in (*(self.drop or []), self.label, *(self.columns or [])):
            require_known(name, table.column_names, f"{self.path}: column")
        named = [*(self.numeric or []), *(self.categorical or [])]
        out = {self.label, *(self.columns or []), *(self.drop or [])}
        for name in named:
            if name in out or named.count(name) > 1:
                raise GenfedError(f"column {name!r} is named twice: it can be label, natural, dropped or one feature")
        numeric, categorical = [], []
        for field in table.schema:
            if field.name in out or field.name in named:
                continue
            kind = field.type.value_type if types.is_dictionary(field.type) else field.type
            if any(test(kind) for test in (types.is_integer, types.is_floating, types.is_decimal, types.is_null)):
                numeric.append(field.name)
            elif any(test(kind) for test in (types.is_string, types.is_large_string, types.is_boolean)):
                categorical.append(field.name)
            else:
                raise GenfedError(
                    f"{self.path}: column {field.name!r} is of type {kind}; name it in numeric, categorical or drop"
                )
        return (
            numeric if self.numeric is None else list(self.numeric),
            categorical if self.categorical is None else list(self.categorical),
        )

    def _read_numbers(self, table: Any, name: str) -> Any:
        """Returns a column as float64 [n]; NaN: missing."""
        import pyarrow

        try:
            return table.column(name).cast(pyarrow.float64(), safe=False).to_numpy()
        except pyarrow.ArrowException as error:
            raise GenfedError(f"{self.path}: column {name!r} is not of numbers ({first_line(error)})") from None

    def _read_texts(self, table: Any, name: str) -> list[str | None]:
        """Returns a column as n texts; None: missing."""
        import pyarrow

        try:
            values = table.column(name).cast(pyarrow.string()).to_pylist()
        except pyarrow.ArrowException as error:
            raise GenfedError(f"{self.path}: column {name!r} is not of categories ({first_line(error)})") from None
        texts = (None if value is None else value.strip() for value in values)
        return [None if text in self._markers else text for text in texts]

    def _read_labels(self, table: Any) -> Any:
        """Returns the labels [n], numbers or text."""
        from pyarrow import types

        values = self._read_natural(table, self.label)
        kind = table.schema.field(self.label).type
        if types.is_integer(kind) or types.is_floating(kind):
            return self._read_numbers(table, self.label)
        return np.array(values, np.str_)

    def _read_natural(self, table: Any, name: str) -> list[str]:
        """Returns a column as n texts, none missing."""
        values = self._read_texts(table, name)
        if gaps := values.count(None):
            raise GenfedError(f"{self.path}: column {name!r} lacks {gaps} values; each row needs one")
        return [value for value in values if value is not None]


def _is_read_alike(texts: Sequence[str]) -> bool:
    """Returns whether a text file's column of these categories gives the same texts if it is read as numbers or
    booleans: all are numbers in plain form (1, not 01), or all are true and false.
    """
    plain = [text for text in texts if text != MISSING]
    number = r"-?(0|[1-9]\d*)(\.\d+)?(e[-+]?\d+)?"
    return all(re.fullmatch(number, text) for text in plain) or {*plain} <= {"true", "false"}

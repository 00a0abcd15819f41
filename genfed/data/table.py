"""Rows and columns in CSV or Parquet files."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data, Task
from genfed.data.checks import reason, require_known, require_path
from genfed.data.dataset import Dataset, Examples
from genfed.data.features import MISSING, Columns, Encoder, fit_encoder
from genfed.data.labels import encode_labels
from genfed.data.split import SplitSource

_CSV, _PARQUET = (".csv", ".tsv", ".txt", ".data"), (".parquet", ".pq")
_MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL")


@settings
class Table(SplitSource):
    """A table with a label column; numbers are scaled, categories become one-hot codes, missing values are filled in.
    Whatever that takes is learned on the training rows.
    """

    path: str
    """The file: .csv, .tsv, .txt or .data (text), .parquet or .pq."""
    label: str
    """The column to predict: whole numbers or text."""
    validation_path: str | None = None
    """A file with the validation rows; None: they are cut from `path`."""
    test_path: str | None = None
    """A file with the test rows; None: they are cut from `path`."""
    numeric: tuple[str, ...] | None = None
    """Columns used as numbers; None: every column of numbers."""
    categorical: tuple[str, ...] | None = None
    """Columns used as categories; None: every column of text or booleans."""
    columns: tuple[str, ...] | None = None
    """Natural columns, e.g. ["hospital"], to partition by; they are no features. None: none."""
    drop: tuple[str, ...] | None = None
    """Columns left out; None: none."""
    classes: tuple[str, ...] | None = None
    """The names of the classes, in the order of their sorted labels; None: the labels themselves."""
    scale: Literal["standard", "range"] = "standard"
    """Numbers get mean 0 and variance 1 ("standard"), or lie in [−1, 1] ("range"), over the training rows."""
    missing: tuple[str, ...] | None = None
    """Texts that mark a missing value; None: the empty one, ?, NA, N/A, NaN, nan, null, NULL."""
    names: tuple[str, ...] | None = None
    """The columns of a text file without a header; None: its first line names them."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """What separates the columns of a text file; None: a tab in .tsv, else a comma."""

    def load(self) -> Dataset:
        paths = {"train": self.path, "validation": self.validation_path, "test": self.test_path}
        tables = {part: self._read(path) for part, path in paths.items() if path is not None}
        numeric, categorical = self._features(tables["train"])
        for part, table in tables.items():
            for name in (self.label, *numeric, *categorical, *(self.columns or [])):
                require_known(name, table.column_names, f"{paths[part]}: column")
        labels = {part: self._labels(table) for part, table in tables.items()}
        y, classes = encode_labels(labels, self.classes, self.path)
        features = {part: self._columns_of(table, numeric, categorical) for part, table in tables.items()}
        encoder = fit_encoder(features["train"].rows(self.cut(y, classes)["train"][1]), self.scale, self.path)
        data = {part: Data(encoder(columns, self.path), y[part]) for part, columns in features.items()}
        natural = {}
        for part, table in tables.items():
            there = replace(self, path=paths[part] or self.path)  # so that messages name the file
            natural[part] = {name: there._natural(table, name) for name in self.columns or []}
        return self.dataset("table", data, classes, natural["train"], encoder, natural)

    def read(self, path: str, task: Task, encoder: Encoder | None) -> Iterator[Examples]:
        """The rows of a file that has the columns of features; others, such as the label, are passed over."""
        if encoder is None:
            raise GenfedError(
                f"{path}: rows are encoded as the training rows were, and the run's folder has no encoder.json that "
                "says how; going on with the run (--resume) writes it"
            )
        there = replace(self, path=path)  # so that messages name the file
        table = there._read(path, as_text=[name for name, texts in encoder.categories.items() if not _alike(texts)])
        for name in (*encoder.numbers, *encoder.categories):
            require_known(name, table.column_names, f"{path}: column")
        x = encoder(there._columns_of(table, encoder.numbers, encoder.categories), path)
        yield Examples(tuple(map(str, range(len(x)))), "row", x)

    def _columns_of(self, table: Any, numeric: Iterable[str], categorical: Iterable[str]) -> Columns:
        return Columns(
            {name: self._numbers(table, name) for name in numeric},
            {name: self._texts(table, name) for name in categorical},
        )

    def _read(self, path: str, as_text: Sequence[str] = ()) -> Any:
        """The file as a pyarrow table; in a text file, the columns `as_text` are not taken for numbers."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise GenfedError("""CSV and Parquet need the extra "tables": pip install 'genfed[tables]'""") from None
        file, kind = require_path(path), Path(path).suffix.lower()
        if kind not in _CSV + _PARQUET:
            raise GenfedError(f"{path}: unknown file type {kind!r}; {', '.join(_CSV + _PARQUET)} are allowed")
        try:
            table = self._text(file, as_text) if kind in _CSV else parquet.read_table(file)
        except (OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
            raise GenfedError(f"{path}: not a readable table ({reason(error)})") from None
        if twice := {name for name in table.column_names if table.column_names.count(name) > 1}:
            raise GenfedError(f"{path}: column {min(twice)!r} stands twice")
        if not table.num_rows:
            raise GenfedError(f"{path}: there are no rows")
        return table

    def _text(self, file: Path, as_text: Sequence[str]) -> Any:
        from pyarrow import csv, string

        # the type of a column is guessed from the first block: make that the whole file
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

    def _features(self, table: Any) -> tuple[list[str], list[str]]:
        """The columns of numbers and those of categories."""
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

    def _numbers(self, table: Any, name: str) -> Any:
        """float64 [n]; NaN is a missing value."""
        import pyarrow

        try:
            return table.column(name).cast(pyarrow.float64(), safe=False).to_numpy()
        except pyarrow.ArrowException as error:
            raise GenfedError(f"{self.path}: column {name!r} is not of numbers ({reason(error)})") from None

    def _texts(self, table: Any, name: str) -> list[str | None]:
        """The n texts; None is a missing value."""
        import pyarrow

        try:
            values = table.column(name).cast(pyarrow.string()).to_pylist()
        except pyarrow.ArrowException as error:
            raise GenfedError(f"{self.path}: column {name!r} is not of categories ({reason(error)})") from None
        texts = (None if value is None else value.strip() for value in values)
        return [None if text in self._markers else text for text in texts]

    def _labels(self, table: Any) -> Any:
        """Whole numbers or text, [n]."""
        from pyarrow import types

        values = self._natural(table, self.label)
        kind = table.schema.field(self.label).type
        if types.is_integer(kind) or types.is_floating(kind):
            return self._numbers(table, self.label)
        return np.array(values, np.str_)

    def _natural(self, table: Any, name: str) -> list[str]:
        """The n texts, none of them missing."""
        values = self._texts(table, name)
        if gaps := values.count(None):
            raise GenfedError(f"{self.path}: column {name!r} lacks {gaps} values; each row needs one")
        return [value for value in values if value is not None]


def _alike(texts: Sequence[str]) -> bool:
    """Whether the categories are all numbers in their plain form (1, not 01), or true and false: then a text file's
    column of them is read as such.
    """
    plain = [text for text in texts if text != MISSING]
    number = r"-?(0|[1-9]\d*)(\.\d+)?(e[-+]?\d+)?"
    return all(re.fullmatch(number, text) for text in plain) or {*plain} <= {"true", "false"}

"""The rows of silos as data frames or files, made into features and back."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genfed.core.errors import GenfedError, first_line, require
from genfed.core.task import Data
from genfed.data.cells import MISSING_WORDS, Cells, ReadAs, label_values
from genfed.data.columns import Choice, summarize_columns
from genfed.data.features import TableSchema, TableSummary
from genfed.data.numerals import SURE, find_notation
from genfed.data.table import Table
from genfed.data.table_source import RawTable, localize, read_columns
from genfed.preprocessing.source_summary import SourceSummary

if TYPE_CHECKING:
    from pandas import DataFrame

_ENOUGH = 20
"""Rows from which a column can be seen to name them."""
_ID = re.compile(r"(.*[_\W])?(id|ids|uuid|guid|key|index|rowid)", re.IGNORECASE)
_MOST_CLASSES = 1000
_KEPT = 2**29
"""Bytes of features that are kept in memory."""


@dataclass(frozen=True)
class ColumnKinds:
    """What the user says of columns."""

    numeric: tuple[str, ...] = ()
    """Columns of numbers, whatever they look like."""
    categorical: tuple[str, ...] = ()
    """Columns of categories, whatever they look like."""
    missing: tuple[str, ...] = ()
    """Further texts that mean that there is no value."""


@dataclass
class Silo:
    """The rows of one silo."""

    name: str
    table: RawTable
    label: str | None
    types: dict[str, str]
    """Type of each column, as pandas names it; empty texts for those of a text file."""
    kinds: ColumnKinds
    """What the user says of the columns."""
    ids: tuple[str, ...] = ()
    """Columns that name the rows."""
    said: SourceSummary = field(default_factory=SourceSummary)
    """What looks wrong in the rows."""
    own: TableSummary | None = None
    """What it has said of its columns. None: it has not taken part in an agreement."""

    def read(self, name: str, read_as: ReadAs) -> Cells | None:
        """Returns a column. None: it has no values that can be used."""
        return self.table.cells(name, read_as)

    def summarize(self, least: int) -> TableSummary:
        """Returns what the silo says of its columns to agree with others; see `summarize_columns`."""
        names = tuple(name for name in self.table.names if name != self.label and name not in self.ids)
        there = set(names)
        numeric, categorical = (
            tuple(name for name in some if name in there) for some in (self.kinds.numeric, self.kinds.categorical)
        )
        choice = Choice(names, numeric, categorical, delimiter=self.table.delimiter, typed=self.table.typed)
        labels = np.zeros(self.table.columns.num_rows, np.int64)
        found, said = summarize_columns(choice, self.read, labels, self.table.where, least)
        self.said = SourceSummary((), tuple(line.replace("data.", "") for line in said.warnings))
        self.own = found
        return found

    def read_by(self, schema: TableSchema) -> tuple[dict[str, Cells], TableSchema]:
        """Returns the columns that an agreed schema needs, and the schema as this silo writes its numbers.

        Raises:
            GenfedError: a column is of another type.
        """
        if self.own is None:
            lacking = {name for name in (*schema.numbers, *schema.categories) if name not in self.table.names}
        else:
            schema, lacking = localize(schema, self.own)
        return read_columns(self.table, schema, lacking), schema


def open_silo(name: str, rows: "DataFrame | str | Path", label: str | None, kinds: ColumnKinds = ColumnKinds()) -> Silo:
    """Returns a silo.

    Args:
        name: Its name.
        rows: A data frame, or the path of a CSV or Parquet file.
        label: The column of classes. None: there is none.
        kinds: What the user says of the columns.

    Raises:
        GenfedError: the file cannot be read, there is no row, or the label is not a column.
    """
    require("pyarrow", extra="tables", what="a table")
    import pandas as pd
    import pyarrow

    words = (*MISSING_WORDS, *kinds.missing)
    if isinstance(rows, str | Path):
        table = Table(path=str(rows), label=label or "", missing=kinds.missing).read_table(str(rows))
        types = dict.fromkeys(table.names, "")
        if table.typed:
            types = {str(name): str(kind) for name, kind in table.columns.to_pandas().dtypes.items()}
    elif not isinstance(rows, pd.DataFrame) or not len(rows):
        raise GenfedError(f"silo {name!r}: there are no rows; a data frame or the path of a file is allowed")
    else:
        names = [str(column) for column in rows.columns]
        if len(set(names)) < len(names):
            raise GenfedError(f"silo {name!r}: two columns have the same name")
        types = {str(column): str(kind) for column, kind in rows.dtypes.items()}
        try:
            made = pyarrow.Table.from_pandas(rows.set_axis(names, axis=1), preserve_index=False)
        except (pyarrow.ArrowException, TypeError, ValueError) as error:
            raise GenfedError(f"silo {name!r}: a column holds values of several types: {first_line(error)}") from None
        table = RawTable(name, made, True, words)
    if label is not None and label not in table.names:
        raise GenfedError(
            f"silo {name!r}: there is no column {label!r}, the label; columns are {', '.join(table.names)}"
        )
    return Silo(name, table, label, types, kinds)


def drop_ids(silos: Mapping[str, Silo], ids: Sequence[str] | None, label: str | None) -> list[str]:
    """Returns the columns whose values name the rows, and marks them in the silos.

    Args:
        silos: The silos.
        ids: The columns. None: those of other texts in every row, and of other whole numbers in every row with a name
            such as patient_id.
        label: The column of classes.

    Raises:
        GenfedError: no silo has a named column.
    """
    every = dict.fromkeys(name for silo in silos.values() for name in silo.table.names)
    if ids is not None:
        for name in ids:
            if name not in every or name == label:
                raise GenfedError(f"ids: {name!r} is no column of features; columns are {', '.join(every)}")
        found = list(ids)
    else:
        found = [
            name
            for name in every
            if name != label and all(_names_rows(silo, name) for silo in silos.values() if name in silo.table.names)
        ]
    for silo in silos.values():
        silo.ids = tuple(name for name in found if name in silo.table.names)
    return found


def _names_rows(silo: Silo, name: str) -> bool:
    cells = silo.table.cells(name)
    if cells is None or cells.present < _ENOUGH or cells.present < len(cells):
        return False
    if cells.numbers is None:  # numbers in another style than 1234.5 are texts here
        return len(cells.values) == len(cells) and find_notation(cells, None, None, None).share < SURE
    whole = bool((cells.numbers == np.floor(cells.numbers)).all())
    return whole and len(np.unique(cells.numbers)) == len(cells) and _ID.fullmatch(name) is not None


def find_classes(silos: Mapping[str, Silo], label: str | None) -> tuple[str, ...]:
    """Returns the classes of all silos, sorted; one where there is no label.

    Raises:
        GenfedError: a row has no label, or there are more than 1,000 classes.
    """
    if label is None:
        return ("all",)
    values = label_values([silo.table.whole(label) for silo in silos.values()])
    classes = sorted({value for each in values for value in each.tolist()})
    if len(classes) > _MOST_CLASSES:
        raise GenfedError(
            f"label {label!r}: {len(classes):,} classes; {_MOST_CLASSES:,} are allowed. A column of numbers needs no "
            "label: label = None learns it like the others"
        )
    return tuple(map(str, classes))


def encode_silo(silo: Silo, schema: TableSchema, classes: tuple[str, ...]) -> Data:
    """Returns the features and labels of a silo's rows.

    Raises:
        GenfedError: values do not fit the schema, or a class is not known.
    """
    columns, local = silo.read_by(schema)
    x = local.encode(columns, silo.table.where).x
    if silo.label is None:
        return Data(x, torch.zeros(len(x), dtype=torch.int64))
    places = {name: place for place, name in enumerate(classes)}
    texts = [str(value) for value in label_values([silo.table.whole(silo.label)])[0].tolist()]
    if strange := next((text for text in texts if text not in places), None):
        raise GenfedError(f"silo {silo.name!r}: {strange!r} is no class; {', '.join(classes)} are allowed")
    return Data(x, torch.tensor([places[text] for text in texts]))


class EncodedSilos:
    """The features and labels of silos, one after the other. Where all of them together are large, each is encoded when
    it is needed.
    """

    def __init__(self, silos: Sequence[Silo], schema: TableSchema, classes: tuple[str, ...]) -> None:
        self._silos, self._schema, self._classes = silos, schema, classes
        self.rows = sum(silo.table.columns.num_rows for silo in silos)
        """Number of rows of all silos."""
        self._kept: list[Data] = []
        if self.rows * schema.width * 4 <= _KEPT:
            self._kept = [encode_silo(silo, schema, classes) for silo in silos]

    def __len__(self) -> int:
        return len(self._silos)

    def __iter__(self) -> Iterator[Data]:
        if self._kept:
            yield from self._kept
        else:
            yield from (encode_silo(silo, self._schema, self._classes) for silo in self._silos)


def read_frame(silo: Silo, schema: TableSchema, columns: Sequence[str]) -> "DataFrame":
    """Returns a silo's rows as they are compared with drawn ones: numbers as numbers, and texts.

    Args:
        silo: The silo.
        schema: The schema of the features.
        columns: The columns in order; one that the silo lacks is missing in all rows.
    """
    import pandas as pd

    there, local = silo.read_by(schema)
    cells = local.read(there)
    if silo.label is not None:
        cells[silo.label] = silo.table.texts(silo.label)
    found: dict[str, Any] = {}
    for name in columns:
        if (column := cells[name]).numbers is not None:
            found[name] = column.numbers
        else:
            found[name] = np.array([*column.values, None], dtype=object)[column.index]
    return pd.DataFrame(found)


def rebuild_frame(
    columns: Mapping[str, Sequence[Any]], order: Sequence[str], types: Mapping[str, str], ids: Sequence[str]
) -> "DataFrame":
    """Returns drawn columns as a data frame with the columns and types of the real one.

    Args:
        columns: The values by column; None: missing.
        order: The columns in order.
        types: The type of each, as pandas names it.
        ids: Columns whose values are made anew.
    """
    import pandas as pd

    rows = len(next(iter(columns.values())))
    found = {}
    for name in order:
        if name in ids:
            numbers = range(1, rows + 1)
            is_text = types.get(name, "").startswith(("object", "str", "category"))
            found[name] = pd.Series([f"{name}-{i}" for i in numbers] if is_text else list(numbers))
        else:
            found[name] = _cast(pd.Series(list(columns[name]), dtype=object), types.get(name, "object"))
    return pd.DataFrame(found)


def _cast(series: Any, kind: str) -> Any:
    """Returns a column in a type of pandas; in a type that can hold it where that one cannot."""
    import pandas as pd

    gaps = bool(series.isna().any())
    try:
        if kind == "bool" or kind == "boolean":
            truth = series.map({"true": True, "false": False}, na_action="ignore")
            return truth.astype("boolean" if gaps or kind == "boolean" else "bool")
        if kind.startswith(("datetime", "timestamp")):
            return pd.to_datetime(series, utc="UTC" in kind).astype(kind)
        if kind.startswith("timedelta"):
            return pd.to_timedelta(pd.to_numeric(series), unit="s").astype(kind)
        if kind.lower().startswith(("int", "uint", "float")):
            numbers = pd.to_numeric(series)
            plain = kind.lower().startswith("float") or not gaps
            return numbers.astype(kind if plain else kind.replace("i", "I", 1).replace("u", "U", 1))
        if kind == "category":
            return series.astype("category")
        if all(isinstance(value, int) for value in series.dropna()):
            return series.astype("Int64" if gaps else "int64")
        return series.infer_objects() if kind in ("object", "") else series.astype(kind)
    except (ValueError, TypeError, OverflowError):
        return series.infer_objects()

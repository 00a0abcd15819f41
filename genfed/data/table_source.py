"""Sources of tables: columns become features by a schema that is fitted once and stored."""

import functools
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.data.cells import (
    MISSING_WORDS,
    Cells,
    ReadAs,
    arrow_cells,
    empty_cells,
    label_values,
    spell_names,
    written_numbers,
)
from genfed.data.columns import UNNAMED, Choice, Read, choose_columns, summarize_columns
from genfed.data.copies import describe_torn, digest_examples
from genfed.data.dataset import Dataset, Examples
from genfed.data.encoder import read_schema
from genfed.data.features import TableSchema, TableSummary, gather_misfits
from genfed.data.numerals import read_unit_factors
from genfed.data.split import SplitSource
from genfed.preprocessing.checks import require_known
from genfed.preprocessing.source_summary import SourceSummary, show


@dataclass(frozen=True)
class RawTable:
    """A table as it was read."""

    where: str
    """Its file or name, for messages."""
    columns: Any
    """A pyarrow table."""
    typed: bool
    """Whether the file tells texts from numbers; a text file does not."""
    missing: tuple[str, ...] = MISSING_WORDS
    """Texts that mean that there is no value."""
    delimiter: str = ","
    notes: tuple[str, ...] = ()
    """What is not as usual in the file."""
    doubts: tuple[str, ...] = ()
    """What looks wrong in its rows."""

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """The place of each column by its name; the keys are the names in order."""
        return {name: i for i, name in enumerate(self.columns.column_names)}

    @property
    def names(self) -> Collection[str]:
        """The names of the columns."""
        return self.places.keys()

    def find_doubts(self) -> Iterator[str]:
        """Yields what looks wrong in the rows, with the file's name."""
        yield from (f"{self.where}: {doubt}" for doubt in self.doubts)

    def cells(self, name: str, read_as: ReadAs = "any") -> Cells | None:
        """Returns a column. None: it holds no values that can be used."""
        column = self.columns.column(self.places[require_known(name, self.names, f"{self.where}: column")])
        if read_as == "any" and not self.typed and (numbers := written_numbers(column, self.missing)) is not None:
            return numbers
        return arrow_cells(column, self.missing, read_as == "category")

    def all_cells(self, names: Sequence[str]) -> dict[str, Cells]:
        """Returns those of the columns that hold values that can be used."""
        return {name: cells for name in names if (cells := self.cells(name)) is not None}

    def texts(self, name: str) -> Cells:
        """Returns a column as texts.

        Raises:
            GenfedError: it holds no values that can be used.
        """
        cells = self.cells(name, "category")
        if cells is None:
            kind = self.columns.schema.field(name).type
            raise GenfedError(f"{self.where}: column {name!r} is of type {kind}; texts and numbers are allowed")
        return cells

    def whole(self, name: str) -> Cells:
        """Returns a column as texts of which none is missing.

        Raises:
            GenfedError: a value is missing.
        """
        cells = self.texts(name)
        if gaps := len(cells) - cells.present:
            raise GenfedError(
                f"{self.where}: column {name!r} lacks {gaps} values; each row needs one (data.missing and "
                "data.not_missing say which texts mean that there is none)"
            )
        return cells


@settings
class TableSource(SplitSource):
    """A source that can hold a table."""

    features: tuple[str, ...] | None = Field(
        default=None, description="The only columns that may be features, in this order; None: all that are left."
    )
    numeric: tuple[str, ...] | None = Field(
        default=None,
        description="Columns to use as numbers, whatever they look like; all others are decided by themselves. "
        "None: none.",
    )
    categorical: tuple[str, ...] | None = Field(
        default=None,
        description="Columns to use as categories, whatever they look like; all others are decided by themselves. "
        "None: none.",
    )
    columns: tuple[str, ...] | None = Field(
        default=None,
        description='Natural columns to partition by, such as ["hospital"]; they are not features. None: none.',
    )
    drop: tuple[str, ...] | None = Field(default=None, description="Columns to exclude; None: none.")
    scale: Literal["standard", "range", "none"] = Field(
        default="standard",
        description='Scaling of numbers over the training rows: to mean 0 and variance 1 ("standard"), to [−1, 1] '
        '("range"), or unchanged ("none").',
    )
    missing: tuple[str, ...] | None = Field(
        default=None,
        description="Further texts that mark a missing value, beside the empty one, those of pandas (NA, N/A, n/a, "
        "NaN, null, None and the like) and ?. None: none.",
    )
    not_missing: tuple[str, ...] | None = Field(
        default=None, description='Of these texts, those that are values here, such as ["NA"]. None: none.'
    )
    decimal: Literal[".", ","] | None = Field(
        default=None, description="Mark before the decimals of numbers; None: found in each column."
    )
    thousands: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="Mark between the thousands of numbers; None: found in each column.",
    )
    units: dict[str, dict[str, float]] | None = Field(
        default=None,
        description='Factors of the units in columns of numbers, such as {height = {cm = 1, m = 100}}; "" is a number '
        "without a unit. Numbers with another unit are missing. None: found in each column.",
    )
    encoder: str | None = Field(
        default=None,
        description="File encoder.json of another run, whose columns, codes and scales are used; all sites of a "
        "federation need the same. None: they are fitted to the training rows.",
    )

    @abstractmethod
    def load(self) -> Dataset: ...

    def missing_words(self, schema: TableSchema | None = None) -> tuple[str, ...]:
        """Returns the texts that mean that there is no value: those of a given schema, else the usual ones, and those
        of the settings.
        """
        if schema is None and self.encoder is not None:
            schema = read_schema(self.encoder)
        known = MISSING_WORDS if schema is None or schema.missing is None else schema.missing
        values = self.not_missing or ()
        return tuple(dict.fromkeys((*(word for word in known if word not in values), *(self.missing or ()))))

    @property
    def natural_names(self) -> tuple[str, ...]:
        """The natural columns, the group among them."""
        return tuple(dict.fromkeys((*(self.columns or ()), *(() if self.group is None else (self.group,)))))

    def build_table(
        self,
        tables: Mapping[str, RawTable],
        y: Mapping[str, Tensor],
        classes: tuple[str, ...],
        label: str,
        natural: Mapping[str, Mapping[str, Sequence[str]]],
        agreed: TableSchema | None = None,
    ) -> Dataset:
        """Builds the data set from the tables of the given parts.

        Args:
            tables: The table of each given part: "train" and optionally others.
            y: Their labels [n].
            classes: The names of the classes.
            label: The column of labels.
            natural: The natural columns of each given part.
            agreed: The schema that several sites agreed on. Numbers are read as this site's settings and training rows
                say; a column that this site does not use is missing in all of its rows. None: the schema of the
                settings, or of the training rows.

        Raises:
            GenfedError: a column is not there or cannot be used, or a class has too few examples.
        """
        train = tables["train"]
        names = self._candidates(train, label)
        first = self._cut_before(train, names, y, classes, natural)
        lacking: Collection[str] = ()
        shared = agreed  # what all sites have in common; each reads its own numbers
        if agreed is not None:
            own = self._summarize(train, names, y["train"], first, 1)
            agreed, lacking = localize(agreed, own)
        schema, about = self._choose_schema(train, label, names, y["train"], first, agreed)
        columns = {part: read_columns(table, schema, lacking) for part, table in tables.items()}
        keys = _digest_rows({part: schema.read(there) for part, there in columns.items()})
        cut = self.cut(y, classes, keys, natural)
        if not torch.equal(rows := cut.rows["train"][1], first):
            schema, about = self._choose_schema(train, label, names, y["train"], rows, agreed)
            columns = {part: read_columns(table, schema, lacking) for part, table in tables.items()}
        said = SourceSummary(
            tuple(_describe_file(table) for table in tables.values()),
            tuple(line for table in tables.values() for line in table.find_doubts()),
        )
        encoded = {part: schema.encode(columns[part], table.where) for part, table in tables.items()}
        misfits = gather_misfits(encoded.values())
        about += describe_torn(y, keys, "row", "values")
        data = {part: Data(found.x, y[part]) for part, found in encoded.items()}
        return self.build_dataset(
            "table", data, classes, natural["train"], shared or schema, natural, said + about + misfits, cut
        )

    def _cut_before(
        self,
        train: RawTable,
        names: tuple[str, ...],
        y: Mapping[str, Tensor],
        classes: tuple[str, ...],
        natural: Mapping[str, Mapping[str, Sequence[str]]],
    ) -> Tensor:
        """Returns the rows that are trained on, before the columns are chosen; see `build_table`."""
        # rows that are equal in all columns go before the columns are chosen: an id is then another text in every row
        same = _digest_rows({"train": train.all_cells(names)}) if self.deduplicate else None
        return self.cut(y, classes, same, natural).rows["train"][1]

    def summarize_table(
        self,
        train: RawTable,
        y: Mapping[str, Tensor],
        classes: tuple[str, ...],
        label: str,
        natural: Mapping[str, Mapping[str, Sequence[str]]],
        least: int,
    ) -> TableSummary:
        """Returns what a site says of its columns to agree on a schema with others.

        Args:
            train: The given training part.
            y: The labels of each given part.
            classes: The names of the classes.
            label: The column of labels.
            natural: The natural columns of each given part.
            least: Least number of rows of what is said, see `summarize_table` in `genfed.data.features`.

        Raises:
            GenfedError: a column is not there or cannot be used.
        """
        names = self._candidates(train, label)
        return self._summarize(train, names, y["train"], self._cut_before(train, names, y, classes, natural), least)

    def _summarize(
        self, train: RawTable, names: tuple[str, ...], y: Tensor, chosen: Tensor, least: int
    ) -> TableSummary:
        """Returns what `summarize_table` does, for columns and rows as in `_choose_schema`."""
        read, labels = _reader(train, chosen), y[chosen].numpy()
        found = summarize_columns(self._choice(names, train), read, labels, train.where, least)[0]
        return replace(found, missing=self.missing_words())

    def _choose_schema(
        self,
        train: RawTable,
        label: str,
        names: tuple[str, ...],
        y: Tensor,
        chosen: Tensor,
        agreed: TableSchema | None,
    ) -> tuple[TableSchema, SourceSummary]:
        """Returns the schema of a table, and what is said of its columns.

        Args:
            train: The given training part.
            label: The column of labels.
            names: The columns that may be features.
            y: The labels [n] of the given training part.
            chosen: Its rows that are trained on [m].
            agreed: See `build_table`.

        Raises:
            GenfedError: a column cannot be used as it is named, or none is left; or the file of another run's schema
                cannot be read.
        """
        if agreed is not None:
            return agreed, SourceSummary(("columns, codes and scales: those that the sites agreed on",))
        if self.encoder is None:
            read, labels = _reader(train, chosen), y[chosen].numpy()
            schema, about = choose_columns(self._choice(names, train), read, labels, self.scale, train.where)
            schema = replace(schema, missing=self.missing_words())
        else:
            schema = read_schema(self.encoder)
            self._check_given(schema, label)
            about = SourceSummary((f"columns, codes and scales: {self.encoder}",))
        return schema, about

    def _check_given(self, schema: TableSchema, label: str) -> None:
        """Refuses settings that a given schema has decided otherwise.

        Raises:
            GenfedError: a setting says how columns are read, or the schema has a feature that is to be none.
        """
        for name in ("features", "numeric", "categorical", "decimal", "thousands", "units"):
            if (value := getattr(self, name)) is not None:
                raise GenfedError(
                    f"{name} = {value!r}: {self.encoder} decides how columns are read; remove one of them from [data]"
                )
        if self.scale != "standard":
            raise GenfedError(f"scale = {self.scale!r}: {self.encoder} has the scales; remove one of them from [data]")
        columns = {label: "the label"} | dict.fromkeys(self.natural_names, "no feature")
        for name, what in (dict.fromkeys(self.drop or (), "dropped") | columns).items():
            if name in schema.numbers or name in schema.categories:
                raise GenfedError(
                    f"column {name!r} is {what}, and a feature in {self.encoder}: name the encoder.json of a run in "
                    "which it is none"
                )

    def _choice(self, names: tuple[str, ...], train: RawTable) -> Choice:
        """Returns what the settings and the file's kind say of the columns `names`."""
        units = read_unit_factors(self.units or {})
        named = (self.numeric or (), self.categorical or (), self.decimal, self.thousands)
        return Choice(names, *named, units, train.delimiter, train.typed)

    def _candidates(self, train: RawTable, label: str) -> tuple[str, ...]:
        """Returns the columns that may be features.

        Raises:
            GenfedError: a named column is not there, is named twice, or is not among the only features.
        """
        out = [label, *self.natural_names, *(self.drop or ())]
        with_units = [name for name in self.units or () if name not in (self.numeric or ())]
        named = [*(self.numeric or ()), *(self.categorical or ()), *with_units]
        only = self.features
        for name in (*out, *named, *(only or ())):
            require_known(name, train.names, f"{train.where}: column")
        for some in (named, only or ()):
            count = Counter([*dict.fromkeys(out), *some])
            for name in some:
                if count[name] > 1:
                    raise GenfedError(
                        f"column {name!r} is named twice: it can be label, natural, dropped or one feature"
                    )
        if only is not None:
            chosen = set(only)
            if other := [name for name in named if name not in chosen]:
                raise GenfedError(f"column {other[0]!r} is named, but data.features does not have it")
            return only
        excluded = set(out)
        return tuple(name for name in train.names if name not in excluded)


def _reader(table: RawTable, rows: Tensor) -> Read:
    """Returns what reads a column of some rows of a table."""
    chosen = rows.numpy()

    def read(name: str, read_as: ReadAs) -> Cells | None:
        return None if (cells := table.cells(name, read_as)) is None else cells.select(chosen)

    return read


def find_lacking(schema: TableSchema, own: TableSummary) -> set[str]:
    """Returns the columns of an agreed schema that a site does not use.

    Raises:
        GenfedError: it uses a column in another way.
    """
    for name in schema.numbers.keys() & own.categories.keys() | schema.categories.keys() & own.numbers.keys():
        kinds = ("numbers", "categories") if name in schema.numbers else ("categories", "numbers")
        raise GenfedError(
            f"the agreed schema has column {show(name)!r} as one of {kinds[0]}, and here it is of {kinds[1]}"
        )
    return {*schema.numbers, *schema.categories} - {*own.numbers, *own.categories}


def localize(schema: TableSchema, own: TableSummary) -> tuple[TableSchema, set[str]]:
    """Returns an agreed schema with the ways in which one site writes its numbers, and the columns that the site does
    not use.

    Raises:
        GenfedError: see `find_lacking`.
    """
    written = own.notations
    numbers = {
        name: replace(about, notation=written[name]) if name in written else about
        for name, about in schema.numbers.items()
    }
    return replace(schema, numbers=numbers), find_lacking(schema, own)


def read_columns(table: RawTable, schema: TableSchema, lacking: Collection[str] = ()) -> dict[str, Cells]:
    """Returns the columns of a table that a schema needs.

    Args:
        table: The table.
        schema: The schema.
        lacking: Columns that are missing in all rows, whatever the table has.

    Raises:
        GenfedError: a column is not there, or of another type.
    """
    found: dict[str, Cells | None] = {}
    found |= {name: empty_cells(table.columns.num_rows, name in schema.numbers) for name in lacking}
    for name, about in schema.numbers.items():
        if name in lacking:
            continue
        notation = about.notation
        plain = notation.kind == "number" and notation.decimal == "." and notation.thousands in ("", ",")
        found[name] = table.cells(name, "any" if plain else "text")
    found |= {name: table.cells(name, "category") for name in schema.categories if name not in lacking}
    for name, cells in found.items():
        if cells is None:
            kind = "numbers" if name in schema.numbers else "categories"
            raise GenfedError(
                f"{table.where}: column {name!r} is not of {kind} ({table.columns.schema.field(name).type})"
            )
    return {name: cells for name, cells in found.items() if cells is not None}


def encode_rows(table: RawTable, schema: TableSchema) -> Examples:
    """Encodes the rows of a new file like the training rows; columns that the schema does not need are ignored.

    Raises:
        GenfedError: a column is not there, or its values do not fit.
    """
    found = schema.encode(read_columns(table, schema), table.where)
    return Examples(tuple(map(str, range(len(found.x)))), "row", found.x, (*table.find_doubts(), *found.misfits))


def read_label_column(tables: Mapping[str, RawTable], label: str) -> dict[str, NDArray[Any]]:
    """Returns the labels [n] of each part: whole numbers where all parts have such, else texts.

    Raises:
        GenfedError: the column is not there, or a value is missing.
    """
    values = label_values([table.whole(label) for table in tables.values()])
    return dict(zip(tables, values, strict=True))


def read_natural(tables: Mapping[str, RawTable], names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Returns the natural columns of each part as n texts; a part may lack a column.

    Raises:
        GenfedError: a value is missing.
    """
    natural: dict[str, dict[str, list[str]]] = {part: {} for part in tables}
    for name in names:
        cells = {part: table.whole(name) for part, table in tables.items() if name in table.names}
        for part, texts in spell_names(cells).items():
            natural[part][name] = texts
    return natural


def _digest_rows(columns: Mapping[str, Mapping[str, Cells]]) -> dict[str, list[bytes]]:
    """Returns a digest of each row's values in the columns of each part; columns without a name do not count, unless
    all lack one. Empty: there are no columns.
    """
    codes: dict[str, dict[str, int]] = {}
    keys = {}
    for part, there in columns.items():
        numbers = []
        for name, cells in ({n: c for n, c in there.items() if not UNNAMED.fullmatch(n)} or there).items():
            if cells.numbers is not None:
                numbers.append(np.where(np.isnan(cells.numbers), np.nan, cells.numbers + 0.0).view(np.int64))
            else:
                known = codes.setdefault(name, {})
                places = [known.setdefault(text, len(known)) for text in cells.values]
                numbers.append(np.array([*places, -1], np.int64)[cells.index])
        if numbers:
            keys[part] = digest_examples(np.stack(numbers, axis=1))
    return keys


def _describe_file(table: RawTable) -> str:
    notes = "".join(f", {note}" for note in table.notes)
    return f"{table.where}: {table.columns.num_rows:,} rows, {len(table.names):,} columns{notes}"

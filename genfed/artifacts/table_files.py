"""Drawn rows, written to CSV and Parquet files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genfed.core.errors import GenfedError, require
from genfed.core.files import make_folder, open_file

if TYPE_CHECKING:
    from pandas import DataFrame


def write_columns(columns: Mapping[str, Sequence[Any]], out: Path) -> None:
    """Writes columns to a CSV or Parquet file; None: missing. See `write_frame`."""
    require("pandas", extra="tables", what="a table")
    import pandas as pd

    write_frame(pd.DataFrame({name: pd.Series(list(values), dtype=object) for name, values in columns.items()}), out)


def write_frame(rows: "DataFrame", out: Path) -> None:
    """Writes a data frame to a CSV or Parquet file.

    Raises:
        GenfedError: the file has another type.
    """
    kind = out.suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise GenfedError(f"{out}: unknown file type {out.suffix!r}; .csv and .parquet are allowed")
    make_folder(out.absolute().parent)
    with open_file(out, "wb") as file:
        if kind == ".csv":
            rows.to_csv(file, index=False)
        else:
            rows.infer_objects().to_parquet(file, index=False)

"""Synthetic tables in three lines: `Synthesizer(...).fit({"north": rows, "south": other_rows}).sample(1000)`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sklearn.base import BaseEstimator

from genfed.artifacts.row_condition import Where, read_condition
from genfed.artifacts.row_fitting import Averaging, fit_alone, fit_together
from genfed.artifacts.silos import (
    ColumnKinds,
    EncodedSilos,
    Silo,
    drop_ids,
    encode_silo,
    find_classes,
    open_silo,
    read_frame,
    rebuild_frame,
)
from genfed.artifacts.table_quality import ComparedRows, write_quality
from genfed.config.reader import build_settings
from genfed.config.registry import GENERATORS, find_class
from genfed.core.errors import GenfedError, RecordError
from genfed.core.files import make_folder
from genfed.core.record import load, save
from genfed.core.rng import stream
from genfed.core.task import Task, Weights
from genfed.data.encoder import dump_schema, parse_schema
from genfed.data.schema_agreement import agree
from genfed.generators.pooled_rows import build_pooled
from genfed.generators.row_generator import LocalRowGenerator, RowGenerator, RowNetwork
from genfed.preprocessing.source_summary import SourceSummary

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class _Saved:
    """A fitted synthesizer in a file. It holds no row."""

    settings: str
    """The arguments of `Synthesizer`, JSON."""
    schema: str
    """The schema of the features, JSON."""
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    types: dict[str, str]
    """Type of each column in the first silo, as pandas names it."""
    ids: tuple[str, ...]
    rows: int
    weights: Weights


class Synthesizer(BaseEstimator):  # type: ignore[misc]
    """A generator of rows that several silos fit together; none sees the rows of another.

    The silos agree on the columns from summaries that hold no row. Then they add up counts ("mixture", "tan"): the
    result is that of all rows in one place, whichever silo has them. Or they train a network, whose mean is taken in
    each round ("any_order"). Or each fits a generator alone, and what is drawn from them is pooled ("cart", or
    pooled = True): the baseline of what silos reach without learning together.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"age": [20, 30, 40, 50] * 10, "sex": ["m", "f", "f", "m"] * 10, "ill": ["no", "yes"] * 20})
    >>> synth = Synthesizer("tan", label="ill").fit({"north": rows[:24], "south": rows[24:]})
    >>> drawn = synth.sample(6, where={"sex": "f", "age": (25, 45)})
    >>> list(drawn.columns), drawn["sex"].unique().tolist(), bool(drawn["age"].between(25, 45).all())
    (['age', 'sex', 'ill'], ['f'], True)
    """

    def __init__(
        self,
        generator: str = "mixture",
        *,
        label: str | None = None,
        settings: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        pooled: bool = False,
        least_rows: int = 5,
        least_silos: int = 2,
        numeric: Sequence[str] = (),
        categorical: Sequence[str] = (),
        missing: Sequence[str] = (),
        ids: Sequence[str] | None = None,
        random_state: int = 0,
    ) -> None:
        """Chooses the generator; nothing is read yet.

        Args:
            generator: Name of a generator of rows: "mixture", "tan", "any_order" or "cart".
            label: Column of classes, in each of which the rows have a distribution of their own. None: there is none.
            settings: Settings of the generator, such as {"components": 300}. None: its defaults.
            training: For networks: the rounds, such as {"rounds": 100, "batch_size": 256}. None: the defaults.
            pooled: Whether each silo fits a generator alone, and the rows that are drawn come from each silo's as often
                as it has rows. "cart" is always fitted so.
            least_rows: Least number of rows of a category that a silo names, and of a group of numbers by which it says
                how its numbers lie.
            least_silos: Least number of silos that have a category which is named; others become "(rare)". With fewer
                silos, all of them.
            numeric: Columns of numbers, whatever they look like.
            categorical: Columns of categories, whatever they look like, such as codes.
            missing: Further texts that mean that there is no value, such as "-999".
            ids: Columns whose values name the rows: they are not learned, and made anew. None: those that look like it.
            random_state: Seed of all draws.
        """
        self.generator = generator
        self.label = label
        self.settings = settings
        self.training = training
        self.pooled = pooled
        self.least_rows = least_rows
        self.least_silos = least_silos
        self.numeric = numeric
        self.categorical = categorical
        self.missing = missing
        self.ids = ids
        self.random_state = random_state

    def fit(
        self,
        silos: "Mapping[str, DataFrame | str | Path] | DataFrame | str | Path",
        y: None = None,
        notify: Callable[[int, int], None] = lambda done, of: None,
    ) -> "Synthesizer":
        """Fits the generator to the rows of all silos, and returns the synthesizer.

        Args:
            silos: The rows of each silo by its name: a data frame, or the path of a CSV or Parquet file. A single one
                is the only silo.
            y: Not used; scikit-learn passes it.
            notify: Called after each pass over the rows with the number of passes done and of all.

        Raises:
            GenfedError: a file cannot be read, or the silos' columns do not fit together.
        """
        named = silos if isinstance(silos, Mapping) else {"all": silos}
        if not named:
            raise GenfedError("there are no silos: a dict such as {'north': rows, 'south': other_rows} is allowed")
        opened = {str(name): self._open(str(name), rows, self.label) for name, rows in named.items()}
        generator, averaging = self._build_generator(), self._build_averaging()
        ids = drop_ids(opened, self.ids, self.label)
        summaries = {name: silo.summarize(self.least_rows) for name, silo in opened.items()}
        agreed = agree(summaries, least_sites=min(self.least_silos, len(opened)))
        classes = find_classes(opened, self.label)
        task = Task("table", (agreed.schema.width,), classes, agreed.schema.columns())
        encoded = EncodedSilos(tuple(opened.values()), agreed.schema, classes)
        fit = fit_alone if self._is_pooled(generator) else fit_together
        self.weights_ = fit(generator, task, encoded, averaging, self.random_state, notify)
        self.schema_, self.task_, self.ids_ = agreed.schema, task, tuple(ids)
        self.rows_ = encoded.rows
        first: Silo = next(iter(opened.values()))
        self.types_ = {name: kind for silo in reversed(opened.values()) for name, kind in silo.types.items()}
        known = {
            *agreed.schema.numbers,
            *agreed.schema.categories,
            *ids,
            *(() if self.label is None else (self.label,)),
        }
        every = dict.fromkeys((*first.types, *self.types_))
        self.columns_ = tuple(name for name in every if name in known)
        dropped = tuple(name for name in every if name not in known)
        said = (f"columns not used: {', '.join(dropped)}",) if dropped else ()
        warnings = dict.fromkeys(line for silo in opened.values() for line in silo.said.warnings)
        self.summary_ = SourceSummary((), tuple(warnings)) + agreed.summary + SourceSummary(said)
        self._silos = opened
        return self

    def sample(self, n: int, where: Where | None = None, draw: int = 0) -> "DataFrame":
        """Draws rows, with the columns and types of the first silo.

        Args:
            n: Number of rows.
            where: What the rows have to fulfil, by column: a category, a list of them, a number, a pair (least, most)
                of numbers, or None for missing. The label can be one of the columns. None: nothing.
            draw: Another number gives other rows; the same one gives the same.

        Raises:
            GenfedError: it is not fitted, a column or category is not known, or no row fulfils the condition.
        """
        if not hasattr(self, "weights_"):
            raise GenfedError("the synthesizer is not fitted: call fit first")
        if n < 1:
            raise GenfedError(f"n = {n}: at least 1 row is allowed")
        network, rng = self._load_network(), stream(self.random_state, "sample", draw)
        condition, labels = read_condition(where or {}, self.schema_, self.task_, self.label)
        shares = network.class_shares(condition) * labels
        if not bool(shares.sum() > 0):
            raise GenfedError("no row fulfils the condition")
        y = torch.multinomial(shares / shares.sum(), n, replacement=True, generator=rng)
        x = network.sample_where(y, rng, condition)
        found = self.schema_.decode(x)
        if self.label is not None:
            found[self.label] = [self.task_.classes[i] for i in y.tolist()]
        return rebuild_frame(found, self.columns_, self.types_, self.ids_)

    def score_samples(self, rows: "DataFrame") -> Any:
        """Returns the logarithm of the probability of each row [n], its label included where the rows have it: low for
        outliers.
        """
        silo = self._open("rows", rows, self.label if self.label in rows.columns else None)
        data = encode_silo(silo, self.schema_, self.task_.classes if silo.label is not None else ("all",))
        joint = self._load_network().log_joint(data.x)
        if silo.label is None:
            return joint.logsumexp(1).numpy()
        return joint.gather(1, data.y[:, None])[:, 0].numpy()

    def report(
        self,
        out: "str | Path",
        test: "DataFrame | str | Path",
        silos: "Mapping[str, DataFrame | str | Path] | None" = None,
        sensitive: str | None = None,
    ) -> list[str]:
        """Writes a page that compares as many drawn rows with the real ones. Returns what to know first, line by line.

        Args:
            out: The HTML file.
            test: Real rows that were not fitted.
            silos: The rows that were fitted, as for `fit`. None: those of `fit`, where this object fitted them.
            sensitive: Column of groups whose errors are compared. None: no groups.

        Raises:
            GenfedError: there is no label, the rows are not known, or the tables do not fit together.
        """
        if self.label is None:
            raise GenfedError("a report needs a label: the column that classifiers learn from the drawn rows")
        if silos is None and not hasattr(self, "_silos"):
            raise GenfedError("the fitted rows are not in the file: give silos, the tables of fit")
        opened = self._silos if silos is None else {n: self._open(n, rows, self.label) for n, rows in silos.items()}
        columns = [name for name in self.columns_ if name not in self.ids_]
        frames = {name: read_frame(silo, self.schema_, columns) for name, silo in opened.items()}
        drawn = self._open("drawn", self.sample(sum(map(len, frames.values()))), self.label)
        tested = read_frame(self._open("test", test, self.label), self.schema_, columns)
        compared = ComparedRows(frames, read_frame(drawn, self.schema_, columns), tested)
        return write_quality(compared, self.label, Path(out), sensitive, self.random_state)

    def save(self, path: str | Path) -> None:
        """Writes the fitted synthesizer to one file. It holds no row."""
        saved = _Saved(
            json.dumps(self.get_params()),
            dump_schema(self.schema_),
            self.task_.classes,
            self.columns_,
            self.types_,
            self.ids_,
            self.rows_,
            self.weights_,
        )
        make_folder(Path(path).absolute().parent)
        save(saved, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> "Synthesizer":
        """Reads a synthesizer that `save` wrote.

        Raises:
            GenfedError: there is no such file, or it holds something else.
        """
        try:
            saved = load(_Saved, Path(path))
            made = cls(**json.loads(saved.settings))
            made.schema_ = parse_schema(saved.schema, str(path))
        except (RecordError, ValueError, TypeError) as error:
            raise GenfedError(f"{path}: not a file that Synthesizer.save wrote ({error})") from None
        made.task_ = Task("table", (made.schema_.width,), saved.classes, made.schema_.columns())
        made.columns_, made.types_, made.ids_, made.rows_ = saved.columns, saved.types, saved.ids, saved.rows
        made.weights_ = saved.weights
        made._load_network()  # refused here if the weights do not fit
        return made

    def _open(self, name: str, rows: "DataFrame | str | Path", label: str | None) -> Silo:
        return open_silo(name, rows, label, ColumnKinds(*map(tuple, (self.numeric, self.categorical, self.missing))))

    def _build_generator(self) -> RowGenerator:
        """Returns the generator of the arguments.

        Raises:
            GenfedError: there is no such generator of rows, or a setting is wrong.
        """
        made = find_class(GENERATORS, self.generator)
        if not issubclass(made, RowGenerator):
            raise GenfedError(
                f"generator = {self.generator!r}: no generator of rows; mixture, tan, any_order and cart are allowed"
            )
        return build_settings(made, dict(self.settings or {}), "settings.")

    def _build_averaging(self) -> Averaging:
        return build_settings(Averaging, dict(self.training or {}), "training.")

    def _is_pooled(self, generator: RowGenerator) -> bool:
        return self.pooled or isinstance(generator, LocalRowGenerator)

    def _load_network(self) -> RowNetwork:
        generator = self._build_generator()
        if self._is_pooled(generator):
            return build_pooled(generator, self.task_, self.weights_)
        return generator.build(self.task_, self.weights_)

"""Data that stay at the sites: each site has its own, and the server sees none."""

from collections.abc import Iterator

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Task
from genfed.data.dataset import Dataset, Examples, Source
from genfed.data.encoder import Encoder
from genfed.data.series import Series
from genfed.data.table import Table


@settings
class Sites(Source):
    """Each site's own data, named in its SITE.toml; for `genfed serve`."""

    def load(self) -> Dataset:
        raise GenfedError(
            'data.kind = "sites": the data lie at the sites, so use `genfed serve`; see docs/deployment.md'
        )

    def read(self, path: str, task: Task, encoder: Encoder | None) -> Iterator[Examples]:
        """Reads the rows of a table, or series, by the encoder.json that the sites share, once it lies in the run's
        folder.
        """
        if task.kind not in ("table", "series"):
            yield from super().read(path, task, encoder)
        if encoder is None:
            raise GenfedError(
                f"{path}: only the sites know how raw examples become x; put the encoder.json that they name in "
                "data.encoder into the run's folder, or the encoder of a site's model.json"
            )
        source = Series(path=path) if task.kind == "series" else Table(path=path, label="")
        yield from source.read(path, task, encoder)

"""Data that no server sees: each site of a federation has its own."""

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.data.dataset import Dataset, Source


@settings
class Sites(Source):
    """Each site's own data, as its SITE.toml names it: for `genfed serve`."""

    def load(self) -> Dataset:
        raise GenfedError(
            'data.kind = "sites": the data lie at the sites, so use `genfed serve`; see docs/deployment.md'
        )

"""Data that stay at the sites: each site has its own, and the server sees none."""

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.data.dataset import Dataset, Source


@settings
class Sites(Source):
    """Each site's own data, named in its SITE.toml; for `genfed serve`."""

    def load(self) -> Dataset:
        raise GenfedError(
            'data.kind = "sites": the data lie at the sites, so use `genfed serve`; see docs/deployment.md'
        )

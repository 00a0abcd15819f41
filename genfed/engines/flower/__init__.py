"""The engine on Flower: the only importer of flwr."""

import importlib.metadata
import os

from genfed.core.errors import GenfedError

SUPPORTED = ((1, 41), (1, 43))
"""Versions of Flower that work: from the first, below the second."""
# Neither may call home from a site's network; both read this when they are imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # 15 is Ray's: beside any other work clients would stand still
# A simulated client that asks for no GPU of Ray's still sees those that there are: device = "cuda" is genfed's to give.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

EXTRA = "install it with: pip install 'genfed[flower]'"


def check_version(found: str) -> None:
    """Refuses a version of Flower that is not in SUPPORTED.

    Raises:
        GenfedError: it is older or newer.
    """
    first, beyond = (".".join(map(str, part)) for part in SUPPORTED)
    if not SUPPORTED[0] <= tuple(map(int, found.split(".")[:2])) < SUPPORTED[1]:
        raise GenfedError(f"Flower {found} is installed, and genfed needs {first} up to below {beyond}; {EXTRA}")


try:
    check_version(importlib.metadata.version("flwr"))
    import flwr.app
    import flwr.clientapp
    import flwr.serverapp  # noqa: F401
except (ImportError, importlib.metadata.PackageNotFoundError):
    raise GenfedError(f"Flower is not installed; {EXTRA}") from None

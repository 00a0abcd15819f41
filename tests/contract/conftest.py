"""What the contract suites share."""

import os
import sys
from collections.abc import Iterator

import pytest

from genfed.engines.worker_pool import WorkerPool
from genfed.experiment import run as runs


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is tested elsewhere, and takes longer than a tiny run."""
    monkeypatch.setattr(runs, "page", lambda *given: "")


@pytest.fixture(scope="session")
def pool() -> Iterator[WorkerPool]:
    """Two worker processes that serve every test here: starting them takes longer than a tiny run."""
    workers = WorkerPool([sys.executable, "-m", "genfed.experiment.worker", "1", str(os.getpid())], 2)
    yield workers
    workers.close()

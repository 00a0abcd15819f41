"""What the contract suites share."""

import os
import sys
from collections.abc import Iterator

import pytest

import genfed.app.run as runs
from genfed.engines.embedded import Workers


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is tested elsewhere, and takes longer than a tiny run."""
    monkeypatch.setattr(runs, "page", lambda *given: "")


@pytest.fixture(scope="session")
def pool() -> Iterator[Workers]:
    """Two worker processes that serve every test here: starting them takes longer than a tiny run."""
    workers = Workers([sys.executable, "-m", "genfed.app.worker", "1", str(os.getpid())], 2)
    yield workers
    workers.close()

"""What the contract suites share."""

import pytest

from genfed.experiment import run as runs


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is tested elsewhere, and takes longer than a tiny run."""
    monkeypatch.setattr(runs, "build_page", lambda *given: "")

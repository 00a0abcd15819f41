"""Asking for an extra."""

from pathlib import Path

import pytest

from genfed.core.errors import GenfedError, require


def test_an_extra_that_is_missing_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("json", extra="x", what="this")
    with pytest.raises(GenfedError, match=r"^this needs the extra \"x\": pip install 'genfed\[x\]'$"):
        require("genfed_has_no_such_module", extra="x", what="this")
    (tmp_path / "broken_extra.py").write_text("import genfed_has_no_such_module")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(GenfedError, match="broken_extra is installed and cannot be imported: No module named"):
        require("broken_extra", extra="x", what="this")

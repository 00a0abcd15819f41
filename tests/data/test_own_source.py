"""The data source that docs/own.md gives as an example, as it stands there."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from genfed.core.errors import GenfedError
from genfed.data.dataset import Source

PAGE = Path(__file__).parents[2] / "docs" / "own.md"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    (code,) = re.findall(r"```python\n([^`]*class Clusters\(SplitSource\)[^`]*)```", PAGE.read_text("utf-8"))
    (tmp_path / "my_clusters.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    made: Source = importlib.import_module("my_clusters").Clusters(group="site")
    return made


def test_it_loads_and_reads_new_rows(source: Source, tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match="2 groups are too few"):
        source.load()
    data = type(source)().load()
    assert (data.task.kind, data.task.classes) == ("table", ("low", "high"))
    np.savetxt(tmp_path / "new.csv", data.test.x.numpy(), delimiter=",", fmt="%.9g")
    (found,) = source.read(str(tmp_path / "new.csv"), data.task, data.encoder)
    assert torch.equal(found.x, data.test.x)
    assert found.names[:2] == ("0", "1")
    (tmp_path / "wide.csv").write_text("1,2,3,4,5,6\n")
    with pytest.raises(GenfedError, match=r"wide\.csv: 6 features; the model takes 5 features"):
        next(source.read(str(tmp_path / "wide.csv"), data.task, None))

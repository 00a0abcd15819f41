"""Files of another party whose numbers are not finite, or cannot be what they stand for."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from genfed.artifacts.export import read_model_card
from genfed.core.errors import GenfedError
from genfed.data.encoder import read_encoder, read_schema
from genfed.methods.fedgen import FedGen
from genfed.report.results import from_json, to_json
from tests.report.fake import fake_report

PIXELS = {"kind": "pixels", "numbers": [0.0, 4095.0], "bytes": [0.0, 255.0], "ground": "white"}
TABLE = {
    "kind": "table",
    "numbers": {"age": {"missing": 41.5, "shift": 40.5, "scale": 12.5}},
    "categories": {},
}
MEASURES = {"balanced_accuracy": 0.5, "f1": 0.5, "auroc": 0.5, "ece": 0.5}
TEXTS = dict.fromkeys(("network", "input", "output", "scored_on", "genfed", "run", "method", "kind"), "a")
CARD: dict[str, Any] = TEXTS | {
    "architecture": None,
    "task": {"kind": "image", "shape": [1, 8, 8], "classes": ["a", "b"]},
    "accuracy": 0.5,
    "precision": "float32",
    "seed": 0,
    "client": 0,
    "rounds": 1,
    "data": {"kind": "digits"},
}


def spoiled(value: Any, wrong: float) -> Iterator[Any]:
    """Yields a value of JSON with each of its numbers with a point replaced in turn."""
    if isinstance(value, float):
        yield wrong
    elif isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            for part in spoiled(value[key], wrong):
                changed = value.copy()
                changed[key] = part
                yield changed


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("about", "read"),
    [
        (CARD | {"encoder": PIXELS, "measures": MEASURES}, lambda file: read_model_card(file.parent)),
        (CARD | {"encoder": TABLE}, lambda file: read_model_card(file.parent)),
        (PIXELS, read_encoder),
        (TABLE, read_encoder),
        (TABLE, lambda file: read_schema(str(file))),
    ],
    ids=["card of images", "card of a table", "scale", "table", "schema"],
)
def test_numbers_of_others_are_finite(
    about: dict[str, Any], read: Callable[[Path], Any], wrong: float, tmp_path: Path
) -> None:
    file = tmp_path / "model.json"
    file.write_text(json.dumps(about))
    read(file)
    changed = list(spoiled(about, wrong))
    assert len(changed) >= 3
    for each in changed:
        file.write_text(json.dumps(each))
        with pytest.raises(GenfedError):
            read(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"accuracy": 1.5}, "accuracy: Input should be less than or equal to 1"),
        ({"measures": MEASURES | {"ece": -0.5}}, "measures.ece: Input should be greater than or equal to 0"),
        ({"measures": MEASURES | {"auroc": 1.5}}, "measures.auroc: Input should be less than or equal to 1"),
        ({"encoder": PIXELS | {"numbers": [255.0, 255.0]}}, "black is 255 and white 255; black is the smaller number"),
        ({"encoder": PIXELS | {"bytes": [255.0, 0.0]}}, "black is 255 and white 0; black is the smaller number"),
        ({"encoder": PIXELS | {"numbers": [-1.7e308, 1.7e308]}}, "black is the smaller number"),
        ({"encoder": TABLE | {"numbers": {"a": {"missing": 0.0, "shift": 0.0, "scale": 0.0}}}}, "greater than 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(CARD | {"encoder": PIXELS} | change))
    with pytest.raises(GenfedError, match=says):
        read_model_card(tmp_path)


def test_a_report_with_numbers_that_are_not_finite_is_refused() -> None:
    about = json.loads(to_json(fake_report(clients=2, seeds=1)))
    about["trials"][0]["accuracy"] = math.nan
    with pytest.raises(GenfedError, match=r"trials\.0\.accuracy: Input should be a finite number"):
        from_json(json.dumps(about))


def test_a_setting_is_finite() -> None:
    """A model.json holds the settings of its data source, and a config those of all else."""
    with pytest.raises(ValidationError, match="finite number"):
        FedGen(generated_weight=math.inf)

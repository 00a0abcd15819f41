"""What docs/renamed.md says about new names holds."""

import re
from pathlib import Path

import genfed
from genfed.config.renamed import KINDS, SETTINGS

TEXT = (Path(__file__).parents[2] / "docs" / "renamed.md").read_text("utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without marks."""
    table = TEXT.split(f"{heading}\n", 1)[1].split("|---|", 1)[1].split("\n\n", 1)[0]
    lines = [re.sub(r"[`\[\]]", "", line).strip("|") for line in table.splitlines()[1:]]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def test_every_renamed_setting_is_listed() -> None:
    renamed = [pair for names in SETTINGS.values() for pair in names.items()] + list(KINDS.items())
    assert [(old, new) for _, old, new in rows("## Settings")] == renamed


def test_new_names_can_be_imported() -> None:
    for old, new in rows("Names that are imported from `genfed`:"):
        assert new in genfed.__all__
        assert old not in genfed.__all__

"""TOML files as editors write them."""

from pathlib import Path

import pytest

from genfed.config.reader import read_table
from genfed.config.toml import read_toml
from genfed.core.errors import GenfedError
from genfed.deployment.site_settings import read_site

TEXT = 'name = "süd"\nmethods = ["gefl"]\n'


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(TEXT, "utf-8-sig")
    assert read_table(file) == {"name": "süd", "methods": ["gefl"]}


def test_a_site_reads_its_file_in_the_same_way(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text('name = "north"\narchitecture = "linear"\n[data]\nkind = "digits"\n', "utf-8-sig")
    assert read_site(file).config.name == "north"
    file.write_text("name = 1\n", "utf-16")
    with pytest.raises(GenfedError, match="UTF-16 text; save it as UTF-8"):
        read_site(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (TEXT.encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        (TEXT.encode("utf-16-le"), "UTF-16 text; save it as UTF-8"),
        ('name = "x"'.encode("utf-16-be"), "UTF-16 text; save it as UTF-8"),
        (TEXT.encode("latin-1"), "not UTF-8 text"),
        (b"x = " + b"[" * 100_000, "nested too deeply"),
        (b"x = " + b"9" * 5000, "not TOML"),
        (b"x = 1" + b" " * 2**24, "above 16 MiB"),
        (b"x == 1", "not TOML"),
    ],
)
def test_what_is_no_toml_in_utf_8_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(content)
    with pytest.raises(GenfedError, match=says) as raised:
        read_toml(file, "a TOML file")
    assert len(str(raised.value).splitlines()) == 1

"""Sites that know one another's keys take part in sums with one another alone."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from genfed.core.errors import GenfedError
from genfed.deployment.certificates import make_keys
from genfed.deployment.peer_keys import load_signer
from genfed.deployment.site_settings import read_site
from genfed.secure_aggregation.crypto import is_signed

NAMES = ("north", "south", "west")


def site(folder: Path, name: str, **changes: Any) -> Path:
    link = {"key": name} | changes.pop("link", {})
    about: dict[str, Any] = {
        "name": name,
        "folder": f"{name}-site",
        "architecture": "linear",
        "data": {"kind": "npz", "path": "x.npz"},
        "minimum_group": 3,
    }
    (folder / f"{name}.toml").write_text(tomli_w.dumps(about | {"peer_keys": "peers", "link": link} | changes))
    return folder / f"{name}.toml"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path, NAMES)
    (tmp_path / "peers").mkdir()
    for name in NAMES:
        (tmp_path / f"{name}.pub").rename(tmp_path / "peers" / f"{name}.pub")
    return tmp_path


def test_a_site_signs_with_its_own_key_and_trusts_those_of_its_folder(keys: Path) -> None:
    signers = {name: load_signer(read_site(site(keys, name))) for name in NAMES}
    public = set[str]()
    for signer in signers.values():
        assert signer is not None
        assert is_signed(signer.public, signer.sign(b"text"), b"text")
        assert not is_signed(signer.public, signer.sign(b"text"), b"test")
        public.add(signer.public)
    assert len(public) == 3
    assert all(signer is not None and signer.trusted == frozenset(public) for signer in signers.values())
    alone = load_signer(read_site(site(keys, "north", peer_keys="")))
    assert alone is not None
    assert alone.trusted is None
    assert load_signer(read_site(site(keys, "north", peer_keys="", link={"key": ""}))) is None


def test_files_that_are_no_keys_are_refused(keys: Path) -> None:
    for wrong in (
        "",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4lZ3V6y4d3oJx1v0sVnq0Wm2Zq0Q8w7c2e9m1p3r5t",
    ):
        (keys / "peers" / "east.pub").write_text(wrong)
        with pytest.raises(GenfedError, match=r"^peer_keys = 'peers': east.pub: not a "):
            load_signer(read_site(site(keys, "north")))
    with pytest.raises(GenfedError, match=r"^peer_keys = 'none': there are no keys \(NAME.pub\) of other sites"):
        load_signer(read_site(site(keys, "north", peer_keys="none")))
    with pytest.raises(GenfedError, match=r"^link.key = 'ca.crt': not a private key"):
        load_signer(read_site(site(keys, "north", link={"key": "ca.crt"}, peer_keys="")))
    with pytest.raises(GenfedError, match=r"^link.key = 'gone': link.key: gone: No such file"):
        load_signer(read_site(site(keys, "north", link={"key": "gone"}, peer_keys="")))


@pytest.mark.parametrize("changes", [{"link": {"key": ""}}, {"minimum_group": None}])
def test_known_keys_need_a_key_and_masks(keys: Path, changes: dict[str, Any]) -> None:
    file = site(keys, "north", **{k: v for k, v in changes.items() if v is not None})
    if "minimum_group" in changes:
        file.write_text(file.read_text().replace("minimum_group = 3\n", ""))
    with pytest.raises(GenfedError, match=r"peer_keys: set minimum_group and link\.key too"):
        read_site(file)

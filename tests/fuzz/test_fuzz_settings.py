"""Configs and sites' files of any content: settings, or a GenfedError of one line."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import genfed
from genfed.config.reader import build_settings, read_config, read_privacy, read_table, to_toml
from genfed.core.errors import GenfedError
from genfed.deployment.site_settings import SiteSettings, read_site
from genfed.privacy.settings import DPSGD, DPFedAvg
from genfed.secure_aggregation.settings import SecureAggregation
from tests.fuzz.hostile import JSON, TEXT, bounded, changed, few, refused_in_short

CONFIGS = sorted((Path(genfed.__file__).parents[1] / "configs").rglob("*.toml"))
TABLES = [(file, tomllib.loads(file.read_text("utf-8"))) for file in CONFIGS if "foundation" not in file.read_text()]
SITE = {
    "name": "a",
    "architecture": "linear",
    "data": {"kind": "digits", "size": 8},
    "classes": ["0", "1"],
    "privacy": {"epsilon": 3.0, "delta": 1e-5},
    "link": {"address": "127.0.0.1:9092", "certificate": "ca.crt"},
}
unhurried = settings(few, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@given(st.sampled_from(TABLES).flatmap(lambda known: changed({"name": "run"} | known[1], most=3)))
@unhurried
def test_a_changed_config(table: Any) -> None:
    with bounded():
        try:
            config = read_config(table if isinstance(table, dict) else {})
        except GenfedError as error:
            refused_in_short(error)
            return
    assert read_config(tomllib.loads(to_toml(config))) == config


@given(st.dictionaries(TEXT, JSON, max_size=5))
@unhurried
def test_any_table_for_a_config(table: dict[str, Any]) -> None:
    with bounded():
        try:
            read_config(table)
        except GenfedError as error:
            refused_in_short(error)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b"a = " + b"[" * 5_000)
@example(b"a = " + b"{x = " * 5_000)
@example(b"a" + b".b" * 500 + b" = 1")
@example(b"a = " + b"9" * 10_000)
@example(b"\xef\xbb\xbfname = 'run'")
@unhurried
def test_any_text_for_a_config_or_a_site(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "file.toml"
    file.write_bytes(text)
    for read in (read_table, read_config, read_site):
        with bounded():
            try:
                read(file)
            except GenfedError as error:
                refused_in_short(error)


@given(st.lists(TEXT | st.builds("{}={}".format, TEXT, TEXT), max_size=3))
@example(["federation.clients=" + "[" * 5_000])
@example(["a" + ".b" * 500 + "=1"])
@unhurried
def test_any_override(overrides: list[str]) -> None:
    with bounded():
        try:
            read_config({"name": "run", "methods": ["fedavg"], "data": {"kind": "digits"}}, overrides)
        except GenfedError as error:
            refused_in_short(error)


@given(changed(SITE, most=3) | JSON)
@unhurried
def test_any_settings_of_a_site(tmp_path: Path, table: Any) -> None:
    with bounded():
        try:
            build_settings(SiteSettings, table if isinstance(table, dict) else {}, "")
        except GenfedError as error:
            refused_in_short(error)
    try:
        text = tomli_w.dumps(table)
    except (TypeError, ValueError, AttributeError):  # not everything can be TOML
        return
    (tmp_path / "SITE.toml").write_text(text, "utf-8", errors="replace")
    with bounded():
        try:
            read_site(tmp_path / "SITE.toml")
        except GenfedError as error:
            refused_in_short(error)


PRIVACY = {"kind": "dp_sgd", "noise_multiplier": 1.0, "delta": 1e-5, "max_grad_norm": 1.0}
CLIENTS = {"kind": "dp_fedavg", "epsilon": 3.0, "delta": 1e-3, "clip_norm": 1.0, "adaptive": {"quantile": 0.5}}


@given(changed(PRIVACY) | changed(CLIENTS) | st.dictionaries(TEXT, JSON, max_size=3))
@unhurried
def test_any_protection_that_a_server_asks_for(table: dict[str, Any]) -> None:
    """What a message names, and a site acts on."""
    for read in (
        lambda: read_privacy(table, DPSGD),
        lambda: read_privacy(table, DPFedAvg),
        lambda: build_settings(SecureAggregation, table, "secure_aggregation."),
    ):
        with bounded():
            try:
                read()
            except GenfedError as error:
                refused_in_short(error)


def test_the_valid_ones_pass() -> None:
    assert len(TABLES) > 20
    build_settings(SiteSettings, SITE, "")
    read_privacy(PRIVACY, DPSGD)
    read_privacy(CLIENTS, DPFedAvg)
    with pytest.raises(GenfedError):
        read_config({})

"""Sites with unlike tables agree on one schema before training."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import TypeAdapter

from genfed import GenfedError
from genfed.artifacts import export
from genfed.cli import main as cli
from genfed.data.encoder import dump_schema, read_schema
from genfed.data.features import TableSummary
from genfed.data.schema_agreement import agree
from genfed.data.table import Table
from tests.conftest import tiny

pytest.importorskip("genfed.engines.flower", exc_type=GenfedError)  # type: ignore[arg-type]

from genfed.deployment import site_schema
from genfed.deployment.site_data import describe_holdings
from genfed.deployment.site_settings import read_site
from tests.deployment.test_sites import Grid, _somebody, serve, state_of  # noqa: F401

pytestmark = pytest.mark.flower

TOWNS = {"a": ("oslo", "bergen"), "b": ("alta", "bergen"), "c": ("oslo", "bergen")}


def rows(towns: Sequence[str], shift: int = 0) -> list[str]:
    return [f"{20 + shift + i * 7 % 60},{towns[i % 2]},{'ill' if i % 2 else 'well'}" for i in range(80)]


def write_sites(
    folder: Path, tables: Mapping[str, list[str]] | None = None, header: str = "age,town,label", **about: Any
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    tables = tables or {name: rows(towns, 10 * i) for i, (name, towns) in enumerate(TOWNS.items())}
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join([header, *lines]) + "\n")
        data = {"kind": "table", "path": f"{name}.csv", "label": "label", "validation": 0.0}
        said = {"name": name, "architecture": "linear", "data": data, "link": {"insecure": True}} | about
        (folder / f"{name}.toml").write_text(tomli_w.dumps(said))
        files.append(folder / f"{name}.toml")
    return files


def config(*methods: str, clients: int = 3, **changes: Any) -> dict[str, Any]:
    table = tiny(*(methods or ("fedavg",)), federation={"clients": clients, "quorum": 1.0}, **changes)
    for name in ("architectures", "max_examples"):
        table["federation"].pop(name, None)
    return table | {"data": {"kind": "sites"}}


def test_sites_agree_on_the_schema_of_all_rows(tmp_path: Path) -> None:
    files = write_sites(tmp_path / "sites")
    outcome = serve(config(), Grid(files), tmp_path / "run")
    assert not outcome.error
    found = read_schema(str(tmp_path / "run" / "encoder.json"))
    tables = [Table(path=str(file.with_suffix(".csv")), label="label", validation=0.0) for file in files]
    assert found == agree({str(i): table.summarize(5) for i, table in enumerate(tables)}, least_sites=2).schema
    assert found.categories == {"town": ("(rare)", "bergen", "oslo")}, "alta is at one site only"
    assert {site.shape for site in outcome.sites} == {(4,)}
    holdings = [describe_holdings(read_site(file)) for file in files]
    assert len({holding.encoder for holding in holdings}) == 1
    ages = [float(holding.train.x[:, 0].mean()) for holding in holdings]
    assert ages[0] < ages[1] < ages[2], "one scale: the sites' own means are not subtracted"
    lines = [json.loads(line) for line in (tmp_path / "sites" / "a" / "audit.jsonl").read_text().splitlines()]
    assert [line["says"] for line in lines if line["phase"] == "summary"] == [["summary"]]


def test_new_rows_are_read_as_the_sites_read_theirs(tmp_path: Path) -> None:
    files = write_sites(tmp_path / "sites")
    assert not serve(config(), Grid(files), tmp_path / "run").error
    export.export(tmp_path / "run", tmp_path / "model")
    for run, out in ((tmp_path / "run", "p.csv"), (tmp_path / "model", "q.csv")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["predict", str(run), str(files[0].with_suffix(".csv")), "--out", str(tmp_path / out)])
        assert ended.value.code == 0
    assert (tmp_path / "p.csv").read_text() == (tmp_path / "q.csv").read_text()


def test_generators_of_rows_work_at_sites(tmp_path: Path) -> None:
    table = config("gefl", method={"gefl": {"generator": {"kind": "tan"}, "rounds": 1}})
    assert not serve(table, Grid(write_sites(tmp_path / "sites")), tmp_path / "run").error


def test_a_run_goes_on_with_its_schema_after_another_run(tmp_path: Path) -> None:
    files = write_sites(tmp_path / "sites")
    whole = serve(config(), Grid(files), tmp_path / "whole")
    assert not whole.error
    assert not serve(config(clients=2), Grid(files[:2]), tmp_path / "other").error
    assert describe_holdings(read_site(files[0])).encoder != whole.sites[0].encoder
    assert not serve(config(), Grid(files), tmp_path / "whole", on_existing="resume").error
    assert describe_holdings(read_site(files[0])).encoder == whole.sites[0].encoder
    assert not serve(config(), Grid(files), tmp_path / "again").error
    assert state_of(tmp_path / "whole", "fedavg") == state_of(tmp_path / "again", "fedavg")


def test_columns_that_clash_are_refused_by_name(tmp_path: Path) -> None:
    tables = {name: rows(towns) for name, towns in TOWNS.items()}
    tables["b"] = [f"old{i % 3},oslo,{'ill' if i % 2 else 'well'}" for i in range(80)]
    error = serve(config(), Grid(write_sites(tmp_path / "sites", tables)), tmp_path / "run").error
    assert "column 'age' is of numbers at a, c and of categories at b (such as 'old0')" in error
    assert not (tmp_path / "run").exists()


def test_a_site_with_a_schema_of_its_own_is_named(tmp_path: Path) -> None:
    files = write_sites(tmp_path / "sites")
    assert not serve(config(), Grid(files), tmp_path / "run").error
    (tmp_path / "sites" / "encoder.json").write_bytes((tmp_path / "run" / "encoder.json").read_bytes())
    files[1].write_text(files[1].read_text().replace('label = "label"', 'label = "label"\nencoder = "encoder.json"'))
    error = serve(config(), Grid(files), tmp_path / "next").error
    assert error.startswith("site b has a schema of its own")
    assert "name the same encoder.json" in error


def test_few_rows_are_not_named(tmp_path: Path) -> None:
    lines = [*rows(("oslo", "bergen")), *["150,moss,ill"] * 4]
    files = write_sites(tmp_path / "sites", {"a": lines, "b": rows(("oslo", "bergen"))})
    found = json.loads(site_schema.summarize_site(read_site(files[0])))
    assert found["categories"]["town"]["rare"] >= 3
    assert "moss" not in json.dumps(found)
    assert found["numbers"]["age"]["high"] < 150
    summary = TypeAdapter(TableSummary).validate_python(found)
    assert all(count >= 5 for count in summary.numbers["age"].counts)


def offer(files: Sequence[Path]) -> Any:
    return agree(
        {
            str(i): site_schema.read_summary(site_schema.summarize_site(read_site(file)), "x")
            for i, file in enumerate(files)
        }
    ).schema


def test_a_column_that_a_site_did_not_offer_stays_there(tmp_path: Path) -> None:
    """An id is in no summary; a server that names some ids as categories would see whose rows are there."""
    lines = [f"{line},p{i}" for i, line in enumerate(rows(("oslo", "bergen")))]
    (file,) = write_sites(tmp_path / "sites", {"a": lines}, "age,town,label,patient")
    schema, site = offer([file]), read_site(file)
    spied = dataclasses.replace(schema, categories=schema.categories | {"patient": ("(missing)", "p1", "p2")})
    site_schema.take_schema(site, dump_schema(spied))
    x = describe_holdings(site).train.x
    assert x[:, -3:].tolist() == [[1, 0, 0]] * len(x)
    swapped = dataclasses.replace(schema, numbers={}, categories={"age": ("20", "27")})
    with pytest.raises(GenfedError, match="has column 'age' as one of categories, and here it is of numbers"):
        site_schema.take_schema(site, dump_schema(swapped))
    for wrong in (None, 3, "{}", "x" * (site_schema.LONGEST_SCHEMA + 1)):
        with pytest.raises(GenfedError, match=r"schema of the run|holds no schema"):
            site_schema.take_schema(site, wrong)
    assert site_schema.agreed_schema(site) == spied


def test_each_site_reads_its_own_numbers(tmp_path: Path) -> None:
    """Pounds at one site and kilograms at the other, by the settings of each; and a column that one does not use."""
    lines = {
        name: [f"{70 * by + i:.2f},{i % 5},{'ill' if i % 2 else 'well'}" for i in range(60)]
        for name, by in (("a", 1.0), ("b", 2.2046))
    }
    lines["b"] = [f"{(70 + i) * 2.2046:.4f},{i % 5},{'ill' if i % 2 else 'well'}" for i in range(60)]
    files = write_sites(tmp_path / "sites", lines, "weight,age,label")
    text = (
        files[1]
        .read_text()
        .replace("validation = 0.0", 'validation = 0.0\nunits = { weight = { "" = 0.4536 } }\ndrop = ["age"]')
    )
    files[1].write_text(text)
    assert not serve(config(clients=2), Grid(files), tmp_path / "run").error
    one, two = (describe_holdings(read_site(file)).train.x for file in files)
    assert one.shape == two.shape
    assert abs(float(one[:, 0].mean() - two[:, 0].mean())) < 0.1
    assert two[:, 2].eq(1).all(), "age is missing where it is dropped"


@pytest.mark.parametrize(
    "demand", [{"privacy": {"epsilon": 1.0, "delta": 1e-5}}, {"minimum_group": 3}, {"minimum_class_count": 5}], ids=str
)
def test_a_site_with_a_demand_gives_no_summary(demand: dict[str, Any], tmp_path: Path) -> None:
    (file,) = write_sites(tmp_path / "sites", {"a": rows(("oslo", "bergen"))}, **demand)
    assert not site_schema.is_open(read_site(file))
    with pytest.raises(GenfedError, match="site a takes part in no agreement"):
        site_schema.summarize_site(read_site(file))
    with pytest.raises(GenfedError, match="site a takes part in no agreement"):
        site_schema.take_schema(read_site(file), "{}")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("numbers", "age", "counts", 0), -5),
        (("numbers", "age", "counts", 0), 10**6),
        (("numbers", "age", "values", 0), 1e9),
        (("numbers", "age", "spread"), -1.0),
        (("numbers", "age", "low"), 1e9),
        (("numbers", "age", "values"), [1.0]),
        (("categories", "town", "counts", "oslo"), -1),
        (("categories", "town", "rare"), 7),
        (("rows",), 12),
        (("notations",), {}),
        (("numbers", "age", "mean"), "x"),
    ],
)
def test_a_summary_of_no_rows_is_refused(path: tuple[Any, ...], value: object, tmp_path: Path) -> None:
    (file,) = write_sites(tmp_path / "sites", {"a": rows(("oslo", "bergen"))})
    found = json.loads(site_schema.summarize_site(read_site(file)))
    site_schema.read_summary(json.dumps(found), "a")
    at = found
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(GenfedError, match="site a: its summary of "):
        site_schema.read_summary(json.dumps(found), "a")
    with pytest.raises(GenfedError, match="site a: its summary of its columns is none"):
        site_schema.read_summary(None, "a")

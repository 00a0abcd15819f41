"""Audits of runs, at their end or later: the file, the page, and what is refused."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genfed.artifacts import audit as audits
from genfed.audits.audit import Case
from genfed.audits.membership_classifier import MembershipClassifier
from genfed.cli import main as cli
from genfed.config.reader import decisive_settings, read_config
from genfed.core.aggregate import ClientInfo
from genfed.core.errors import GenfedError
from genfed.core.schedule import Schedule
from genfed.experiment.auditing import describe_exchanges
from genfed.methods.centralised import Centralised
from genfed.methods.fedavg import FedAvg
from genfed.report.metrics_log import read_metrics
from genfed.report.privacy_section import read_audits, write_audits
from tests.conftest import GENERATIVE, TINY_GENERATORS, left_by, start, tiny, with_page

SMALL: dict[str, Any] = {"membership_samples": {"samples": 40, "components": 4, "members": 60}}
FOUR = tuple(ClientInfo(client, "linear", 20) for client in range(4))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audited") / "run"
    with with_page():
        start(tiny("gefl", "fedavg", audits=["membership_samples"], audit=SMALL), out)
    return out


def test_a_run_is_audited_at_its_end(run: Path) -> None:
    found = read_audits(run)
    assert found
    one, other = found.results
    assert (one.method, one.audit, one.step, len(one.readings)) == ("gefl", "membership_samples", 4, 2)
    assert other.not_possible == "fedavg has no generator of examples, and its server stores no synthetic set"
    assert [(s.phase, s.up) for s in found.shared if s.method == "fedavg"] == [
        ("train", "classifier (averaged within an architecture)")
    ]
    text = re.sub(r"\s+", " ", (run / "report.html").read_text())
    for words in (
        "Privacy",
        "What is not covered",
        "planted leak",
        "gefl. generator, joint: no noise is added (ε = ∞)",
        other.not_possible,
    ):
        assert words in text
    assert not (run / "shadows").exists()


@pytest.mark.usefixtures("page")
def test_every_report_says_what_was_shared(tmp_path: Path) -> None:
    start(tiny("gefl", "local"), tmp_path / "plain")
    text = re.sub(r"\s+", " ", (tmp_path / "plain" / "report.html").read_text())
    for words in (
        "What was sent",
        "This run was not audited",
        "gefl. generator, joint: no noise is added (ε = ∞), and the server can read every upload.",
        "local. No client sends anything.",
    ):
        assert words in text
    assert not (tmp_path / "plain" / "audits.json").exists()
    audits.audit_run(tmp_path / "plain", ["membership_samples"], ["audit.membership_samples.samples=40"], "gefl")
    text = re.sub(r"\s+", " ", (tmp_path / "plain" / "report.html").read_text())
    assert "local. No client sends anything." in text  # of a method that nobody attacked too
    assert re.search(
        r"leak: \d, no leak found: \d, underpowered: \d, false positive: \d. Audits that could not be run: 0.", text
    )


@pytest.mark.usefixtures("page")
def test_what_never_ran_was_not_shared(tmp_path: Path) -> None:
    """A phase of no rounds sends nothing."""
    config = tiny("fedlmg")
    config["method"]["fedlmg"] |= {"finetune_rounds": 0}
    start(config, tmp_path / "run")
    text = (tmp_path / "run" / "report.html").read_text()
    shared = text.split("What was sent")[1].split("<h3>Protection")[0]
    assert "synthesise" in shared
    assert "tune" not in shared


def test_a_network_that_is_not_its_architectures_is_not_attacked(tmp_path: Path) -> None:
    small = {"class_representatives": {"clients": 1, "steps": 2, "planted_epochs": 1}}
    few = {"clients": 4, "max_examples": 80, "architectures": ["linear"]}
    start(tiny("fedgen", audits=list(small), audit=small, federation=few), tmp_path / "run")
    found = read_audits(tmp_path / "run")
    assert found
    assert found.results[0].not_possible == "what clients of fedgen upload is no network of their architecture"


def test_an_audit_later_gives_the_same_and_changes_nothing_else(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, page = left_by(run), (run / "report.html").read_text()
    then = read_audits(run)
    (run / "audits.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["audit", str(run)])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "Privacy: membership_samples" in said
    assert "not run" in said
    now = read_audits(run)
    assert then
    assert now
    assert [r.readings for r in now.results] == [r.readings for r in then.results]
    assert left_by(run) == before
    assert (run / "report.html").read_text() == page


def test_what_was_done_is_not_done_again(run: Path) -> None:
    said: list[str] = []
    audits.audit_run(run, notify=said.append)
    assert said == []
    audits.audit_run(run, ["membership_samples"], ["audit.membership_samples.samples=30"], "gefl", notify=said.append)
    assert said == ["membership_samples on gefl, seed 0"]
    found = read_audits(run)
    assert found
    assert {r.sizes["samples"] for r in found.results if r.method == "gefl"} == {30}
    # A trial that was deleted and done again can have other weights after as many rounds.
    other = [replace(r, state="0" * 32) if r.audit == "membership_samples" else r for r in found.results]
    write_audits(replace(found, results=tuple(other)), run)
    audits.audit_run(run, ["membership_samples"], ["audit.membership_samples.samples=30"], "gefl", notify=said.append)
    assert said == ["membership_samples on gefl, seed 0"] * 2


def test_shadows_of_an_interrupted_audit_with_other_settings_are_not_used(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def audit(members: int) -> None:
        changes = ["shadows=4", "planted_epochs=1", f"members={members}"]
        audits.audit_run(
            run, ["membership_classifier"], [f"audit.membership_classifier.{c}" for c in changes], "fedavg"
        )

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("genfed.audits.membership_classifier.membership_numbers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            audit(24)
    assert len(list((run / "shadows").rglob("state.safetensors"))) == 4
    audit(22)
    assert not (run / "shadows").exists()


def test_clients_that_were_not_asked_are_not_attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the run, nor in its shadows, which ask the clients that the run asked."""
    half = {"client_fraction": 0.5, "max_examples": 400}
    start(tiny("fedcgs", "fedavg", federation=half, defaults={"rounds": 1}), tmp_path / "run")
    asked: dict[str, set[int]] = {"fedcgs": set(), "fedavg": set()}
    for row in read_metrics(tmp_path / "run" / "metrics.jsonl"):
        if row["client"] is not None and row["phase"] != "evaluate":
            asked[row["method"]].add(row["client"])
    seen: list[Case] = []

    def hold(audit: Any, case: Case) -> Any:
        seen.append(case)
        return examine(audit, case)

    examine = MembershipClassifier.examine
    monkeypatch.setattr(MembershipClassifier, "examine", hold)
    found = audits.audit_run(
        tmp_path / "run",
        ["membership_sums", "membership_classifier"],
        [f"audit.membership_classifier.{change}" for change in ("shadows=4", "planted_epochs=1", "members=40")],
    )
    said = {(each.audit, each.method): " ".join(each.notes) for each in found.results}
    assert "The run adds up 200 examples" in said["membership_sums", "fedcgs"]
    for case in seen:
        assert {each.client.id for each in case.holdings} == asked[case.label]
        assert len(case.train) == 200
    _, clients = next(Schedule(FedAvg(rounds=1), FOUR, 0.5, seed=7, selected_by=0).rounds())
    assert {info.id for info in clients} == asked["fedavg"]


def test_a_ceiling_is_said_to_have_all_data() -> None:
    first, train = describe_exchanges("centralised", Centralised())
    assert (first.phase, first.up) == ("before training", "all training examples (an upper bound, no federation)")
    assert (train.down, train.up) == ("", "")


def test_audits_are_no_part_of_the_outcome() -> None:
    assert decisive_settings(read_config(tiny("gefl"))) == decisive_settings(
        read_config(tiny("gefl", audits=["membership_samples"], audit=SMALL))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audits": ["membership_sample"]}, "no such audit: 'membership_sample'; did you mean 'membership_samples'"),
        ({"audit": {"membership_samples": {"sample": 3}}}, "audit.membership_samples.sample: no such setting"),
        ({"audit": {"membership_samples": {"samples": 3}}}, "audit.membership_samples.samples = 3"),
        ({"audit": {"mine": {"kind": 3}}}, "audit.mine.kind = 3"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GenfedError, match=re.escape(message)):
        read_config(tiny("gefl", **change))


def test_what_cannot_be_audited_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match=r"has no report\.json"):
        audits.audit_run(tmp_path)
    with pytest.raises(GenfedError, match="no method: 'gelf'"):
        audits.audit_run(run, method="gelf")
    with pytest.raises(GenfedError, match="no seed 7"):
        audits.audit_run(run, seed=7)
    with pytest.raises(GenfedError, match=r"only audit\.NAME\.setting can be set"):
        audits.audit_run(run, overrides=["rounds=3"])
    (tmp_path / "audits.json").write_text("{}")
    with pytest.raises(GenfedError, match="no record of audits"):
        read_audits(tmp_path)


def test_every_audit_can_be_made_of_a_run(run: Path) -> None:
    small = {
        "memorisation": ("samples=40", "shown=4"),
        "membership_generator": ("draws=1", "planted_steps=2", "planted=10", "members=20"),
        "membership_classifier": ("shadows=4", "planted_epochs=1", "members=20"),
        "inversion": ("steps=2", "examples=2"),
        "class_representatives": ("clients=1", "steps=2", "planted_epochs=1"),
        "property_inference": ("clients=2", "shadows=3"),
    }
    said: list[str] = []
    overrides = [f"audit.{name}.{setting}" for name, settings in small.items() for setting in settings]
    before = left_by(run)
    found = audits.audit_run(run, list(small), overrides, notify=said.append)
    made = {(r.audit, r.method): r for r in found.results if not r.not_possible}
    assert {name for name, _ in made} >= small.keys()
    assert [name for name, method in made if method == "fedavg"] == [
        "membership_classifier",
        "inversion",
        "class_representatives",
        "property_inference",
    ]
    assert made["membership_classifier", "gefl"].sizes["shadows"] == 4
    assert made["membership_classifier", "gefl"].readings[1].attack == "RMIA, 2 shadows without the example"  # not 4
    assert said.count("shadow 4") == 2
    assert said.count("2 images, 2 steps: this run") == 2
    assert left_by(run) == before  # and what was trained for it is gone
    page = (run / "report.html").read_text()
    assert 'alt="training example"' in page
    assert 'alt="rebuilt"' in page
    assert 'alt="representative"' in page


def test_audits_of_diffusion_can_be_made(tmp_path: Path) -> None:
    small = {
        "inversion_diffusion": {"examples": 2, "steps": 1},
        "membership_conditions": {"clients": 1, "members": 20, "draws": 1, "planted_passes": 2},
    }
    config = tiny("gefl", "feddeo", audits=list(small), audit=small)
    config["method"]["gefl"] = GENERATIVE | {"generator": TINY_GENERATORS["ddpm"]}
    start(config, tmp_path / "run")
    found = read_audits(tmp_path / "run")
    assert found
    made = {(r.audit, r.method) for r in found.results if not r.not_possible}
    assert made == {("inversion_diffusion", "gefl"), ("membership_conditions", "feddeo")}, found.results


def test_features_are_audited_as_images_are(tmp_path: Path) -> None:
    """A generator of features has no images: what it draws is compared with features of real ones."""
    small = {"membership_samples": SMALL["membership_samples"] | {"planted": 1.0}, "memorisation": {"samples": 40}}
    config = tiny("gefl_f", audits=list(small), audit=small)
    start(config, tmp_path / "run")
    found = read_audits(tmp_path / "run")
    assert found
    for done in found.results:
        assert not done.not_possible
        assert any("Samples are features" in note for note in done.notes)
        assert not done.images
        # Copies of features are told from fresh ones: the candidates did go through the extractor.
        assert done.readings[0].verdict != "underpowered", done


def test_columns_of_a_table_are_sought(tmp_path: Path) -> None:
    lines = [f"{i % 7},{'abc'[i % 3]},{'xy'[i % 2]},{'no' if i % 7 < 4 else 'yes'}" for i in range(240)]
    (tmp_path / "rows.csv").write_text("\n".join(["age,blood,side,label", *lines]))
    table = {"kind": "table", "path": str(tmp_path / "rows.csv"), "label": "label", "test": 0.4}
    small = {"attribute_inference": {"columns": ["side"], "planted_epochs": 1}}
    config = tiny("local", audits=["attribute_inference"], audit=small) | {"data": table}
    start(config, tmp_path / "run")
    found = read_audits(tmp_path / "run")
    assert found
    (result,) = found.results
    assert [reading.attack for reading in result.readings] == ["value of side"], result.not_possible


CLOSED_FORM: dict[str, dict[str, Any]] = {
    "fedcgs": {},
    "gh_ofl, quadratic": {"generator": {"kind": "gaussian", "covariance": "full"}},
    "gh_ofl, mixture": {"generator": {"kind": "gaussian_mixture", "components": 2, "em_steps": 1}},
}


@pytest.mark.parametrize("head", CLOSED_FORM)
def test_a_leak_can_be_planted_in_heads_of_which_nothing_is_trained(head: str, tmp_path: Path) -> None:
    method = head.split(",")[0]
    own = {"encoder": {"kind": "identity"}} | CLOSED_FORM[head]
    federation = {"clients": 2, "max_examples": 80, "architectures": ["linear"]}
    start(tiny(method, method={method: own}, federation=federation), tmp_path / "run")
    small = ["shadows=4", "references=2", "members=120"]
    found = audits.audit_run(
        tmp_path / "run", ["membership_classifier"], [f"audit.membership_classifier.{each}" for each in small]
    )
    (result,) = found.results
    assert result.sizes["members"] >= 60
    alone = next(reading for reading in result.readings if reading.attack == "confidence alone")
    assert alone.control["AUC"].low > 0.5, alone

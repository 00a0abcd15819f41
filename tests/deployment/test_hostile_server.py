"""A hostile server against one site: it says what it likes, and the site acts within its own bounds."""

import copy
import json
import re
import resource
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genfed.config.reader import read_config
from genfed.core.errors import GenfedError
from genfed.core.record import Packed, pack, unpack
from genfed.experiment import partitioning
from genfed.experiment.inputs import load_data
from genfed.methods.bases.federated_generator import GeneratedSupply, GeneratorStart
from genfed.methods.gefl import GeFLSent
from genfed.privacy.site_budget import read_site_ledger
from genfed.training.weights import Model

pytest.importorskip(
    "genfed.engines.flower",
    reason="Flower is not installed: pip install 'genfed[flower]'",
    exc_type=GenfedError,  # type: ignore[arg-type]  # any exception will do
)
from genfed.deployment import site as deployment_site
from genfed.deployment import site_settings
from genfed.deployment.memory_limit import limit_memory
from genfed.deployment.trial_description import TrialDescription
from genfed.engines.flower.messages import EMPTY, decode_message, encode_message
from tests.deployment.test_sites import (
    ALIKE,
    CLIENTS,
    EXAMPLES,
    HERE,
    NOISY,
    asked,
    initial,
    letter,
    sites,
    some,
)

pytestmark = pytest.mark.flower
DOCS = Path(__file__).parents[2] / "docs" / "deployment.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with a privacy budget, whose data are read once."""
    config = some("fedavg", federation=ALIKE)
    (file, *_) = sites(config, tmp_path_factory.mktemp("sites"), a={"privacy": HERE | {"epsilon": 100.0}})
    deployment_site.handle({"genfed": genfed_version(), "ask": "hello"}, EMPTY, {"site": str(file)})
    return file


def genfed_version() -> str:
    return str(letter(some("fedavg"))["genfed"])


PRIVATE = some("fedavg", federation=ALIKE, privacy=EXAMPLES | NOISY)
HONEST = letter(PRIVATE)


def changed(key: str, value: Any) -> dict[str, Any]:
    """The honest request with one other value: of the header, or with a dotted key of the trial's description."""
    head: dict[str, Any] = copy.deepcopy(HONEST)
    place, *path = key.split(".")
    if place != "trial":
        head[place] = value
        return head
    about = json.loads(head["open"])
    at = about
    for part in path[:-1]:
        at = at[part]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return head | {"open": json.dumps(about)}


def log_of(file: Path) -> list[str]:
    log = site_settings.read_site(file).folder / "site.log"
    return log.read_text("utf-8").splitlines() if log.exists() else []


def refuses(file: Path, head: dict[str, Any], says: str, body: Packed | None = None) -> None:
    """The request is refused with one line in the site's log, and charges nothing."""
    folder, before = site_settings.read_site(file).folder, len(log_of(file))
    charged = read_site_ledger(folder)
    with pytest.raises(GenfedError) as caught:
        asked(file, head, initial(PRIVATE) if body is None else body)
    lines = log_of(file)[before:]
    assert len(lines) == 1, lines
    assert " refused: " in lines[0]
    assert re.search(says, lines[0]), lines[0]
    assert len(lines[0]) < 2000
    assert "\n" not in str(caught.value)
    assert read_site_ledger(folder) == charged


HUGE = 10**400
BOUNDS: list[tuple[str, Any, str]] = [
    ("client", 1.0, "client is no whole number from 0 to below 3"),
    ("client", True, "client is no whole number"),
    ("client", -1, "client is no whole number"),
    ("client", 3, "client is no whole number"),
    ("client", HUGE, "client is no whole number"),
    ("step", {"phase": "train", "round": 0, "number": 10**9}, "all below 1000000000"),
    ("step", {"phase": "train", "round": HUGE, "number": 0}, "all below 1000000000"),
    ("step", {"phase": "train", "round": 0, "number": 0, "more": 0}, "a step is a phase"),
    ("step", {"phase": ["train"], "round": 0, "number": 0}, "a step is a phase"),
    ("step", "train", "a step is a phase"),
    ("step", None, "a step is a phase"),
    ("step", {"phase": "x" * 10**6, "round": 0, "number": 0}, "there is no phase"),
    ("ask", "x" * 10**6, "does not answer to"),
    ("open", None, "described by a text in JSON"),
    ("open", "[" * 100_000, "nested too deeply"),
    ("open", '{"run":' * 100_000, "nested too deeply"),
    ("open", " " * (2**20 + 1), "longer than 1048576 characters"),
    ("open", "[" + "1," * 200_000 + "1]", "too large"),
    ("open", "nul", "not JSON"),
    ("open", "1", "the description of a trial is wrong"),
    ("trial.run", "../../x", "run: String should match pattern"),
    ("trial.run", "..", "run: String should match pattern"),
    ("trial.run", "a\nFAKE 2026", "run: String should match pattern"),
    ("trial.run", "x" * 65, "run: String should match pattern"),
    ("trial.run", 3, "run: Input should be a valid string"),
    ("trial.label", "x" * 10_000, "label: String should match pattern"),
    ("trial.label", "a/b", "label: String should match pattern"),
    ("trial.seed", "../../x", "seed: Input should be a valid integer"),
    ("trial.seed", 2**63, "seed: Input should be less than"),
    ("trial.seed", 0.0, "seed: Input should be a valid integer"),
    ("trial.classes", ["other"], "the classes of site a are no longer those agreed on"),
    ("trial.classes", "0123456789", "classes: Input should be a valid"),
    ("trial.classes", ["a"] * 100_001, "classes: Tuple should have at most 100000 items"),
    ("trial.federation.clients", 0, "federation: Input should be greater than"),
    ("trial.federation.clients", 2 * 10**7, "federation: Input should be less than or equal to 10000"),
    ("trial.federation.clients", HUGE, "federation: "),
    ("trial.federation.client_fraction", 0, "federation: Input should be greater than 0"),
    ("trial.federation.client_fraction", float("nan"), "federation: Input should be"),
    ("trial.federation.architectures", {"os:system": 1.0}, "federation: Unexpected keyword"),
    ("trial.precision", "float8", "precision: Input should be"),
    ("trial.precision", "bfloat16", 'under .privacy. only "float32" is allowed'),
    ("trial.flops", 1, "flops: Input should be a valid boolean"),
    ("trial.more", 1, "a name: Unexpected keyword argument"),
    ("trial.privacy", ..., "privacy: Field required"),
    ("trial.privacy", None, "it takes part only under .privacy."),
    ("trial.privacy", 1, "privacy: Input should be an object"),
    ("trial.privacy.kind", "dp_fedavg", "expected 'dp_sgd'"),
    ("trial.privacy.max_grad_norm", 1.4e-45, r"privacy\.max_grad_norm = 1\.4.*greater than or equal to 0\.000001"),
    ("trial.privacy.max_grad_norm", 1e38, "privacy has a number that is not finite, or above 1e.09"),
    ("trial.privacy.max_grad_norm", float("inf"), "privacy has a number that is not finite"),
    ("trial.privacy.noise_multiplier", 0.0, "would exceed the site's privacy budget|without noise"),
    ("trial.privacy.noise_multiplier", 1e-9, r"privacy\.noise_multiplier = 1e-09: 0, or 0\.001 and more"),
    ("trial.privacy.noise_multiplier", 1e7, r"privacy\.noise_multiplier = .*less than or equal to 1000000"),
    ("trial.privacy.noise_multiplier", float("nan"), "privacy has a number that is not finite"),
    ("trial.privacy.delta", 1.0, r"privacy\.delta = 1\.0"),
    ("trial.privacy.reproducible_noise", True, "it refuses privacy.reproducible_noise"),
    ("trial.client_privacy", CLIENTS | NOISY, "DP-SGD with .secure_aggregation. or DP-FedAvg is not implemented"),
    ("trial.sum_privacy", 1, "sum_privacy: Input should be"),
    ("trial.sum_privacy", {"kind": "dp_sgd"}, "expected 'dp_sum'"),
    ("trial.sum_privacy", {"kind": "dp_sum", "delta": 1e38}, "sum_privacy has a number that is not finite, or above"),
    ("trial.sum_privacy", {"kind": "dp_sum"} | NOISY, "privacy of sums with DP-SGD or DP-FedAvg is not implemented"),
    ("trial.secure_aggregation", {}, "DP-SGD with .secure_aggregation. or DP-FedAvg is not implemented"),
    ("trial.method.kind", "os:system", "site a does not allow os:system"),
    ("trial.method.kind", "x" * 20_000, "method has a text of 20000 characters"),
    ("trial.method.kind", "fedproto", "its clients upload the mean representation"),
    ("trial.method.kind", "fedgen", "cannot be run under .privacy."),
    ("trial.method.rounds", 10**9, r"method has a whole number above 1e.07"),
    ("trial.method.rounds", 10**6, "the method has 1000000 rounds; with 3 clients at most 100000 are allowed"),
    ("trial.method.training.epochs", 10**18, r"method has a whole number above 1e.07"),
    ("trial.method.training.epochs", HUGE, r"not JSON|method has a whole number"),
    ("trial.method.training.batch_size", 0, r"batch_size = 0"),
    ("trial.method.training.learning_rate", 1e37, "method has a number that is not finite, or above 1e.09"),
    ("trial.method.training.learning_rate", float("inf"), "method has a number that is not finite"),
    ("trial.method.training.augmentation", "mixup", 'allows only "none"'),
    ("trial.method.training", [[[[[[[[[[1]]]]]]]]]], "method has more than 8 lists or tables inside one another"),
    ("trial.method.training", [0] * 20_000, "method has more than 10000 values"),
]


@pytest.mark.parametrize(("key", "value", "says"), BOUNDS, ids=[f"{i}-{key}" for i, (key, *_) in enumerate(BOUNDS)])
def test_what_exceeds_a_bound_is_refused_in_one_line(site: Path, key: str, value: Any, says: str) -> None:
    pytest.importorskip("opacus")
    head = changed(key, value)
    if key == "trial.privacy.noise_multiplier" and value == 0:
        head = {"ask": "prepare", "open": [head["open"]], "client": 0, "genfed": head["genfed"]}
    refuses(site, head, says)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (pack(Model({"w": torch.zeros(3)})), "the tensors that were sent do not fit the network"),
        (pack(Model({})), "the tensors that were sent do not fit the network"),
        (Packed({}, "[" * 100_000), "Model: the skeleton is nested too deeply"),
        (Packed({}, '{"classifier": 1}'), "expected a dict, got int"),
        (Packed({"w": torch.zeros(3)}, '{"classifier": []}'), "unexpected tensor w"),
    ],
    ids=["other", "none", "deep", "number", "unread"],
)
def test_a_record_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, body: Packed, says: str) -> None:
    config = some("fedavg", federation=ALIKE)
    (file, *_) = sites(config, tmp_path)
    refuses(file, letter(config), says, body)


def test_a_site_goes_on_to_serve(site: Path) -> None:
    """After all of these requests in one process."""
    pytest.importorskip("opacus")
    for key, value, _ in BOUNDS[:20]:
        with pytest.raises(GenfedError):
            asked(site, changed(key, value), initial(PRIVATE))
    assert asked(site, HONEST, initial(PRIVATE)).tensors


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "open is no list of 1 to 1000 trials"),
        ([HONEST["open"]] * 1001, "open is no list of 1 to 1000 trials"),
        (HONEST["open"], "open is no list of 1 to 1000 trials"),
        (["[" * 100_000], "nested too deeply"),
        ([changed("trial.federation.clients", 10**4)["open"]] * 2, r"site's privacy budget|at most 100 are allowed|"),
    ],
)
def test_runs_are_described_within_bounds_before_training(site: Path, texts: Any, says: str) -> None:
    pytest.importorskip("opacus")
    head = {"genfed": HONEST["genfed"], "ask": "prepare", "open": texts, "client": 0}
    if says.endswith("|"):
        asked(site, head, EMPTY)  # the most clients that are allowed
        many = changed("trial.federation.clients", 10**4)
        about = json.loads(many["open"])
        about["method"]["rounds"] = 101
        head |= {"open": [json.dumps(about)]}
        says = "the method has 101 rounds; with 10000 clients at most 100 are allowed"
    refuses(site, head, says, EMPTY)


@pytest.mark.parametrize("table", ["secure_aggregation", "client_privacy"])
def test_tables_without_a_demand_are_bounded_too(tmp_path: Path, table: str) -> None:
    pytest.importorskip("opacus")
    both = {"privacy": CLIENTS | NOISY, "secure_aggregation": {}}
    config = some("fedavg", federation=ALIKE, **both)
    (file, *_) = sites(config, tmp_path)
    about = json.loads(letter(config)["open"])
    wrong: dict[str, list[tuple[str, Any, str]]] = {
        "secure_aggregation": [
            ("minimum_group", 10**12, "secure_aggregation has a whole number above"),
            ("minimum_group", 4, "minimum_group = 4: there are 3 clients"),
        ],
        "client_privacy": [
            ("clip_norm", 1e-9, r"privacy\.clip_norm = 1e-09"),
            ("noise_multiplier", 1e-9, r"privacy\.noise_multiplier = 1e-09"),
            ("secret_sampling", True, "clients must know which clients' masks are in a sum"),
            ("adaptive", {"rate": 0.2}, "the server cannot count the updates that were clipped"),
        ],
    }
    for key, value, says in wrong[table]:
        other = about | {table: about[table] | {key: value}}
        step = {"phase": "train.keys", "round": 0, "number": 0}
        refuses(file, letter(config) | {"open": json.dumps(other), "step": step}, says, EMPTY)


# Networks and memory.


def generator_letter(config: dict[str, Any], method: str, phase: str, **generator: Any) -> dict[str, Any]:
    head = letter(config, method, phase)
    about = json.loads(head["open"])
    about["method"]["generator"] |= generator
    return head | {"open": json.dumps(about)}


def test_a_giant_generator_is_refused_before_it_is_made(tmp_path: Path) -> None:
    config = some("gefl", federation=ALIKE)
    (file, *_) = sites(config, tmp_path)
    for width in (10**5, 10**7):
        head = generator_letter(config, "gefl", "generator", width=width)
        head["open"] = head["open"].replace('"run": "run"', f'"run": "run{width}"')
        refuses(file, head, "parameters; at most 2.68e.08", pack(GeneratorStart({}, 0.0)))


def test_more_images_than_fit_are_refused_before_they_are_drawn(tmp_path: Path) -> None:
    config = some("gefl", federation=ALIKE)
    (file, *_) = sites(config, tmp_path)
    head = letter(config, "gefl", "joint")
    about = json.loads(head["open"])
    about["method"]["synthetic_epochs"] = 10**7
    weights: dict[str, torch.Tensor] = unpack(Model, initial(config)).classifier
    sent = pack(GeFLSent(GeneratedSupply({}, None), weights))
    refuses(file, head | {"open": json.dumps(about)}, r"synthetic_epochs = 10000000: \d+ generated examples", sent)


@pytest.mark.parametrize("allocate", [lambda: torch.zeros(2**42), lambda: bytearray(2**44)])
def test_more_memory_than_is_free_is_refused_whatever_asks_for_it(
    site: Path, monkeypatch: pytest.MonkeyPatch, allocate: Callable[[], Any]
) -> None:
    pytest.importorskip("opacus")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with monkeypatch.context() as patch:
        patch.setattr(deployment_site, "_work", lambda *about: allocate())
        refuses(site, HONEST, "it needs more memory than is free")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert asked(site, HONEST, initial(PRIVATE)).tensors
    with pytest.raises(ValueError, match="other"), limit_memory("cpu"):
        raise ValueError("other")
    with pytest.raises(RuntimeError, match="other"), limit_memory("cpu"):
        raise RuntimeError("other")
    with limit_memory("cpu", 2**50):
        mapped = resource.getrlimit(resource.RLIMIT_DATA)[0]
    assert mapped > 2**50, "files that are mapped count too, though they need no memory"
    with limit_memory("cuda:0"):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_two_requests_at_once_leave_no_limit() -> None:
    """The second one begins under the limit of the first, and ends after it."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    first, second = limit_memory("cpu"), limit_memory("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_DATA) != before
    second.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


# What DP-SGD covers is checked at the site.


def features_with_statistics(tmp_path: Path) -> tuple[Path, dict[str, Any], Packed]:
    """A site that demands privacy, and a request to train a generator whose buffers hold means of features."""
    pytest.importorskip("diffusers")
    from genfed.core.task import Task
    from genfed.generators.ddpm import DDPM
    from genfed.generators.generator import uploaded_weights
    from genfed.methods.bases.generator_building import maps_task
    from genfed.methods.gefl_f import FeatureGenerator
    from genfed.training.split_network import split_parts

    small = {"kind": "ddpm", "width": 4, "levels": 1, "steps": 4}
    config = some("gefl_f", federation={"architectures": ["mlp-small"]}, privacy=EXAMPLES | NOISY)
    config["method"] = {"gefl_f": config["method"]["gefl_f"] | {"generator": small}}
    (file, *_) = sites(config, tmp_path, a={"privacy": HERE | {"epsilon": 100.0}})
    read = read_config(config)
    task = partitioning.partition_data(read, load_data(read), 0).task
    from genfed.config.architectures import Architectures

    network = Architectures().new("mlp-small", task, torch.Generator().manual_seed(0))
    extractor, _ = split_parts(dict(network.state_dict()))
    with torch.no_grad():
        shape = tuple(network.get_submodule("extractor")(torch.zeros(1, *task.shape)).shape[1:])
    features = maps_task(Task("features", shape, task.classes))
    generator = DDPM(width=4, levels=1, steps=4).new(features, torch.Generator().manual_seed(0))
    sent = pack(FeatureGenerator(extractor, uploaded_weights(generator), 0.0))
    return file, letter(config, "gefl_f", "generator"), sent


def test_statistics_that_get_no_noise_are_refused_before_they_are_paid_for(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    file, head, sent = features_with_statistics(tmp_path)
    says = r"the generator cannot be trained under .privacy.: scale\.\w+ stores statistics of examples"
    refuses(file, head, says, sent)
    prepare = {"genfed": head["genfed"], "ask": "prepare", "open": [head["open"]], "client": 0}
    refuses(file, prepare, says, EMPTY)


def test_statistics_stay_there_though_nobody_checked_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opacus")
    file, head, sent = features_with_statistics(tmp_path)
    monkeypatch.setattr(deployment_site, "_check_networks", lambda *about: None)
    with pytest.raises(GenfedError, match=r"scale\.\w+ stores statistics of examples, which get no noise"):
        asked(file, head, sent)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("tests.toys:TellsCounts", r"upload\.\w+\['counts'\] is neither a tensor that DP-SGD released nor one"),
        ("tests.toys:TellsLoss", r"upload\.loss is a float: under DP-SGD only tensors leave a client"),
        ("tests.toys:WeighsOne", "the weight of a reply is 1, or the client's number of examples"),
    ],
)
def test_a_method_of_others_is_held_to_its_declaration(tmp_path: Path, kind: str, says: str) -> None:
    """It declares what it trains, and uploads something else too."""
    pytest.importorskip("opacus")
    config = some("mine", method={"mine": {"kind": kind}}, federation=ALIKE, privacy=EXAMPLES | NOISY)
    (file, *_) = sites(config, tmp_path, a={"privacy": HERE | {"epsilon": 100.0}, "allow": [kind]})
    with pytest.raises(GenfedError, match=says):
        asked(file, letter(config, "mine"), initial(config))
    assert not list((site_settings.read_site(file).folder).rglob("last.reply"))


@pytest.mark.parametrize(
    ("encoder", "says"),
    [
        ({"kind": "tests.privacy.test_dp_sum:Centered"}, "depend on the others of the batch"),
        ({"kind": "whitened", "components": 20}, "some of them are the run's own"),
    ],
)
def test_an_encoder_whose_sums_no_noise_covers_is_refused_at_the_site(
    encoder: dict[str, Any], says: str, tmp_path: Path
) -> None:
    pytest.importorskip("opacus")
    noise = {"kind": "dp_sum", "noise_multiplier": 2.0, "delta": 1e-5}
    config = some("fedcgs", method={"fedcgs": {"encoder": encoder}}, federation=ALIKE, privacy=noise)
    (file, *_) = sites(config, tmp_path, a={"allow": [encoder["kind"]]})
    head = letter(config, "fedcgs")
    prepare = {"genfed": head["genfed"], "ask": "prepare", "open": [head["open"]], "client": 0}
    refuses(file, prepare, says, EMPTY)


# All that a server says.


def test_the_table_names_all_that_a_server_says() -> None:
    """A new value needs a row: who decides on it, and what bounds it at the site."""
    text = DOCS.read_text("utf-8").partition("### What a site believes")[2].partition("\n### ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row.split("|")[1])}
    heads = {*HONEST, *(f"step.{name}" for name in HONEST["step"])} - {"open", "step"}
    about = {field.name for field in fields(TrialDescription)} - {"federation"}
    about |= {"federation.clients", "federation.client_fraction"}
    assert not (heads | about) - named
    assert all(all(cell.strip() for cell in row.strip("|").split("|")) for row in rows)
    assert json.loads(HONEST["open"]).keys() == {field.name for field in fields(TrialDescription)}


def test_every_number_of_every_method_is_bounded() -> None:
    """By the type of the value alone, so that those of new methods are too."""
    from genfed.deployment.trial_description import check_values

    deep: Callable[[Any], dict[str, Any]] = lambda value: {"a": [{"b": (1,), "c": [value]}]}  # noqa: E731
    for value in (10**8, -(10**8), 1e10, -1e10, float("nan"), float("-inf"), "x" * 10_001):
        with pytest.raises(GenfedError, match="method has"):
            check_values(deep(value), "method")
    for allowed in (10**7, 1e9, 1e-300, True, None, "x" * 10_000):
        check_values(deep(allowed), "method")
    with pytest.raises(GenfedError, match="a text of"):
        check_values({"x" * 10_001: 1}, "method")


def test_a_message_that_is_too_deep_is_no_message() -> None:
    content = encode_message({"ask": "hello"}, EMPTY)
    for head in ("[" * 100_000, '{"a":' * 100_000, " " * (2**24 + 1), "[" + "1," * 2**18 + "1]"):
        content.config_records["message"]["head"] = head
        with pytest.raises(GenfedError, match=r"it is no message of genfed \(RecordError: (nested|longer|too large)"):
            decode_message(content)


VALUES: Any = st.sampled_from(
    [None, 0, 1, -1, True, 1.5, float("nan"), 10**6, 10**20, 1e-300, 1e300, "", "x", "gefl", "../x", [], [[1]], {}]
) | st.sampled_from([{"kind": "x"}, {"a": 1}, ["a"] * 50, "mlp-bn", "2" * 400])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all parts of a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in parts for place in places(part, (*path, key)))]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(1, 3))
def test_a_changed_request_is_answered_or_refused_in_one_line(site: Path, data: st.DataObject, changes: int) -> None:
    """Never by an error that nobody thought of."""
    pytest.importorskip("opacus")
    about: Any = json.loads(HONEST["open"])
    for _ in range(changes):
        path = data.draw(st.sampled_from(places(about)))
        value, at = copy.deepcopy(data.draw(VALUES)), about  # a later change may be within it
        if not path:
            about = value
            break
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
    head = {"genfed": HONEST["genfed"], "ask": "prepare", "open": [json.dumps(about)], "client": 0}
    before = len(log_of(site))
    try:
        asked(site, head, EMPTY)
    except GenfedError:
        (line,) = log_of(site)[before:]
        assert " refused: " in line

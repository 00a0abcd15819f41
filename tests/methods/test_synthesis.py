"""Methods whose server has a diffusion model: what travels, what they come to where little is left of them, and what is
refused before training."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Empty
from genfed.core.record import load, pack
from genfed.core.rng import stream
from genfed.core.store import FolderStore
from genfed.core.task import Data, Task, Weights
from genfed.experiment.checkpoint import read_checkpoint
from genfed.foundation import loading
from genfed.foundation import settings as foundation_settings
from genfed.methods.bases.classifier_upload import build_uploaded
from genfed.methods.ensemble import Ensemble, UploadedClassifiers
from genfed.methods.ensemble import ProbabilityMean as Answers
from genfed.methods.feddeo import FedDEO
from genfed.methods.fgl import FGL
from genfed.methods.oscar import OSCAR
from genfed.training.classifier import Training, train
from genfed.training.synthetic_dataset import NO_CLIENT, SyntheticBatch
from genfed.training.weights import Model, weights_of
from tests.conftest import PLAIN_SGD, SYNTHESIS, TINY, left_by, start, tiny, tiny_foundation
from tests.foundation import toys

TASK = Task("image", (1, 8, 8), ("a", "b", "c"))
CPU = torch.device("cpu")
ONE_SHOT = ["fedlmg", "fgl", "oscar", "feddeo", "prompts_only"]


def table(**changes: Any) -> dict[str, Any]:
    """Settings of a one-shot method whose students do not learn: what is made is looked at."""
    return SYNTHESIS | {"student_rounds": 0, "finetune_rounds": 0} | changes


def sampled(**changes: Any) -> dict[str, Any]:
    return {**SYNTHESIS["foundation"], "scheduler": "ddpm", **changes}


def settings(cls: type[Any], **changes: Any) -> Any:
    foundation = foundation_settings.Foundation(model=tiny_foundation(), steps=2, resize=True)
    return cls(foundation=foundation, **changes)


def finished(out: Path, label: str) -> Any:
    at: Any = read_checkpoint(read_config(out).method[label], out / "trials" / label / "seed-0")
    return at.state


def server(task: Task = TASK, store: FolderStore | None = None) -> Server:
    def new_network(name: str, rng: torch.Generator) -> nn.Module:
        return Architectures().new(name, task, rng)

    clients = (ClientInfo(0, "linear", 1),)
    made = Server(task, clients, 0, stream(0), 0, CPU, "float32", new_network)
    return made if store is None else replace(made, store=store)


def client(y: list[int], number: int = 0) -> Client:
    info = ClientInfo(number, "linear", len(y))
    x = torch.randint(256, (len(y), *TASK.shape), dtype=torch.uint8, generator=stream(number, "x"))
    kept: Any = None
    return Client(info, TASK, Data(x, torch.tensor(y)), kept, stream(number), 0, CPU, "float32", server().new_network)


def images_of(out: Path, label: str, size: int = 8) -> SyntheticBatch:
    task = Task("image", (1, size, size), tuple("0123456789"))
    made: SyntheticBatch = finished(out, label).synthetic.read(
        server(task, FolderStore(out / "trials" / label / "seed-0"))
    )
    return made


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def same_images(a: SyntheticBatch, b: SyntheticBatch) -> bool:
    pairs = ((a.images, b.images), (a.request.labels, b.request.labels), (a.seeds, b.seeds))
    return all(torch.equal(x, y) for x, y in pairs)


# What methods come to.

FGL_ALIKE: dict[str, dict[str, Any]] = {
    "fedlmg": {"classifier_guidance": {"step": 0.0}},
    "oscar": {},
    "feddeo": {"description_guidance": 0.0, "description_epochs": 0},
    "untold": {"kind": "feddeo", "description_guidance": 0.0, "description_epochs": 1},
    "split": {
        "kind": "feddeo",
        "foundation": sampled(guidance_scale=1.25),
        "description_guidance": 1.75,
        "description_epochs": 0,
    },
}


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FGL at the class level and what comes to it, on clients that lack classes."""
    labels = ["fgl", *FGL_ALIKE, "prompts_only"]
    methods = {
        label: table(images_per_condition=2) | {"foundation": sampled()} | FGL_ALIKE.get(label, {}) for label in labels
    } | {"prompts_only": table(images_per_condition=8) | {"foundation": sampled()}}
    out = tmp_path_factory.mktemp("alike") / "run"
    start(tiny(*labels, method=methods, partition={"kind": "dirichlet", "alpha": 0.5}), out)
    return out


@pytest.mark.parametrize("label", ["fedlmg", "oscar", "feddeo", "untold"])
def test_fgl_is_what_is_left(label: str, alike: Path) -> None:
    """Of FedLMG without steps, of OSCAR at the class level, of FedDEO where descriptions are not heeded."""
    ours, fgl = images_of(alike, label), images_of(alike, "fgl")
    assert same_images(ours, fgl)
    assert torch.equal(ours.request.clients, fgl.request.clients)


def test_a_description_that_is_the_prompt_adds_to_its_guidance(alike: Path) -> None:
    """u + 1.25·(text − u) + 1.75·(text − u) is guidance 3."""
    ours, fgl = images_of(alike, "split"), images_of(alike, "fgl")
    assert int((ours.images.int() - fgl.images.int()).abs().max()) <= 1


def test_who_asked_for_what(alike: Path) -> None:
    """Two images of each class that a client has, those of one class together; nobody's of all classes alike."""
    made = images_of(alike, "fgl").request
    requested = finished(alike, "fgl").requested
    assert made.labels.tolist() == requested.labels.repeat_interleave(2).tolist()
    assert made.clients.tolist() == requested.clients.repeat_interleave(2).tolist()
    assert len(requested) < 40, "clients lack classes"
    assert requested.clients.tolist() == sorted(requested.clients.tolist())
    nobody = images_of(alike, "prompts_only").request
    assert nobody.labels.tolist() == torch.arange(10).repeat_interleave(8).tolist()
    assert set(nobody.clients.tolist()) == {NO_CLIENT}


def test_clients_with_an_architecture_of_their_own_learn_as_students_do(tmp_path: Path) -> None:
    """From the initial weights of their architecture, on the server's set, by its settings; it has no student."""
    own = "tests.toys:Linear"
    given = table(student_rounds=2) | {"foundation": sampled()}
    start(tiny("fgl", method={"fgl": given}, federation={"clients": 2, "architectures": [own]}), tmp_path / "run")
    state, learning = finished(tmp_path / "run", "fgl"), Training(epochs=1, batch_size=8)
    assert (state.students, state.personal) == ({}, (own,))
    task, rng = Task("image", (1, 8, 8), tuple("0123456789")), stream(0, "learn_own", 0, 1)
    network = Architectures().new(own, task, rng)
    network.load_state_dict(Architectures().new(own, task, stream(0, "common", "classifier", own)).state_dict())
    for _ in range(2):
        train(network, replace(server(task), rng=rng), learning, data=images_of(tmp_path / "run", "fgl").data)
    (kept,) = (tmp_path / "run" / "trials" / "fgl" / "seed-0" / "clients" / "1").glob("model.*")
    assert same(load(Model, kept).classifier, weights_of(network))


def test_prompts_alone_make_an_unsteered_fedlmgs_images_of_one_client(tmp_path: Path) -> None:
    """An image's draws are named by its place in the set, so with one client that has all classes they are the same."""
    methods = {
        "fedlmg": table(classifier_guidance={"step": 0.0}, images_per_condition=2) | {"foundation": sampled()},
        "prompts_only": table(images_per_condition=2) | {"foundation": sampled()},
    }
    federation = {"clients": 1, "architectures": ["linear"]}
    start(tiny(*methods, method=methods, federation=federation), tmp_path / "run")
    assert same_images(images_of(tmp_path / "run", "fedlmg"), images_of(tmp_path / "run", "prompts_only"))


def test_steering_changes_the_images(alike: Path, tmp_path: Path) -> None:
    """By the statistics of BatchNorm too, which cnn1 has and a linear model has not."""
    guidance = {"step": 5.0, "noise_edits": 1}
    methods = {
        name: {"kind": "fedlmg"} | table(classifier_guidance=guidance | change) | {"foundation": sampled()}
        for name, change in {
            "with": {"statistics": 1.0},
            "without": {"statistics": 0.0},
            "never": {"step": 0.0},
        }.items()
    }
    data = {"kind": "digits", "size": 16}
    start(tiny(*methods, method=methods, data=data, federation={"architectures": ["linear", "cnn1"]}), tmp_path / "run")
    made = {name: images_of(tmp_path / "run", name, size=16) for name in methods}
    of_linear = made["with"].request.clients % 2 == 0

    def differ(a: str, b: str, rows: Tensor) -> float:
        return float((made[a].images[rows] != made[b].images[rows]).float().mean())

    assert differ("with", "never", of_linear) > 0.01 < differ("with", "never", ~of_linear)
    assert differ("with", "without", of_linear) == 0 < differ("with", "without", ~of_linear)


def test_without_rounds_students_are_the_initial_ones_and_rounds_are_averaging(tmp_path: Path) -> None:
    """In whole batches, whose order does not matter: rounds are shuffled by the name of the phase."""
    training = PLAIN_SGD | {"epochs": 2, "batch_size": 64}
    begun: dict[str, Any] = {"prompts_only": table(), "fedavg": {"rounds": 0}}
    start(tiny(*begun, method=begun), tmp_path / "begun")
    ours, theirs = finished(tmp_path / "begun", "prompts_only"), finished(tmp_path / "begun", "fedavg").classifiers
    assert all(same(ours.students[name], theirs[name]) for name in ("linear", "mlp-small"))
    on = {"prompts_only": table(finetune_rounds=2, client_training=training), "fedavg": {}}
    defaults = {"rounds": 2, "training": training}
    start(tiny(*on, method=on, defaults=defaults), tmp_path / "on")
    ours, theirs = finished(tmp_path / "on", "prompts_only").students, finished(tmp_path / "on", "fedavg").classifiers
    for name, weights in theirs.items():
        for key, value in weights.items():
            torch.testing.assert_close(ours[name][key], value, rtol=1e-4, atol=1e-6)
    assert not same(ours["linear"], finished(tmp_path / "begun", "prompts_only").students["linear"])


def test_students_learn_once_or_after_each_average_as_well(tmp_path: Path) -> None:
    kinds = {
        "none": table(),
        "once": table(student_rounds=1),
        "tuned": table(student_rounds=1, finetune_rounds=1),
        "again": table(student_rounds=1, finetune_rounds=1, synthetic_epochs=1),
    }
    methods = {name: {"kind": "prompts_only"} | given for name, given in kinds.items()}
    start(tiny(*methods, method=methods), tmp_path / "run")
    weights = [finished(tmp_path / "run", name).students["linear"] for name in methods]
    assert not any(same(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_opening_teachers_draws_nothing_that_students_would() -> None:
    """So FT, MD and SD differ in what students are told of an image, and not in the order of images."""
    own = server()
    before = own.rng.get_state()
    found = build_uploaded(own, {0: weights_of(own.new_network("linear", stream(1)))})
    assert torch.equal(own.rng.get_state(), before)
    assert same(weights_of(found[0]), weights_of(own.new_network("linear", stream(1))))


def test_students_start_with_weights_of_a_file_where_they_fit(tmp_path: Path) -> None:
    """Those of the same name and shape: a last layer of other classes starts anew."""
    begun = {"prompts_only": table(student="mlp-small")}
    start(tiny("prompts_only", method=begun), tmp_path / "begun")
    own = finished(tmp_path / "begun", "prompts_only").students["mlp-small"]
    first, *_, last = own
    given = {name: torch.full_like(weight, 0.5) for name, weight in own.items()} | {last: torch.zeros(99)}
    safetensors.torch.save_file(given, tmp_path / "given.safetensors")
    begun["prompts_only"]["pretrained"] = str(tmp_path / "given.safetensors")
    start(tiny("prompts_only", method=begun), tmp_path / "run")
    ours = finished(tmp_path / "run", "prompts_only").students["mlp-small"]
    assert same(ours, {name: own[name] if name == last else weight for name, weight in given.items()})
    for content, says in (
        ({first: torch.zeros(99)}, "has no weights of the names and shapes"),
        (None, "cannot be read"),
    ):
        file = tmp_path / "bad.safetensors"
        file.write_bytes(b"rubbish") if content is None else safetensors.torch.save_file(content, file)
        begun["prompts_only"]["pretrained"] = str(file)
        with pytest.raises(GenfedError, match=rf"pretrained = '.*bad.safetensors' {says}"):
            start(tiny("prompts_only", method=begun), tmp_path / "other")


def test_one_global_student_is_sent_to_clients_of_all_architectures(tmp_path: Path) -> None:
    methods = {"fgl": table(student="mlp", finetune_rounds=1, student_rounds=1)}
    (trial,) = start(tiny("fgl", method=methods), tmp_path / "run").trials
    assert list(finished(tmp_path / "run", "fgl").students) == ["mlp"]
    assert len({client.accuracy for client in trial.clients}) == 1
    with pytest.raises(GenfedError, match="no such architecture: 'mpl'; did you mean 'mlp'"):
        start(tiny("fgl", method={"fgl": table(student="mpl")}), tmp_path / "other")


# What travels.


def test_fgl_tells_one_embedding_per_class_or_example_and_no_text() -> None:
    who = client([2, 0, 2, 2])
    fgl = settings(FGL, aliases={"c": "cat: c"}, templates=("{class}", "an {class}"))
    of_class = fgl.upload_conditions(who, Empty()).upload
    assert of_class.labels.tolist() == [0, 2]
    assert of_class.conditions.shape == (2, toys.TOKENS, 8)
    model = fgl.foundation.load(TASK, CPU, "float32")
    assert torch.equal(of_class.conditions, model.encode_condition(["a", "cat: c"]))
    second = fgl.upload_conditions(client([2], number=3), Empty()).upload
    assert torch.equal(second.conditions, model.encode_condition(["an cat: c"])), (
        "client 3 has the second template of two"
    )
    each = settings(FGL, level="instance", aliases={"c": "cat: c"}, templates=("{class}",))
    of_examples = each.upload_conditions(who, Empty()).upload
    assert of_examples.labels.tolist() == [0, 2, 2, 2]
    assert torch.equal(of_examples.conditions, of_class.conditions[[0, 1, 1, 1]])
    for upload in (of_class, of_examples):
        packed = pack(upload)
        assert {name: value.dtype for name, value in packed.tensors.items()} == {
            "ConditionUpload.conditions": torch.float32,
            "ConditionUpload.labels": torch.int64,
        }
        assert not any(word in str(packed.skeleton) for word in ("cat", "an "))


def test_words_are_chosen_for_each_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """And OSCAR tells their mean."""
    chosen = {0: torch.tensor([3, 0]), 2: torch.tensor([2, 2, 1])}
    given: dict[str, Any] = {
        "level": "instance",
        "templates": ("{how} {class} {on}",),
        "attributes": {"how": ("thin", "fat"), "on": ("x", "y")},
    }
    texts = {name: [f"{how} {name} {on}" for how in ("thin", "fat") for on in ("x", "y")] for name in "ac"}
    asked = []

    def classify(model: Any, images: Tensor, words: list[str], **options: Any) -> Tensor:
        asked.append((tuple(images.shape), words))
        return chosen[0 if " a " in words[0] else 2]

    monkeypatch.setattr("genfed.methods.bases.prompt_upload.classify_by_noise", classify)
    fgl, oscar = settings(FGL, **given), settings(OSCAR, **given)
    told = fgl.upload_conditions(client([2, 0, 2, 0, 2]), Empty()).upload
    assert asked == [((2, 1, 8, 8), texts["a"]), ((3, 1, 8, 8), texts["c"])]
    condition = fgl.foundation.load(TASK, CPU, "float32").encode_condition
    a, c = condition(texts["a"]), condition(texts["c"])
    assert torch.equal(told.conditions, torch.stack([a[3], a[0], c[2], c[2], c[1]]))
    means = oscar.upload_conditions(client([2, 0, 2, 0, 2]), Empty()).upload
    assert means.labels.tolist() == [0, 2]
    torch.testing.assert_close(means.conditions[0], (a[3] + a[0]) / 2)
    torch.testing.assert_close(means.conditions[1], (2 * c[2] + c[1]) / 3)


def test_feddeo_tells_one_learnt_embedding_per_class() -> None:
    still = settings(FedDEO, prompt="{class}", description_epochs=0)
    reply = still.upload_conditions(client([2, 0, 2]), Empty())
    names = still.foundation.load(TASK, CPU, "float32").encode_condition(["a", "c"])
    assert torch.equal(reply.upload.conditions, names)
    assert reply.upload.labels.tolist() == [0, 2]
    assert reply.metrics == {"loss": 0.0}
    learnt = replace(still, description_epochs=1, description_learning_rate=1.0)
    reply = learnt.upload_conditions(client([2, 0, 2]), Empty())
    moved = (reply.upload.conditions - names).flatten(1).norm(dim=1)
    assert moved.min() > 0
    assert reply.metrics["loss"] > 0
    assert torch.equal(still.foundation.load(TASK, CPU, "float32").encode_condition(["a", "c"]), names)


def test_bytes(tmp_path: Path) -> None:
    methods = {label: table() | {"foundation": sampled()} for label in ONE_SHOT}
    trials = start(tiny(*methods, method=methods), tmp_path / "run").trials
    up = {trial.method: trial.up_bytes for trial in trials}
    assert up["prompts_only"] == 0
    requested = finished(tmp_path / "run", "fgl").requested
    numbers = len(requested) / 4 * (toys.TOKENS * 8 * 4 + 8)
    assert up["fgl"] == up["oscar"] == up["feddeo"]
    assert numbers < up["fgl"] < numbers + 150  # the names of fields and of their record
    assert up["fedlmg"] > 4 * 64 * 10
    rows = left_by(tmp_path / "run")["metrics"]
    assert {r["phase"] for r in rows if r["method"] == "prompts_only" and r["client"] is not None} == {"evaluate"}
    assert all(trial.down_bytes == 0 for trial in trials)


# The ensemble.


def test_the_mean_of_probabilities_by_hand() -> None:
    class Says(nn.Module):
        def __init__(self, *p: float) -> None:
            super().__init__()
            self.logits = torch.tensor(p).log() + 5  # logits know no constant

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), -1)

    answers = Answers([Says(0.9, 0.1), Says(0.5, 0.5)])(torch.zeros(2, 1))
    torch.testing.assert_close(answers.exp(), torch.tensor([[0.7, 0.3], [0.7, 0.3]]))


def test_the_mean_of_probabilities_is_finite_where_every_model_gives_none() -> None:
    class Certain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[0.0, -200.0, -300.0]]).expand(len(x), -1)

    answers = Answers([Certain(), Certain()])(torch.zeros(2, 1))
    torch.testing.assert_close(answers, torch.tensor([[0.0, -200.0, -300.0]]).expand(2, -1))


def test_an_ensemble_of_one_is_local_training(tmp_path: Path) -> None:
    config = tiny("ensemble", "local", federation={"clients": 1, "architectures": ["mlp-small"]})
    config["method"] = {"local": {"rounds": 1}}
    ensemble, local = start(config, tmp_path / "run").trials
    assert ensemble.clients == local.clients
    (weights,) = finished(tmp_path / "run", "ensemble").models.values()
    kept = tmp_path / "run" / "trials" / "local" / "seed-0" / "clients" / "0" / "model.0.safetensors"
    assert same(load(Model, kept).classifier, weights)


def test_an_ensemble_asks_models_of_all_architectures() -> None:
    networks = {0: server().new_network("linear", stream(1)), 4: server().new_network("mlp-small", stream(2))}
    models = UploadedClassifiers({i: weights_of(n) for i, n in networks.items()}, {0: "linear", 4: "mlp-small"})
    x = torch.randn(3, 1, 8, 8, generator=stream(0))
    ours = Ensemble().classifier(client([0]), models)(x).exp()
    torch.testing.assert_close(ours, sum(n(x).softmax(1) for n in networks.values()) / 2)


# Bad input: before training, in one line.

BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "a long prompt": (
        "fedlmg",
        {"prompt": "a photograph of {class}"},
        r"the prompt 'a photograph of 0' takes 14 tokens; the text encoder reads 10 \(shorten it",
    ),
    "a long prompt of nobody": (
        "prompts_only",
        {"prompt": "a photograph of {class}"},
        "the text encoder reads 10",
    ),
    "a long template": ("fgl", {"templates": ["{class}", "a photograph of {class}"]}, "'a photograph of 0' takes 14"),
    "a long attribute": (
        "oscar",
        {"level": "instance", "templates": ["{how} {class}"], "attributes": {"how": ["thin", "as thin as can be"]}},
        "'as thin as can be 0' takes",
    ),
    "a long alias": (
        "fgl",
        {"templates": ["{class}"], "aliases": {"3": "the number three"}},
        "'the number three' takes",
    ),
    "a long prompt of descriptions": ("feddeo", {"prompt": "a photograph of {class}"}, "the text encoder reads 10"),
    "braces": (
        "fedlmg",
        {"prompt": "an image of {clas}"},
        r"the prompt 'an image of \{clas\}' cannot be filled in; \{class\} is all that may stand in braces",
    ),
    "open braces": ("prompts_only", {"prompt": "an image of {class"}, "cannot be filled in"),
    "braces of a template": (
        "fgl",
        {"level": "instance", "templates": ["{style} {class}"], "attributes": {"how": ["thin"]}},
        r"templates: '\{style\} \{class\}' cannot be filled in; there are: \{class\}, \{how\}",
    ),
    "a method in braces": ("fedlmg", {"prompt": "{class[x]}"}, "cannot be filled in"),
    "a prompt of no class": (
        "prompts_only",
        {"prompt": "a digit"},
        r"'a digit' has no \{class\}: all classes would have",
    ),
    "a template of no class": ("fgl", {"templates": ["{class}", "a digit"]}, r"templates: 'a digit' has no \{class\}"),
    "an attribute of no template": (
        "fgl",
        {"level": "instance", "templates": ["{class}"], "attributes": {"how": ["thin", "fat"]}},
        r"attributes.how: no template has \{how\}",
    ),
    "instances that are told alike": (
        "fgl",
        {"level": "instance", "templates": ["{class}"]},
        "needs attributes or a captioner",
    ),
    "a negative that nothing leads away from": (
        "fgl",
        {"foundation": sampled(guidance_scale=1.0, negative_prompt="thin")},
        "foundation.negative_prompt = 'thin': with guidance_scale = 1",
    ),
    "a number in braces": ("fgl", {"templates": ["{} {class}"]}, "cannot be filled in"),
    "an alias of nothing": (
        "fgl",
        {"aliases": {"orange": "fruit: orange"}},
        "aliases: 'orange' is no class; there are: 0, 1",
    ),
    "attributes of classes": (
        "fgl",
        {"attributes": {"how": ["thin"]}},
        'attributes are for level = "instance": a class has none of its own',
    ),
    "no words": ("fgl", {"level": "instance", "attributes": {"how": []}}, "method.fgl.attributes.how = "),
    "no template": ("fgl", {"templates": []}, "method.fgl.templates = "),
    "a class among attributes": (
        "fgl",
        {"level": "instance", "attributes": {"class": ["cat"]}},
        "attributes.class: .* name of the class",
    ),
    "a sampler that remembers": (
        "fedlmg",
        {"foundation": sampled(scheduler="dpmsolver")},
        "remembers earlier steps, which guidance has changed since",
    ),
    "too many steps": ("fgl", {"foundation": sampled(steps=2000)}, "steps = 2000: 1 to 1000"),
    "another size": (
        "fgl",
        {"foundation": sampled(resize=False)},
        "its images are 3×8×8, the task's 1×8×8; set size and channels of the data, or resize = true",
    ),
    "no such model": ("fedlmg", {"foundation": sampled(model="nowhere")}, "nowhere: no such directory"),
    "no such weight": (
        "fedlmg",
        {"classifier_guidance": {"step": -1.0}},
        "method.fedlmg.classifier_guidance.step = -1.0",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_settings_are_refused_before_training(what: str, tmp_path: Path) -> None:
    label, changes, says = BAD[what]
    with pytest.raises(GenfedError, match=says) as raised:
        start(tiny(label, method={label: TINY[label] | changes}), tmp_path / "run")
    assert "\n" not in str(raised.value)
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert not metrics.exists() or not metrics.read_text()


@pytest.mark.parametrize("label", ONE_SHOT)
def test_a_missing_extra_is_said_before_training(label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(label)
    foundation_settings._open_cached.cache_clear()
    monkeypatch.setattr(loading, "import_library", loading.import_library.__wrapped__)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(GenfedError, match=r'needs the extra "foundation" .*: pip install'):
        start(config, tmp_path / "run")


def test_a_table_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(GenfedError, match="it makes images; the task's examples are a table"):
        settings(FGL).init(server(Task("table", (4,), ("a", "b"))))


@pytest.mark.parametrize("label", ["oscar", "feddeo"])
def test_embeddings_are_needed(label: str, tmp_path: Path) -> None:
    model = str(toys.class_conditional(tmp_path / "class", embeds=11))
    method = {label: table(foundation={"model": model, "steps": 2})}
    with pytest.raises(GenfedError, match=f"{label} computes with embeddings of prompts, and foundation class is"):
        start(tiny(label, method=method), tmp_path / "run")


@pytest.mark.parametrize("label", ["fedlmg", "fgl", "prompts_only"])
def test_a_class_conditional_model_is_asked_by_names(label: str, tmp_path: Path) -> None:
    model = toys.class_conditional(tmp_path / "class", names=tuple("0123456789"), embeds=11)
    prompt: dict[str, Any] = {"templates": ["{class}"]} if label == "fgl" else {"prompt": "{class}"}
    foundation = {"model": str(model), "steps": 2, "batch_size": 16}
    start(tiny(label, method={label: table(foundation=foundation, **prompt)}), tmp_path / "run")
    state = finished(tmp_path / "run", label)
    assert torch.equal(
        state.requested.conditions, state.requested.labels[:0] if label == "fedlmg" else state.requested.labels
    )
    with pytest.raises(GenfedError, match="the model has no class 'an image of 0'; it has: 0, 1"):
        start(tiny(label, method={label: table(foundation=foundation)}), tmp_path / "other")


def test_a_classifier_that_is_not_finite_is_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    spoilt = {"spoilt": {"kind": "tests.foundation.toys:Spoilt"} | table(student_rounds=1, foundation=sampled())}
    (trial,) = start(tiny("spoilt", method=spoilt), tmp_path / "run").trials
    (failure,) = trial.failures
    assert "client 1" in failure
    assert "finite" in failure
    state = finished(tmp_path / "run", "spoilt")
    assert sorted(state.teachers) == sorted(set(state.requested.clients.tolist())) == [0, 2, 3]
    assert set(images_of(tmp_path / "run", "spoilt").request.clients.tolist()) == {0, 2, 3}
    with pytest.raises(GenfedError, match="quorum"):
        start(tiny("spoilt", method=spoilt, federation={"quorum": 1.0}), tmp_path / "all")

"""Methods that upload once: what their parts compute, and what they come to where little is left of them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.phase import Reduced
from genfed.core.record import load
from genfed.core.rng import stream
from genfed.core.task import Task, Weights
from genfed.experiment.checkpoint import read_checkpoint
from genfed.generators.cvae import CVAE
from genfed.generators.noise_to_image import NoiseToImage
from genfed.methods.bases.decoder_upload import build_decoder, labels_in_proportion
from genfed.methods.dense import DENSE, boundary_support
from genfed.methods.fedcvae_ens import FedCVAEEns
from genfed.methods.fedcvae_ens import FedCVAEEnsState as Ensemble
from genfed.methods.fedcvae_kd import FedCVAEKD
from genfed.methods.fedcvae_kd import FedCVAEKDState as Distilled
from genfed.training.weights import Model, weights_of
from tests.conftest import TINY, start, tiny

TASK = Task("image", (1, 8, 8), ("a", "b", "c"))
NOTHING = Reduced({}, ())


def server(number: int = 0, task: Task = TASK, names: tuple[str, ...] = ("linear",)) -> Server:
    def new_network(name: str, rng: torch.Generator) -> nn.Module:
        return Architectures().new(name, task, rng)

    clients = tuple(ClientInfo(i, name, 1) for i, name in enumerate(names))
    return Server(task, clients, number, stream(0, number), 0, torch.device("cpu"), "float32", new_network)


def finished(out: Path, label: str) -> Any:
    at: Any = read_checkpoint(read_config(out).method[label], out / "trials" / label / "seed-0")
    return at.state


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# DENSE.


def test_boundary_support_counts_only_where_the_classes_differ() -> None:
    teacher = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    student = torch.tensor([[0.0, math.log(3)], [9.0, 0.0]])
    assert boundary_support(teacher, student).tolist() == [pytest.approx(math.log(3) / 2), 0]


def test_a_dense_upload_is_one_round_of_local_training_and_no_epoch_leaves_the_initial_students(tmp_path: Path) -> None:
    rounds = {"dense": TINY["dense"] | {"rounds": 0}, "local": {"rounds": 1}, "fedavg": {"rounds": 0}}
    start(tiny("dense", "local", "fedavg", method=rounds), tmp_path / "run")
    at, initial = finished(tmp_path / "run", "dense"), finished(tmp_path / "run", "fedavg").classifiers
    assert sorted(at.models) == [0, 1, 2, 3]
    for client, model in at.models.items():
        kept = tmp_path / "run" / "trials" / "local" / "seed-0" / "clients" / str(client) / "model.0.safetensors"
        # Epochs are shuffled by (phase, round, client), and both call the phase "train".
        assert same(load(Model, kept).classifier, model)
    assert {name: same(learner.weights, initial[name]) for name, learner in at.students.items()} == {
        "linear": True,
        "mlp-small": True,
    }


def dense(**changes: Any) -> DENSE:
    return DENSE(**({"latent_dim": 4, "width": 4, "batch_size": 16, "generator_learning_rate": 0.01} | changes))


def trusting(method: DENSE, where: Server) -> Any:
    """A state in which client 0 has uploaded a linear model of large weights."""
    network = nn.Linear(64, 3)
    nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(7))
    names = weights_of(where.new_network("linear", stream(0))).keys()
    upload = dict(zip(names, (network.weight.detach(), torch.zeros(3)), strict=True))
    return method.collect(where, method.init(where), Reduced({"classifier": {0: upload}}, where.clients))


def cross_entropy(at: Any) -> float:
    """Of the images that were made, to the ensemble's own choice."""
    return float(-at.pool.logits.log_softmax(1).max(1).values.mean())


def test_dense_trains_its_generator_against_the_ensemble_and_its_student_towards_it() -> None:
    method = dense(generator_steps=20, stability=0.0, boundary=0.0)
    begun = trusting(method, server())
    untrained = dense(generator_steps=0).distill(server(), begun, NOTHING)
    at = begun
    for number in range(3):
        at = method.distill(server(number), at, NOTHING)
    assert not same(at.generator.weights, begun.generator.weights)
    assert cross_entropy(at) < cross_entropy(untrained) / 2, "the ensemble is sure of what is made"
    student = server().new_network("linear", stream(0))

    def agreement(weights: Weights) -> float:
        student.load_state_dict(weights)
        chosen = student(at.pool.images / 127.5 - 1).argmax(1)
        return float((chosen == at.pool.logits.argmax(1)).float().mean())

    assert agreement(at.students["linear"].weights) > max(0.6, agreement(begun.students["linear"].weights))


def test_dense_remembers_the_newest_batches() -> None:
    method = dense(generator_steps=1, replay_batches=2)
    states = [trusting(method, server())]
    for number in range(3):
        states.append(method.distill(server(number), states[-1], NOTHING))
    assert [len(at.pool.images) for at in states] == [0, 16, 32, 32]
    assert torch.equal(states[2].pool.images[16:], states[3].pool.images[:16])
    assert len(states[3].pool.logits) == 32


def test_one_global_student_is_sent_to_clients_of_all_architectures(tmp_path: Path) -> None:
    start(tiny("dense", method={"dense": TINY["dense"] | {"student": "mlp"}}), tmp_path / "run")
    assert list(finished(tmp_path / "run", "dense").students) == ["mlp"]
    with pytest.raises(GenfedError, match="no such architecture: 'mpl'; did you mean 'mlp'"):
        start(tiny("dense", method={"dense": TINY["dense"] | {"student": "mpl"}}), tmp_path / "other")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 9), (1, 64, 8)])
def test_images_from_noise(shape: tuple[int, ...]) -> None:
    network = NoiseToImage(Task("image", shape, ("a",)), 5, 4, stream(0))
    x = network(torch.randn(6, 5, generator=stream(1))).detach()
    assert x.shape == (6, *shape)
    assert float(x.abs().max()) <= 1


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (Task("table", (7,), ("a",)), "cannot make a table of shape (7,)"),
        (Task("features", (3, 16, 16), ("a",)), "cannot make features of shape (3, 16, 16)"),
        (Task("image", (1, 7, 8), ("a",)), "(1, 7, 8): allowed are images of 8×8 to 64×64"),
    ],
)
def test_dense_refuses_what_its_generator_cannot_make(task: Task, says: str) -> None:
    with pytest.raises(GenfedError) as error:
        dense().init(server(task=task))
    assert says in str(error.value)


# FedCVAE.


@given(st.integers(0, 500), st.lists(st.integers(1, 1000), min_size=1, max_size=20))
def test_samples_are_shared_out_in_proportion_and_none_is_lost(total: int, sizes: list[int]) -> None:
    shares = labels_in_proportion(total, sizes)
    assert sum(shares) == total
    assert all(abs(share - total * size / sum(sizes)) < 1 for share, size in zip(shares, sizes, strict=True))


def test_shares_by_hand() -> None:
    assert labels_in_proportion(10, [1, 1]) == [5, 5]
    assert labels_in_proportion(10, [30, 10, 60]) == [3, 1, 6]
    assert labels_in_proportion(5, [1, 1, 1]) == [1, 2, 2]


SMALL = CVAE(width=4, latent_dim=3)


@pytest.mark.parametrize(("truncation", "variance"), [(1.0, 0.2911), (2.0, 0.7737)])
def test_codes_are_normal_between_the_bounds(truncation: float, variance: float) -> None:
    """The variance of a standard normal that is cut off at ± a is 1 − 2aφ(a) / (2Φ(a) − 1)."""
    z = FedCVAEEns(generator=SMALL, truncation=truncation).draw_codes(20_000, stream(0))
    assert z.shape == (20_000, 3)
    assert float(z.abs().max()) <= truncation
    assert float(z.mean()) == pytest.approx(0, abs=0.02)
    assert float(z.var()) == pytest.approx(variance, abs=0.01)


def shade(value: float) -> Weights:
    """A decoder that makes images of one shade."""
    decoder = {k: torch.zeros_like(v) for k, v in build_decoder(SMALL.new(TASK, stream(0))).items()}
    return decoder | {"bias": torch.full_like(decoder["bias"], math.atanh(value))}


DECODERS = {0: shade(-0.5), 3: shade(0.5)}
LABELS = {0: torch.tensor([6, 0, 0]), 3: torch.tensor([0, 1, 1])}


def test_images_are_drawn_from_each_client_as_its_labels_are_distributed() -> None:
    x, y, z = FedCVAEEns(generator=SMALL).draw_examples(server(), DECODERS, LABELS, 40)
    assert x.shape == (40, 1, 8, 8)
    assert z.shape == (40, 3)
    assert x[:, 0, 0, 0].tolist() == pytest.approx([-0.5] * 30 + [0.5] * 10)
    assert y[:30].tolist() == [0] * 30
    assert set(y[30:].tolist()) == {1, 2}
    again = FedCVAEEns(generator=SMALL).draw_examples(server(5), DECODERS, LABELS, 40)
    assert all(torch.equal(a, b) for a, b in zip((x, y, z), again, strict=True)), "every round has the same images"


def test_a_label_is_made_by_clients_that_have_it() -> None:
    method, where = FedCVAEEns(generator=SMALL), server()
    x = method.generate(where, Ensemble(DECODERS, LABELS, {}), torch.tensor([0, 1, 2, 0]))
    assert x[:, 0, 0, 0].tolist() == pytest.approx([-0.5, 0.5, 0.5, -0.5])
    nobody = {client: torch.tensor([1, 0, 0]) for client in DECODERS}
    assert method.generate(where, Ensemble(DECODERS, nobody, {}), torch.tensor([2])).shape == (1, 1, 8, 8)
    with pytest.raises(GenfedError, match="no client has uploaded its decoder yet"):
        method.generate(where, method.init(where), torch.tensor([0]))


def test_a_decoder_alone_decodes_like_the_whole() -> None:
    whole = SMALL.new(TASK, stream(1)).eval()
    method = FedCVAEEns(generator=SMALL)
    other = method.new_network(server(), stream(2), build_decoder(whole)).eval()
    z, y = torch.randn(4, 3, generator=stream(3)), torch.tensor([0, 1, 2, 0])
    assert torch.equal(whole.decode(z, y), other.decode(z, y))
    assert not any(name.startswith(("encoder", "code", "planes")) for name in build_decoder(whole))


def test_distillation_brings_one_decoder_to_what_the_clients_make() -> None:
    method = FedCVAEKD(generator=SMALL, distillation_samples=256)
    begun = method.init(server())
    at: Distilled = method.collect(server(), begun, Reduced({"decoder": DECODERS, "labels": LABELS}, ()))
    labels = torch.tensor([0, 1, 2])

    def error(state: Distilled) -> float:
        made: Tensor = method.generate(server(), state, labels)
        return float((made.mean((1, 2, 3)) - torch.tensor([-0.5, 0.5, 0.5])).abs().max())

    assert same(at.decoder, begun.decoder)
    for number in range(10):
        at = method.distill(server(number), at, NOTHING)
    assert error(at) < 0.25 < error(begun)
    learnt = FedCVAEKD(generator=SMALL, samples=8).train_on_images(server(), at, NOTHING)
    assert learnt.decoders == {}, "what has done its part is not carried on"
    assert same(learnt.decoder, at.decoder)


def classes_of(method: FedCVAEEns | FedCVAEKD, learn: Callable[[], Any]) -> list[int]:
    network = server().new_network("linear", stream(0))
    network.load_state_dict(learn().classifiers["linear"])
    chosen: list[int] = network(torch.tensor([-0.5, 0.5]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)).argmax(1).tolist()
    return chosen


def test_classifiers_learn_what_the_decoders_make() -> None:
    """Dark images are of class 0; light ones, here, of class 1 alone."""
    labels = {0: torch.tensor([6, 0, 0]), 3: torch.tensor([0, 6, 0])}
    ensemble = FedCVAEEns(generator=SMALL, samples=64)
    state = ensemble.init(server())
    state = ensemble.collect(server(), state, Reduced({"decoder": DECODERS, "labels": labels}, ()))
    assert classes_of(ensemble, lambda: ensemble.train_on_images(server(), state, NOTHING)) == [0, 1]


@pytest.mark.parametrize("label", ["fedcvae_ens", "fedcvae_kd"])
def test_without_a_round_of_the_server_classifiers_are_the_initial_ones(label: str, tmp_path: Path) -> None:
    rounds = {label: TINY[label] | {"rounds": 0}, "fedavg": {"rounds": 0}}
    start(tiny(label, "fedavg", method=rounds), tmp_path / "run")
    at, initial = finished(tmp_path / "run", label), finished(tmp_path / "run", "fedavg").classifiers
    assert all(same(at.classifiers[name], initial[name]) for name in ("linear", "mlp-small"))
    assert [int(at.labels[client].sum()) for client in range(4)] == [20] * 4


def test_another_kind_of_generator_is_refused() -> None:
    with pytest.raises(GenfedError, match="generator = DCGAN: clients upload a decoder, so its kind is cvae"):
        read_config(tiny("fedcvae_kd", method={"fedcvae_kd": {"generator": {"kind": "dcgan"}}}))
    with pytest.raises(GenfedError, match="generator cvae: examples of shape"):
        FedCVAEEns(generator=SMALL).init(server(task=Task("table", (7,), ("a", "b"))))

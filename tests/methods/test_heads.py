"""FedPFT and GH-OFL: heads from densities of features, in closed form or trained on draws."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genfed import ClientInfo, Data, GenfedError, Server, Task
from genfed.config.reader import read_config
from genfed.core.task import Weights
from genfed.encoders.identity import Identity
from genfed.experiment.checkpoint import read_checkpoint
from genfed.generators.gaussian import Gaussian, GaussianNetwork, linear_discriminant
from genfed.generators.gaussian_mixture import GaussianMixture
from genfed.methods.bases.feature_statistics import StatisticsState
from genfed.methods.fedpft import ClientMixtures, FedPFT, join_mixtures
from genfed.methods.gh_ofl import GHOFL, CosineHead, ResidualHead, find_fisher_subspace
from tests.conftest import TINY, start, tiny

TASK = Task("features", (3,), ("a", "b", "c"))
ALIKE: dict[str, Any] = {"architectures": ["linear"]}


def draw(count: int = 300, seed: int = 0) -> Data:
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=rng)
    x = torch.randn(count, 3, generator=rng) * torch.tensor([0.5, 1.0, 1.5]) + torch.eye(3)[y] * 2
    return Data(x, y)


def gaussians(how: Gaussian, data: Data) -> GaussianNetwork:
    made = how.new(TASK, torch.Generator())
    made.load_state_dict(how.estimate(TASK, how.measure(data, TASK)))
    return made


def a_server(clients: int = 1, examples: int = 300, task: Task = TASK) -> Server:
    infos = tuple(ClientInfo(i, "linear", examples) for i in range(clients))
    device = torch.device("cpu")
    return Server(task, infos, 0, torch.Generator(), 0, device, "float32", lambda name, rng: torch.nn.Identity())


def state_of(out: Path, method: str, settings: dict[str, Any], **changes: Any) -> StatisticsState:
    config = tiny(method, method={method: TINY[method] | settings}, **changes)
    start(config, out)
    at = read_checkpoint(read_config(config).method[method], out / "trials" / method / "seed-0")
    assert at is not None
    assert isinstance(at.state, StatisticsState)
    return at.state


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logits(method: GHOFL, head: Weights, x: Tensor) -> Tensor:
    module = method.new_head(3, 3)
    module.load_state_dict(head)
    with torch.no_grad():
        found: Tensor = module(x)
    return found


# FedPFT


def test_one_client_of_fedpft_has_the_mixture_of_federated_em(tmp_path: Path) -> None:
    """EM on a client is EM in rounds: with one client the two methods have the same mixture."""
    mixture = {"kind": "gaussian_mixture", "components": 2, "em_steps": 3}
    one: dict[str, Any] = {"clients": 1, "architectures": ["linear"]}
    local = state_of(tmp_path / "local", "fedpft", {"generator": mixture}, federation=one)
    rounds = state_of(tmp_path / "rounds", "gh_ofl", {"generator": mixture}, federation=one)
    assert same(local.generator, rounds.generator)


def test_mixtures_are_joined_by_hand() -> None:
    def part(*rows: tuple[float, float]) -> Weights:
        weight = torch.tensor([[row[0], 1 - row[0]] for row in rows])
        mean = torch.tensor([[[row[1]], [-row[1]]] for row in rows])
        return {"weight": weight, "mean": mean, "deviation": torch.full_like(mean, 0.5)}

    counts = {0: torch.tensor([3, 0, 2]), 4: torch.tensor([1, 0, 0])}
    joined = join_mixtures(counts, {0: part((0.25, 1.0), (0.5, 2.0)), 4: part((1.0, 3.0))})
    torch.testing.assert_close(joined["prior"], torch.tensor([4 / 6, 0, 2 / 6]))
    torch.testing.assert_close(
        joined["weight"], torch.tensor([[0.1875, 0.5625, 0.25, 0], [0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    )
    assert joined["mean"][0, :, 0].tolist() == [1, -1, 3, -3]
    assert joined["mean"][2, :, 0].tolist() == [2, -2, 0, 0]
    assert joined["deviation"][0, :, 0].tolist() == [0.5] * 4
    assert joined["deviation"][1, :, 0].tolist() == [1] * 4


def test_fedpft_learns_digits_of_one_class_a_client(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "partition": {"kind": "disjoint_labels"},
        "federation": {"clients": 10, "max_examples": 600, **ALIKE},
    }
    settings = {"samples": 2000, "head_training": {"epochs": 5, "optimizer": "adam", "learning_rate": 0.01}}
    report = start(tiny("fedpft", method={"fedpft": TINY["fedpft"] | settings}, **changes), tmp_path / "run")
    assert report.trials[0].accuracy > 0.8


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"counts": torch.tensor([4, 4, 1])}, "do not add up to the 8 examples"),
        ({"weight": torch.tensor([[0.5, 0.4]] * 2)}, "with the sum 1"),
        ({"weight": torch.tensor([[1.5, -0.5]] * 2)}, "with the sum 1"),
        ({"mean": torch.full((2, 2, 3), 8.5)}, "within ±8"),
        ({"deviation": torch.zeros(2, 2, 3)}, "deviations above 0"),
        ({"deviation": torch.full((2, 2, 3), float("nan"))}, "deviations above 0"),
        ({"mean": torch.zeros(3, 2, 3)}, r"mean is torch.float32 \(3, 2, 3\)"),
        ({"other": torch.zeros(1)}, "'other' too many or too few"),
    ],
)
def test_mixtures_that_cannot_be_drawn_from_are_refused(change: Weights, reason: str) -> None:
    method, server = FedPFT(encoder=Identity(), generator=GaussianMixture(components=2)), a_server(examples=8)
    honest = {
        "weight": torch.full((2, 2), 0.5),
        "mean": torch.zeros(2, 2, 3),
        "deviation": torch.ones(2, 2, 3),
    }
    method.check(server, server.clients[0], ClientMixtures(torch.tensor([4, 0, 4]), honest))
    counts = change.pop("counts", torch.tensor([4, 0, 4]))
    with pytest.raises(GenfedError, match=reason):
        method.check(server, server.clients[0], ClientMixtures(counts, honest | change))


def test_fedpft_has_a_mixture() -> None:
    with pytest.raises(GenfedError, match="its kind is mixture"):
        FedPFT(generator=Gaussian())


# GH-OFL


def test_lda_is_fedcgs(tmp_path: Path) -> None:
    ours = state_of(tmp_path / "gh_ofl", "gh_ofl", {"generator": {"kind": "gaussian"}})
    config = tiny("fedcgs")
    start(config, tmp_path / "fedcgs")
    theirs = read_checkpoint(read_config(config).method["fedcgs"], tmp_path / "fedcgs" / "trials" / "fedcgs" / "seed-0")
    assert theirs is not None
    assert same(ours.head, theirs.state.head)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_naive_bayes_and_qda_are_those_of_scikit_learn(covariance: str) -> None:
    from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
    from sklearn.naive_bayes import GaussianNB

    data, new = draw(), draw(500, seed=1)
    how = Gaussian(covariance=covariance, tying=0.0, shrinkage=0.0)  # type: ignore[arg-type]
    method = GHOFL(encoder=Identity(), generator=how)
    head = method.make_head(a_server(), how.estimate(TASK, how.measure(data, TASK)))
    theirs = GaussianNB() if covariance == "diagonal" else QuadraticDiscriminantAnalysis()
    theirs.fit(data.x.numpy(), data.y.numpy())
    agree = logits(method, head, new.x).argmax(1).numpy() == theirs.predict(new.x.numpy())
    assert agree.mean() > 0.99  # theirs are of features that are not rounded, and QDA divides by n − 1


def test_a_mixture_is_a_head_too(tmp_path: Path) -> None:
    mixture = {"kind": "gaussian_mixture", "components": 2, "em_steps": 2}
    partitions: list[dict[str, Any]] = [{"kind": "iid"}, {"kind": "disjoint_labels"}]
    one, other = (
        state_of(
            tmp_path / each["kind"],
            "gh_ofl",
            {"generator": mixture},
            partition=each,
            federation={"clients": 10, **ALIKE},
        )
        for each in partitions
    )
    assert same(one.statistics, other.statistics)
    assert same(one.head, other.head)


@pytest.mark.parametrize("kind", ["tied", "full", "diagonal"])
def test_the_fisher_subspace_is_that_of_scikit_learn(kind: str) -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    data = draw(3000)
    center, basis, means = find_fisher_subspace(gaussians(Gaussian(covariance=kind, shrinkage=0.0), data), 8)  # type: ignore[arg-type]
    assert basis.shape == (3, 2)
    torch.testing.assert_close(center, data.x.mean(0), atol=2e-2, rtol=0)
    theirs = LinearDiscriminantAnalysis(solver="eigen").fit(data.x.numpy(), data.y.numpy())
    # Features are uncorrelated within a class, so all three kinds have this subspace, up to signs and noise.
    ours = torch.nn.functional.normalize(basis, dim=0)
    found = torch.nn.functional.normalize(torch.as_tensor(theirs.scalings_[:, :2]).float(), dim=0)
    overlap = torch.linalg.svdvals(torch.linalg.qr(ours).Q.T @ torch.linalg.qr(found).Q)
    assert float(overlap.min()) > 0.99
    x = (data.x - center) @ basis
    torch.testing.assert_close(x[data.y == 0].mean(0), means[0], atol=0.1, rtol=0)
    within = sum(torch.cov(x[data.y == c].T) * float((data.y == c).float().mean()) for c in range(3))
    torch.testing.assert_close(within, torch.eye(2), atol=0.15, rtol=0)


def test_the_loss_with_a_margin_by_hand() -> None:
    head = CosineHead(torch.zeros(2), torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    x, y = torch.tensor([[5.0, 0.0]]), torch.tensor([0])
    assert head(x).tolist() == [[16.0, 0.0]]
    loss = head.margin_loss(0.25)(x, y, torch.Generator())
    torch.testing.assert_close(loss, torch.log(1 + torch.exp(torch.tensor([-12.0]))))
    no_margin = head.margin_loss(0.0)(x, y, torch.Generator())
    torch.testing.assert_close(no_margin, torch.log(1 + torch.exp(torch.tensor([-16.0]))))


@pytest.mark.parametrize("kind", ["tied", "full", "diagonal"])
def test_proto_hyper_without_a_residual_is_naive_bayes(kind: str) -> None:
    """No training, and rank 0: the decisions are those of the variances alone."""
    how, data = Gaussian(covariance=kind, tying=0.0), draw()  # type: ignore[arg-type]
    plain = Gaussian(covariance="diagonal")
    method = read_method({"generator": {"kind": "gaussian", "covariance": kind, "tying": 0.0}, "rank": 0})
    weights = how.estimate(TASK, how.measure(data, TASK))
    decisions = logits(method, method.make_head(a_server(), weights), data.x).argmax(1)
    naive = gaussians(plain, data).log_joint(data.x).argmax(1)
    if kind == "tied":  # one variance for all classes
        shared = gaussians(how, data)
        factor = shared.factor[0].square().sum(1).sqrt()
        scores = -0.5 * ((data.x[:, None] - shared.mean) / factor).square().sum(2) + shared.prior.log()
        naive = scores.argmax(1)
    assert float((decisions == naive).float().mean()) > 0.99


def read_method(settings: dict[str, Any]) -> GHOFL:
    own = {"encoder": {"kind": "identity"}, "head": "proto_hyper", "head_training": {"epochs": 0}} | settings
    found = read_config(tiny("gh_ofl", method={"gh_ofl": own})).method["gh_ofl"]
    assert isinstance(found, GHOFL)
    return found


def test_the_divergence_is_zero_for_the_teacher_itself() -> None:
    teacher = gaussians(Gaussian(covariance="diagonal"), draw())
    head = ResidualHead(3, 3, 2, torch.Generator())
    head.begin(teacher)
    head.log_scale.data.zero_()
    x, y = draw(5, seed=3).x, torch.zeros(5, dtype=torch.int64)
    torch.testing.assert_close(head.loss(teacher, 1.0)(x, y, torch.Generator()), torch.zeros(5), atol=1e-5, rtol=0)
    expected = -teacher.log_joint(x).log_softmax(1)[:, 0]
    torch.testing.assert_close(head.loss(teacher, 0.0)(x, y, torch.Generator()), expected)


@pytest.mark.parametrize("head", ["fisher_mix", "proto_hyper"])
@pytest.mark.parametrize("kind", ["tied", "full", "diagonal"])
def test_trained_heads_come_near_the_closed_form(head: str, kind: str) -> None:
    data, new = draw(600), draw(1000, seed=1)
    how = Gaussian(covariance=kind)  # type: ignore[arg-type]
    weights = how.estimate(TASK, how.measure(data, TASK))
    scores = []
    for name in ("closed_form", head):
        method = GHOFL(encoder=Identity(), generator=how, head=name, samples=4000)  # type: ignore[arg-type]
        found = logits(method, method.make_head(a_server(), weights), new.x)
        scores.append(float((found.argmax(1) == new.y).float().mean()))
    assert scores[1] > scores[0] - 0.03


def test_a_class_without_examples_is_never_predicted() -> None:
    data = draw()
    data = data[data.y != 1]
    how = Gaussian()
    weights = how.estimate(TASK, how.measure(data, TASK))
    for head in ("closed_form", "proto_hyper"):
        method = GHOFL(encoder=Identity(), generator=how, head=head, samples=200)
        assert not (logits(method, method.make_head(a_server(), weights), torch.randn(100, 3) * 9).argmax(1) == 1).any()


def test_what_a_head_needs_is_said() -> None:
    with pytest.raises(GenfedError, match='its generator is a gaussian; a mixture has "closed_form"'):
        GHOFL(generator=GaussianMixture(), head="fisher_mix")


def test_the_linear_head_stays_small(tmp_path: Path) -> None:
    state = state_of(tmp_path / "run", "gh_ofl", {"generator": {"kind": "gaussian"}})
    assert set(state.head) == {"weight", "bias"}
    assert same(state.head, linear_discriminant(state.generator))

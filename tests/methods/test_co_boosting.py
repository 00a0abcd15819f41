"""Co-Boosting: its parts by hand, and DENSE as what is left of it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genfed.config.architectures import Architectures
from genfed.config.reader import read_config
from genfed.core.client import Server
from genfed.core.rng import stream
from genfed.core.task import Task
from genfed.experiment.checkpoint import read_checkpoint
from genfed.methods.bases.data_free import ReplayPool
from genfed.methods.co_boosting import CoBoosting
from genfed.training.ensemble import ClassifierEnsemble
from genfed.training.pixels import normalize_pixels
from tests.conftest import TINY, start, tiny

TASK = Task("image", (1, 8, 8), ("a", "b", "c"))


def server() -> Server:
    def new_network(name: str, rng: torch.Generator) -> nn.Module:
        return Architectures().new(name, TASK, rng)

    return Server(TASK, (), 0, stream(0), 0, torch.device("cpu"), "float32", new_network)


def linear(seed: int, std: float = 1.0) -> nn.Module:
    layer = nn.Linear(64, 3)
    nn.init.normal_(layer.weight, std=std, generator=stream(seed))
    return nn.Sequential(nn.Flatten(), layer)


def pixels(n: int) -> Tensor:
    return torch.randint(256, (n, *TASK.shape), dtype=torch.uint8, generator=stream(3))


# The generator's loss.


def test_hard_images_weigh_more_and_students_are_to_disagree_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])  # probabilities ¾ and ¼
    y, gap = torch.tensor([0, 1]), torch.tensor(2.0)
    ce = torch.tensor([math.log(4 / 3), math.log(4)])
    doubt = torch.tensor([0.25, 0.75])
    for hardness in (0.0, 1.0, 2.0):
        method = CoBoosting(hardness=hardness, adversarial=0.0)
        torch.testing.assert_close(method.objective(logits, gap, [logits], y), doubt**hardness * ce)
    apart = math.log(3) / 2  # KL of (¾, ¼) from (¼, ¾)
    method = CoBoosting(hardness=0.0, adversarial=0.5, stability=0.1)
    answers = [logits.flip(1), logits]  # of two students, whose mean counts
    expected = ce + 0.1 * 2.0 - 0.5 * torch.tensor([apart / 2, apart / 2])
    torch.testing.assert_close(method.objective(logits, gap, answers, y), expected)


def test_how_hard_an_image_is_has_no_gradient_of_its_own() -> None:
    """(1 − p)·(p − y) is the gradient of cross-entropy alone, weighted."""
    logits = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    method, y = CoBoosting(adversarial=0.0), torch.tensor([0])
    loss = method.objective(logits, torch.tensor(0.0), [logits.detach()], y).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, 0.25 * torch.tensor([[0.75 - 1, 0.25]]))


# Diverse hard samples.


def test_an_image_moves_along_the_gradient_of_a_random_answer_by_a_given_length() -> None:
    models, shares, x = [linear(1), linear(2)], torch.tensor([0.5, 1.5]), normalize_pixels(pixels(4))
    moved = CoBoosting(perturbation=0.1).make_harder(ClassifierEnsemble(models), shares, x.clone(), stream(5))
    way = (moved - x).flatten(1)
    torch.testing.assert_close(way.square().mean(1).sqrt(), torch.full((4,), 0.2))
    u = torch.rand(4, 3, generator=stream(5)) * 2 - 1
    g = u @ (0.5 * models[0].state_dict()["1.weight"] + 1.5 * models[1].state_dict()["1.weight"])
    torch.testing.assert_close(nn.functional.cosine_similarity(way, g), torch.ones(4))
    assert not moved.requires_grad


def test_an_image_that_nothing_depends_on_stays() -> None:
    x = normalize_pixels(pixels(2))
    assert torch.equal(
        CoBoosting().make_harder(ClassifierEnsemble([linear(1, std=0.0)]), torch.ones(1), x.clone(), stream(0)), x
    )


# Whom to trust.

RIGHT_AND_WRONG = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
"""Logits of two models for images of classes 0 and 1: the first knows them."""


def test_shares_step_towards_the_models_that_are_right_and_stay_in_bounds() -> None:
    y = torch.tensor([0, 1])
    shares, steps = torch.ones(2), []
    for _ in range(4):
        shares = CoBoosting(share_step=0.4).step_shares(shares, RIGHT_AND_WRONG, y)
        steps.append(shares.tolist())
    expected = [[1.4, 0.6], [1.8, 0.2], [2.0, 0.0], [2.0, 0.0]]
    for found, wanted in zip(steps, expected, strict=True):
        assert found == pytest.approx(wanted)
    assert not shares.requires_grad
    assert CoBoosting(share_step=0.0).step_shares(torch.ones(2), RIGHT_AND_WRONG, y).tolist() == [1, 1]


def test_students_learn_moved_images_with_the_answers_of_the_newest_ensemble() -> None:
    models = [linear(1), linear(2)]
    pool = ReplayPool(pixels(6), torch.tensor([0, 1, 2, 0, 1, 2]), torch.zeros(6, 3))
    method = CoBoosting(batch_size=4, perturbation=0.05, share_step=0.3)
    lesson, shares = method.replay_batch(server(), ClassifierEnsemble(models), torch.ones(2), pool)
    assert not torch.equal(shares, torch.ones(2))
    assert float((lesson.images - normalize_pixels(pool.images)).abs().max()) > 0.01
    each = ClassifierEnsemble(models).predict_each(lesson.images)
    torch.testing.assert_close(lesson.logits, (each * shares.view(2, 1, 1)).mean(0))


# What it comes to.

DENSELY: dict[str, Any] = {
    "hardness": 0.0,
    "adversarial": 0.0,
    "stability": 1.0,
    "perturbation": 0.0,
    "share_step": 0.0,
    "temperature": 1.0,
}


def finished(out: Path, label: str) -> Any:
    at: Any = read_checkpoint(read_config(out).method[label], out / "trials" / label / "seed-0")
    return at.state


def test_without_its_parts_it_is_dense_bit_for_bit(tmp_path: Path) -> None:
    """With one batch after another remembered, and BatchNorm in the models."""
    small = TINY["co_boosting"]
    method = {
        "dense": small | {"boundary": 0.0},
        "co_boosting": small | DENSELY,
        **{name: {"kind": "co_boosting"} | small | DENSELY | change for name, change in PARTS.items()},
    }
    changes = {"data": {"size": 16}, "federation": {"architectures": ["cnn1", "cnn2"]}, "defaults": {"rounds": 3}}
    start(tiny(*method, method=method, **changes), tmp_path / "run")
    dense, *others = [finished(tmp_path / "run", label) for label in method]

    def same(other: Any) -> tuple[bool, bool]:
        """The images, and the students."""
        students = {name: learner.weights for name, learner in dense.students.items()}
        equal = all(
            torch.equal(value, other.students[name].weights[key])
            for name, weights in students.items()
            for key, value in weights.items()
        )
        return torch.equal(dense.pool.images, other.pool.images), equal

    assert same(others[0]) == (True, True)
    assert others[0].shares.tolist() == [1] * 4
    for name, other in zip(PARTS, others[1:], strict=True):
        assert same(other)[1] is False, f"{name} changes nothing"
    assert others[1 + list(PARTS).index("share_step")].shares.tolist() != [1] * 4


PARTS: dict[str, dict[str, Any]] = {
    "hardness": {"hardness": 1.0},
    "adversarial": {"adversarial": 1.0},
    "perturbation": {"perturbation": 0.03},
    "share_step": {"share_step": 0.1},
    "temperature": {"temperature": 4.0},
}

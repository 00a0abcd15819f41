import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Client
from genfed.core.rng import seeded, stream
from genfed.core.task import Data, Task
from genfed.training.classifier import Training
from genfed.training.distillation import divergence, train_pair
from genfed.training.fit import cross_entropy

LOG3 = math.log(3)


def scalar(weight: float) -> nn.Linear:
    with seeded(stream(0)):
        network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(weight)
    return network


def client(data: Data) -> Client:
    unused: Any = None
    cpu = torch.device("cpu")
    info, task = ClientInfo(0, "any", len(data)), Task("table", (1,), ("a", "b"))
    return Client(info, task, data, unused, stream(0), 0, cpu, "float32", unused)


def test_the_divergence_is_from_the_teacher_to_the_student() -> None:
    student = torch.tensor([[0.0, 0.0], [LOG3, 0.0]])
    teacher = torch.tensor([[LOG3, 0.0], [LOG3, 0.0]])  # ¾ and ¼
    apart = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert divergence(student, teacher).tolist() == [pytest.approx(apart), pytest.approx(0.0, abs=1e-7)]
    back = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert divergence(teacher, student)[0].item() == pytest.approx(back)


def test_temperature_divides_logits_and_its_square_comes_back() -> None:
    apart = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    got = divergence(torch.zeros(1, 2), torch.tensor([[2 * LOG3, 0.0]]), temperature=2.0)
    assert got.tolist() == [pytest.approx(4 * apart)]


def test_only_the_student_learns() -> None:
    student, teacher = torch.zeros(1, 2, requires_grad=True), torch.tensor([[LOG3, 0.0]], requires_grad=True)
    divergence(student, teacher).sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad.tolist() == [[pytest.approx(0.5 - 0.75), pytest.approx(0.5 - 0.25)]]
    assert teacher.grad is None


def test_cross_entropy_takes_soft_targets() -> None:
    network = nn.Linear(1, 2, bias=False)
    network.weight.data = torch.tensor([[0.0], [LOG3]])  # ¼ and ¾ at x = 1
    soft = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            losses = cross_entropy(network)(torch.ones(2, 1), soft, stream(0))
        expected = [-0.5 * math.log(0.25) - 0.5 * math.log(0.75), -math.log(0.75)]
        assert losses.tolist() == pytest.approx(expected, rel=1e-2 if precision == torch.bfloat16 else 1e-6)


def test_a_pair_learns_from_predictions_made_before_the_step() -> None:
    one, other = scalar(1.0), scalar(3.0)
    data = Data(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64))

    def loss(ours: Tensor, theirs: Tensor, y: Tensor) -> Tensor:
        return (ours * theirs.detach() + ours.detach() * theirs).flatten()

    training = Training(epochs=1, learning_rate=0.1)
    assert train_pair(one, other, client(data), training, loss) == 6.0
    assert one.weight.item() == pytest.approx(1 - 0.1 * 3)
    assert other.weight.item() == pytest.approx(3 - 0.1 * 1)  # in turn it would be 3 − 0.1 · 0.7
    assert train_pair(one, other, client(data), replace(training, epochs=0), loss) == 0.0

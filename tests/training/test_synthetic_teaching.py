"""FT, MD and SD by hand: labels, and what teachers say of an image."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genfed.core.client import Server
from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.core.store import MemoryStore
from genfed.core.task import Data, Task
from genfed.training.classifier import Training, train
from genfed.training.fit import cross_entropy
from genfed.training.pixels import normalize_pixels
from genfed.training.synthetic_dataset import SampleRequest, SyntheticBatch, SyntheticDataset
from genfed.training.synthetic_teaching import consensus_rows, soft_targets, teaching_set, train_student

TASK = Task("image", (1, 1, 2), ("a", "b"))


class Fixed(nn.Module):
    """The same logits for every image, whatever their dtype is asked to be; anything may be a teacher."""

    def __init__(self, *odds: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(odds).log())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


class Sloped(nn.Module):
    """Class 0 has the logit slope·x, class 1 has 0."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.slope * x.flatten(1).mean(1), torch.zeros(len(x))], 1)


def server() -> Server:
    made: Callable[..., Any] = lambda name, rng: Fixed(1, 1)  # noqa: E731
    return Server(TASK, (), 0, stream(0), 0, torch.device("cpu"), "float32", made)


def images(*pairs: tuple[int, int]) -> SyntheticBatch:
    """Of these (label, client)."""
    labels, clients = torch.tensor(pairs).T
    pixels = torch.arange(2 * len(pairs), dtype=torch.uint8).reshape(-1, 1, 1, 2)
    return SyntheticBatch(pixels, SampleRequest(labels.clone(), clients.clone(), labels * 0), labels * 0)


TEACHERS = {0: Fixed(3, 1), 7: Fixed(1, 1)}  # probabilities (3/4, 1/4) and (1/2, 1/2)
MADE = images((0, 0), (1, 7), (1, 0))


def losses(how: Any) -> list[float]:
    """Of a student with probabilities (1/5, 4/5)."""
    targets = soft_targets(MADE, server(), TEACHERS, how)
    loss = cross_entropy(Fixed(1, 4))(normalize_pixels(MADE.images), targets, stream(0))
    return [float(value) for value in loss.detach()]


def test_losses_by_hand() -> None:
    a, b = math.log(5), math.log(5 / 4)  # cross-entropies of the classes
    assert losses("fine_tuning") == pytest.approx([a, b, b])
    mean = 5 / 8 * a + 3 / 8 * b  # of both teachers: (5/8, 3/8)
    assert losses("multi_teacher") == pytest.approx([a + mean, b + mean, b + mean])
    first, second = 3 / 4 * a + 1 / 4 * b, 1 / 2 * a + 1 / 2 * b
    assert losses("specific_teacher") == pytest.approx([a + first, b + second, b + first])


def test_one_teacher_is_both_all_and_its_own() -> None:
    made = images((0, 0), (1, 0))
    one = {0: Fixed(3, 1)}
    assert torch.equal(*(soft_targets(made, server(), one, how) for how in ("multi_teacher", "specific_teacher")))


def test_fine_tuning_is_training_on_labels() -> None:
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(2, 2)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    one, other = server(), server()
    kept = SyntheticDataset().append(one, images((0, 0), (1, 7))).append(one, images((1, -1)))
    training = Training(epochs=3, batch_size=2)
    loss = train_student(networks[0], one, kept, {}, "fine_tuning", training)
    whole = kept.read(one)
    assert loss == train(networks[1], other, training, data=Data(whole.images, whole.request.labels)) > 0
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True))


def test_a_lesson_is_the_whole_set_and_reads_each_shard_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at = server()
    kept = SyntheticDataset().append(at, images((0, 0), (1, 7))).append(at, images((1, 0)))
    whole, read, reads = kept.read(at), MemoryStore.read, []

    def counted(self: MemoryStore, kind: Any, shard: Any) -> Any:
        reads.append(shard)
        return read(self, kind, shard)

    monkeypatch.setattr(MemoryStore, "read", counted)
    teaching = teaching_set(at, kept, TEACHERS, "specific_teacher")
    assert reads == list(kept.shards)
    assert torch.equal(teaching.x, whole.images)
    assert torch.equal(teaching.y, soft_targets(whole, at, TEACHERS, "specific_teacher"))


def test_a_student_comes_to_what_its_targets_are_and_teachers_stay() -> None:
    """With labels (1, 0) and a teacher's (3/4, 1/4) the loss is least at (7/8, 1/8)."""
    at = server()
    kept = SyntheticDataset().append(at, images(*[(0, 0)] * 8))
    student, teacher = Fixed(1, 1), Fixed(3, 1)
    before = teacher.logits.detach().clone()
    train_student(student, at, kept, {0: teacher}, "specific_teacher", Training(epochs=300, batch_size=8))
    assert student.logits.softmax(0).tolist() == pytest.approx([7 / 8, 1 / 8], abs=1e-3)
    assert torch.equal(teacher.logits, before)


def test_an_empty_set_teaches_nothing() -> None:
    student = Fixed(1, 2)
    before = student.logits.detach().clone()
    assert train_student(student, server(), SyntheticDataset(), {}, "fine_tuning", Training()) == 0
    assert torch.equal(student.logits, before)


def test_teachers_that_are_not_there_are_named() -> None:
    with pytest.raises(GenfedError, match="multi_teacher: there is no classifier to learn from"):
        soft_targets(MADE, server(), {}, "multi_teacher")
    with pytest.raises(GenfedError, match="specific_teacher: images represent client 7, whose classifier is missing"):
        soft_targets(MADE, server(), {0: TEACHERS[0]}, "specific_teacher")
    with pytest.raises(GenfedError, match="images represent client -1"):
        soft_targets(images((0, -1)), server(), TEACHERS, "specific_teacher")


def test_the_images_that_others_agree_on_are_kept() -> None:
    """Three teachers; of each client's images of a class those stay that the other two are surest of, by hand."""
    own = server()
    # Images of one value v: teacher k gives class 0 the score s_k·v and class 1 the score 0.
    teachers = {k: Sloped(slope) for k, slope in enumerate((1.0, -3.0, 2.0))}
    values = torch.tensor([0, 64, 128, 255, 255, 0, 128])
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1])
    clients = torch.tensor([1, 1, 1, 1, 0, 0, 0])
    images = values.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, *TASK.shape)
    made = SyntheticBatch(images, SampleRequest(labels, clients, labels), torch.zeros(7, dtype=torch.int64))
    synthetic = SyntheticDataset().append(own, made[:3]).append(own, made[3:])
    # Client 1's: teachers 0 and 2 rise with v, so the two brightest. Client 0's of class 0: −3 outweighs 2, the darker.
    # Its only one of class 1 stays.
    assert consensus_rows(own, synthetic, teachers, 0.5).tolist() == [2, 3, 5, 6]
    assert consensus_rows(own, synthetic, teachers, 1.0).tolist() == list(range(7))
    assert consensus_rows(own, synthetic, {1: teachers[1]}, 0.5).tolist() == list(range(7))

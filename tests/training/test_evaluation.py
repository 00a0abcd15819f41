import pytest
import torch
from torch import Tensor, nn

from genfed.core.task import Data
from genfed.training.evaluation import ClassCounts, evaluate, predict, reweighted_accuracy


class Says(nn.Module):
    """The class is the first feature; in training mode it is always 0."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x[:, 0].long() * (not self.training), 4).float()


X = torch.tensor([[0.0], [1.0], [1.0], [2.0], [0.0], [1.0]])
Y = torch.tensor([0, 1, 2, 2, 1, 1])


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6, 500])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_counts_per_class(batch_size: int, precision: str) -> None:
    counts = evaluate(Says().train(), Data(X, Y), 4, precision, batch_size)
    assert counts.correct.tolist() == [1, 2, 1, 0]
    assert counts.total.tolist() == [1, 3, 2, 0]
    assert counts.correct.dtype == counts.total.dtype == torch.int64


@pytest.mark.parametrize(
    ("held", "accuracy"),
    [
        ([7, 0, 0, 0], 1.0),
        ([1, 3, 0, 0], (1 * 1 + 3 * 2 / 3) / 4),
        ([0, 5, 15, 0], (5 * 2 / 3 + 15 * 1 / 2) / 20),
        ([1, 3, 2, 0], 4 / 6),  # weighted as the test part is: the plain accuracy
        ([1, 3, 2, 94], 4 / 6),  # a class that was not tested is left out
        ([0, 0, 0, 94], None),
    ],
)
def test_each_class_weighs_as_much_as_one_has_of_it(held: list[int], accuracy: float | None) -> None:
    found = reweighted_accuracy(ClassCounts(torch.tensor([1, 2, 1, 0]), torch.tensor([1, 3, 2, 0])), torch.tensor(held))
    assert found == (None if accuracy is None else pytest.approx(accuracy))


def test_nothing_to_classify() -> None:
    counts = evaluate(Says(), Data(X[:0], Y[:0]), 4)
    assert (counts.correct.tolist(), counts.total.tolist()) == ([0] * 4, [0] * 4)


def test_pixels_are_scaled_as_in_training() -> None:
    counts = evaluate(Says(), Data(torch.full((3, 1), 255, dtype=torch.uint8), torch.tensor([1, 1, 0])), 4)
    assert counts.correct.tolist() == [0, 2, 0, 0]


def test_scoring_leaves_weights_and_statistics_alone() -> None:
    network = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.9), nn.Linear(1, 4))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    one, other = evaluate(network, Data(X, Y), 4), evaluate(network.train(), Data(X, Y), 4)
    assert one.correct.tolist() == other.correct.tolist()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_predictions_are_those_of_eval_mode_whatever_the_batches() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Flatten()).train()
    x = torch.arange(14, dtype=torch.uint8).reshape(7, 2)
    got = predict(network, x, batch_size=3)
    assert torch.allclose(got, x.float() / 127.5 - 1, atol=1e-4)
    assert network.get_submodule("0").get_buffer("num_batches_tracked").item() == 0
    assert not predict(nn.Linear(1, 2), torch.ones(3, 1)).requires_grad

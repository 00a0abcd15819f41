import torch
from torch import Tensor, nn

from genfed.training.ensemble import ClassifierEnsemble


def normalized(mean: list[float], variance: list[float]) -> nn.Module:
    norm = nn.BatchNorm1d(2)
    norm.running_mean, norm.running_var = torch.tensor(mean), torch.tensor(variance)
    return nn.Sequential(norm, nn.Linear(2, 2))


def constant(*logits: float) -> nn.Module:
    network = nn.Linear(2, len(logits))
    nn.init.zeros_(network.weight)
    network.bias.data = torch.tensor(logits)
    return network


X = torch.tensor([[1.0, 2.0], [3.0, -2.0]])
"""Mean (2, 0), variance (1, 4)."""


def gap(*models: nn.Module, x: Tensor = X) -> float:
    return float(ClassifierEnsemble(models)(x)[1])


def test_distance_of_statistics_by_hand() -> None:
    assert gap(normalized([2.0, 0.0], [1.0, 4.0])) == 0
    assert gap(normalized([-1.0, 4.0], [1.0, 4.0])) == 5, "‖(3, −4)‖"
    assert gap(normalized([-1.0, 4.0], [1.0, 16.0])) == 5 + 12, "norms, not squares, of means and of variances"
    assert gap(normalized([-1.0, 4.0], [1.0, 4.0]), normalized([2.0, 0.0], [1.0, 3.0])) == (5 + 1) / 2, (
        "the mean over models"
    )
    assert gap(normalized([-1.0, 4.0], [1.0, 4.0]), constant(0.0, 0.0)) == 2.5, (
        "a model without such layers counts as 0"
    )
    assert gap(constant(0.0, 0.0)) == 0


def test_layers_add_up_and_maps_are_compared_per_channel() -> None:
    """First 1×1 maps of one channel with mean 2 and variance 1; then, normalized by the kept 0 and 1, the same."""
    network = nn.Sequential(nn.BatchNorm2d(1, eps=0), nn.BatchNorm2d(1), nn.Flatten())
    x = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2)
    assert gap(network, x=x) == 2 + 2


def test_a_distance_of_nothing_has_a_gradient() -> None:
    x = X.clone().requires_grad_()
    ClassifierEnsemble([normalized([2.0, 0.0], [1.0, 4.0])])(x)[1].backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_answers_are_the_mean_of_logits_and_models_stay_as_they_are() -> None:
    models = [normalized([0.0, 0.0], [1.0, 1.0]), constant(1.0, 5.0)]
    expected = (models[0].eval()(X).detach() + torch.tensor([1.0, 5.0])) / 2
    before = {k: v.clone() for k, v in nn.ModuleList(models).state_dict().items()}
    logits, _ = ClassifierEnsemble(models)(X)
    torch.testing.assert_close(logits, expected)
    assert not logits.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in nn.ModuleList(models).state_dict().items())


def test_each_model_counts_for_its_share() -> None:
    models = [constant(1.0, 5.0), constant(3.0, -1.0)]
    assert ClassifierEnsemble(models, torch.tensor([2.0, 0.5]))(X)[0][0].tolist() == [(2 + 1.5) / 2, (10 - 0.5) / 2]
    assert torch.equal(ClassifierEnsemble(models, torch.ones(2))(X)[0], ClassifierEnsemble(models)(X)[0])
    assert ClassifierEnsemble(models).predict_each(X).shape == (2, 2, 2)

"""How good the examples of a generator are: measures of two sets of vectors, pure functions of tensors.

Vectors are [n, d]: examples laid flat, or a classifier's features. Everything is computed in float64 on the CPU.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from genfed.metrics.nearest_neighbors import distance_ratios, pairwise_distances
from genfed.training.pixels import normalize_pixels

NEIGHBOURS = 5
"""k of precision, recall, density and coverage, as Naeem et al. have it."""


@torch.no_grad()
def network_features(network: nn.Module, x: Tensor, batch_size: int = 500) -> Tensor:
    """What the network's last linear layer is given, in eval mode: x [n, *shape] → [n, d] on the CPU."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    found: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, given: found.append(given[0].flatten(1).double().cpu()))
    try:
        for batch in torch.split(x, batch_size):
            network.eval()(normalize_pixels(batch.to(last.weight.device)))
    finally:
        handle.remove()
    return torch.cat(found)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance of the Gaussians with the sets' means and covariances: ‖μ_a − μ_b‖² + tr(C_a + C_b −
    2(C_a·C_b)^½), at least 0. Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, arXiv 1706.08500.
    """
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # (C_a·C_b)^½ has the trace of (C_a^½·C_b·C_a^½)^½, which is symmetric.
    both = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * both
    return max(0.0, float(distance))


def precision_recall(real: Tensor, made: Tensor, k: int = NEIGHBOURS) -> Mapping[str, float]:
    """Precision and recall (Kynkäänniemi, Karras, Laine, Lehtinen, Aila, arXiv 1904.06991), density and coverage
    (Naeem, Oh, Uh, Choi, Yoo, arXiv 2002.09797). A vector's ball reaches to the k-th nearest other of its own set.

    precision: of what is made, the fraction that lies in the ball of a real vector; recall: of the real, the fraction
    that lies in the ball of one that is made; density: how many real balls hold one that is made, over k, a mean (it
    may be above 1); coverage: the fraction of real balls that hold any.
    """
    between = pairwise_distances(real, made)  # [real, made]
    in_real = between <= _radii(real, k)[:, None]
    in_made = between <= _radii(made, k)[None, :]
    return {
        "precision": float(in_real.any(0).double().mean()),
        "recall": float(in_made.any(1).double().mean()),
        "density": float(in_real.double().sum(0).mean() / k),
        "coverage": float(in_real.any(1).double().mean()),
    }


def memorization(train: Tensor, fresh: Tensor, made: Tensor) -> float:
    """The mean nearest-neighbour distance ratio of GeFL (arXiv 2412.18460): over the training vectors x, the mean of
    min_v d(x, v) / min_s d(x, s), v real ones that were not trained on and s made ones; above 1 is memorisation.

    differs from the paper: d is Euclidean, not LPIPS (which is in `report.lpips`); and a ratio counts for LARGEST at
    most, since that of an exact copy is infinite (1 where both distances are 0, which says nothing).
    """
    return float(distance_ratios(train, fresh, made).mean())


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance from each vector to the k-th nearest other (to the farthest where there are fewer)."""
    return pairwise_distances(x, x).kthvalue(min(k, len(x) - 1) + 1, dim=1).values  # the nearest of all is itself


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d], with n − 1."""
    mean = x.double().mean(0)
    centred = x.double() - mean
    return mean, centred.T @ centred / max(1, len(x) - 1)

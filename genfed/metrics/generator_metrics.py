"""Metrics of the quality of generated examples. They compare two sets of vectors, and are pure functions of tensors.

Vectors are [n, d]: flattened examples, or a classifier's features. Everything is computed in float64 on the CPU.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from genfed.metrics.nearest_neighbors import distance_ratios, pairwise_distances
from genfed.training.pixels import normalize_pixels

NEIGHBORS = 5
"""k of precision, recall, density and coverage, as in Naeem et al."""


@torch.no_grad()
def network_features(network: nn.Module, x: Tensor, batch_size: int = 500) -> Tensor:
    """Returns the inputs of the network's last linear layer, in eval mode: x [n, *shape] → [n, d] on the CPU."""
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
    """Returns the Fréchet distance of the Gaussians with the sets' means and covariances: ‖μ_a − μ_b‖² + tr(C_a + C_b −
    2(C_a·C_b)^½), at least 0. Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, arXiv 1706.08500.
    """
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # (C_a·C_b)^½ has the trace of (C_a^½·C_b·C_a^½)^½, which is symmetric.
    both = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * both
    return max(0.0, float(distance))


def precision_recall(real: Tensor, generated: Tensor, k: int = NEIGHBORS) -> Mapping[str, float]:
    """Returns precision and recall (Kynkäänniemi, Karras, Laine, Lehtinen, Aila, arXiv 1904.06991), density and
    coverage (Naeem, Oh, Uh, Choi, Yoo, arXiv 2002.09797). Every vector has a ball whose radius is the distance to its
    k-th nearest neighbor in its own set.

    precision: the fraction of the generated vectors that lie in a real vector's ball. recall: the fraction of the real
    vectors that lie in a generated vector's ball. density: the mean number of real balls that contain a generated
    vector, divided by k; it can be above 1. coverage: the fraction of the real balls that contain a generated vector.

    Args:
        real: vectors [n, d] of real examples.
        generated: vectors [m, d] of generated examples.
        k: the neighbor that sets the radius.
    """
    between = pairwise_distances(real, generated)  # [real, generated]
    in_real = between <= _radii(real, k)[:, None]
    in_generated = between <= _radii(generated, k)[None, :]
    return {
        "precision": float(in_real.any(0).double().mean()),
        "recall": float(in_generated.any(1).double().mean()),
        "density": float(in_real.double().sum(0).mean() / k),
        "coverage": float(in_real.any(1).double().mean()),
    }


def memorization(train: Tensor, fresh: Tensor, generated: Tensor) -> float:
    """Returns the mean of `distance_ratios`, the nearest-neighbor distance ratio of GeFL (arXiv 2412.18460). Above 1
    means memorization.

    differs from the paper: the distance is Euclidean, not LPIPS (which is in `metrics.lpips`), and a ratio is at most
    LARGEST, since that of an exact copy is infinite.

    Args:
        train: vectors of the training examples.
        fresh: vectors of real examples that were not used in training.
        generated: vectors of generated examples.
    """
    return float(distance_ratios(train, fresh, generated).mean())


def _radii(x: Tensor, k: int) -> Tensor:
    """Returns the distance from each vector to its k-th nearest neighbor, or to the farthest if there are fewer."""
    return pairwise_distances(x, x).kthvalue(min(k, len(x) - 1) + 1, dim=1).values  # the first is the vector itself


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean [d] and the covariance [d, d] (with n − 1)."""
    mean = x.double().mean(0)
    centered = x.double() - mean
    return mean, centered.T @ centered / max(1, len(x) - 1)

"""Property inference: the mix of classes at a client, from the classifier that it uploads.

With shadows of one upload, as Ganju, Wang, Yang, Gunter, Borisov, Property Inference Attacks on Fully Connected Neural
Networks using Permutation Invariant Representations, CCS 2018, and Melis, Song, De Cristofaro, Shmatikov, Exploiting
Unintended Feature Leakage in Collaborative Learning, IEEE S&P 2019, arXiv 1805.04049. In place of their networks of
weights a regression on what the upload answers, which fits every architecture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.audits.audit import Audit, Case, NotPossible
from genfed.audits.client_uploads import draw_by_shares, find_classifier_phase, simulate_upload
from genfed.audits.findings import Estimate, Findings, Reading
from genfed.audits.membership_metrics import mean_with_interval
from genfed.core.aggregate import ClientInfo
from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.training.evaluation import predict

NEARER, DISTANCE, LARGEST = "nearer than a guess", "total variation from the truth", "largest class guessed right"
FEWEST = 10
"""Minimum number of held-out examples on which a shadow is trained, and with which classifiers are queried."""


@dataclass(frozen=True)
class MixRegression:
    """Answers z [n, 2, classes] → shares softmax(offset + Σ slope · z), with two slopes for all classes, so that few
    shadows suffice. The answers of a fully trained classifier follow log-shares, those of a little trained one shares.
    """

    offset: Tensor
    slope: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return (self.offset + (self.slope[:, None] * z).sum(1)).softmax(1)


@dataclass(frozen=True)
class HeldOutParts:
    """The held-out examples in parts, and their mix."""

    own: Data
    """Examples on which the attacker trains."""
    probe: Data
    """Examples for which uploads are queried."""
    fresh: Data
    """Examples of the control with nothing to find."""
    guess: Tensor
    """Mix of classes of all held-out examples, float64 [classes]."""


@settings
class PropertyInference(Audit):
    """Infers a client's mix of classes from the classifier that it uploads."""

    sees = ("uploads",)
    attacker = (
        "The server, or anyone who reads what a client sends: they have the classifier that a client uploads (in "
        "one round more, where there are several) and the number of its examples, know how it trains, and have real "
        "examples of their own. With those they do its part of the round, in mixes that they know."
    )

    clients: Annotated[int, Field(ge=1)] = 8
    """Maximum number of clients whose uploads are attacked."""
    shadows: Annotated[int, Field(ge=3)] = 12
    """Uploads that the attacker simulates for each architecture, each with another random mix of classes."""
    planted: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of a client's examples that are of one class in the planted leak."""

    def examine(self, case: Case) -> Findings:
        find_classifier_phase(case)
        parts = self._split_held_out(case)
        attacked = [(h.client, case.train[h.rows]) for h in case.holdings[: self.clients]]
        names = sorted({info.architecture for info, _ in attacked})
        regressions = {
            name: self._train_regression(case, [a for a in attacked if a[0].architecture == name], parts)
            for name in names
        }
        truth = [data for _, data in attacked]
        planted, null = self._draw_controls(case, attacked, parts)
        run_numbers, control_numbers, null_numbers = (
            attack_mixes(case, name, regressions, parts, [info for info, _ in attacked], trained_on, true)
            for name, trained_on, true in (
                ("this run", truth, truth),
                ("planted leak", planted, planted),
                ("nothing to find", null, truth),
            )
        )
        reading = Reading("mix of classes", NEARER, 0.0, run_numbers, control_numbers, null_numbers)
        notes = (
            "A guess is the mix of held-out examples. Nearer: by how much of the total variation (from 0, the same "
            "mix, to 1); its interval is over clients and classes.",
            f"Planted leak: {self.planted:.0%} of a client's examples are of one class.",
            "Nothing to find: the uploads of clients that have as many held-out examples, in the mix that is guessed.",
        )
        sizes = {
            "clients": len(attacked),
            "shadow uploads": self.shadows * len(names),
            "examples queried": len(parts.probe),
        }
        return Findings((reading,), sizes, notes)

    def _split_held_out(self, case: Case) -> HeldOutParts:
        """Returns parts of the held-out examples, each with the mix of classes of all.

        Raises:
            NotPossible: there are too few, or they are of one class.
        """
        if len(case.held_out) < 4 * FEWEST:
            raise NotPossible(
                f"there are {len(case.held_out)} held-out examples, where an audit takes {4 * FEWEST}: more would help"
            )
        order = torch.randperm(len(case.held_out), generator=case.rng("property_inference", "held out"))
        order = order[case.held_out.y[order].argsort(stable=True)]  # so that each part has the mix of all
        own, probe = case.held_out[order[0::4]], case.held_out[order[1::4]]
        fresh = case.held_out[torch.cat([order[2::4], order[3::4]])]
        guess = class_shares(case.held_out.y, len(case.task.classes))
        if len(guess) < 2 or float(guess.max()) == 1:
            raise NotPossible("the held-out examples are of one class")
        return HeldOutParts(own, probe, fresh, guess)

    def _draw_controls(
        self, case: Case, attacked: Sequence[tuple[ClientInfo, Data]], parts: HeldOutParts
    ) -> tuple[list[Data], list[Data]]:
        """Returns for each client the examples of the planted leak, and those of the control with nothing to find."""
        classes = len(parts.guess)
        planted, null = [], []
        for place, (info, data) in enumerate(attacked):
            rng = case.rng("property_inference", "mixes", info.id)
            skewed = torch.full((classes,), (1 - self.planted) / (classes - 1))
            skewed[place % classes] = self.planted
            planted.append(draw_by_shares(case.train, skewed, len(data), rng))
            null.append(draw_by_shares(parts.fresh, parts.guess, len(data), rng))
        return planted, null

    def _train_regression(
        self, case: Case, attacked: Sequence[tuple[ClientInfo, Data]], parts: HeldOutParts
    ) -> MixRegression:
        """Returns a regression from uploads of one architecture to mixes, fitted to the attacker's own uploads."""
        classes, rng = len(case.task.classes), case.rng("property_inference", "shadows", attacked[0][0].architecture)
        z, mixes = [], []
        for number in range(self.shadows):
            info, data = attacked[number % len(attacked)]
            case.notify(f"shadow upload {number + 1} of {self.shadows}, {info.architecture}")
            part = draw_by_shares(parts.own, skewed_shares(classes, rng), len(data), rng)
            z.append(log_probabilities(simulate_upload(case, info, part, f"shadow {number}"), parts.probe, case.device))
            mixes.append(class_shares(part.y, classes))
        return fit_regression(torch.stack(z), torch.stack(mixes))


def attack_mixes(
    case: Case,
    name: str,
    regressions: Mapping[str, MixRegression],
    parts: HeldOutParts,
    clients: Sequence[ClientInfo],
    trained_on: Sequence[Data],
    true: Sequence[Data],
) -> dict[str, Estimate]:
    """Estimates the mix of classes of each client from a simulated upload, and measures the estimates.

    Args:
        case: the trial.
        name: names the draws.
        regressions: from an upload to a mix, by architecture.
        parts: the parts of the held-out examples.
        clients: the attacked clients.
        trained_on: examples that each of them trains on.
        true: examples with the mixes that the estimates are compared with.
    """
    case.notify(f"{name}: {len(clients)} uploads")
    found = []
    for info, data in zip(clients, trained_on, strict=True):
        network = simulate_upload(case, info, data, f"property {name}")
        found.append(regressions[info.architecture](log_probabilities(network, parts.probe, case.device)[None])[0])
    mixes = torch.stack([class_shares(data.y, len(parts.guess)) for data in true])
    rng = case.rng("property_inference", "bootstrap", name)
    measured = measure_mixes(torch.stack(found), mixes, parts.guess)
    return {number: mean_with_interval(values, rng) for number, values in measured.items()}


def log_probabilities(network: nn.Module, probe: Data, device: torch.device) -> Tensor:
    """Returns the mean log-probability of each class over the probe's examples of it, and over the other examples,
    float64 [2, classes]; 0 without examples.

    Raises:
        NotPossible: a probability is not finite.
    """
    answers = predict(network, probe.x.to(device)).double().log_softmax(1).cpu()
    if not bool(answers.isfinite().all()):
        raise NotPossible("an upload has diverged: its answers are not finite")
    own = F.one_hot(probe.y, answers.shape[1]).double()
    return torch.stack([(answers * part).sum(0) / part.sum(0).clamp(min=1) for part in (own, 1 - own)])


def fit_regression(z: Tensor, mixes: Tensor, ridge: float = 1e-2) -> MixRegression:
    """Returns the regression from answers z [n, 2, classes] to mixes [n, classes] with the least cross-entropy plus
    ridge.
    """
    scale = z.std((0, 2)).clamp(min=1e-12)
    offset = torch.zeros(z.shape[2], dtype=z.dtype, requires_grad=True)
    slope = torch.zeros(2, dtype=z.dtype, requires_grad=True)
    search = torch.optim.LBFGS([offset, slope], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        scores = offset + ((slope / scale)[:, None] * z).sum(1)
        value = F.cross_entropy(scores, mixes) + ridge * (offset.square().sum() + slope.square().sum())
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    return MixRegression(offset.detach(), slope.detach() / scale)


def measure_mixes(found: Tensor, truth: Tensor, guess: Tensor) -> dict[str, Tensor]:
    """Compares estimated and true mixes [clients, classes], and the guess [classes]. Returns by name the values whose
    mean is the number.
    """
    half = truth.shape[1] / 2  # a total variation is half the sum over classes, and this their mean
    gain = (guess - truth).abs() - (found - truth).abs()
    return {
        NEARER: (half * gain).flatten(),
        DISTANCE: (half * (found - truth).abs()).flatten(),
        LARGEST: (found.argmax(1) == truth.argmax(1)).double(),
    }


def class_shares(y: Tensor, classes: int) -> Tensor:
    """Returns the mix of labels, float64 [classes]."""
    return torch.bincount(y, minlength=classes).double() / len(y)


def skewed_shares(classes: int, rng: torch.Generator) -> Tensor:
    """Returns random shares, float64 [classes], from about even to mostly one class."""
    shares = torch.empty(classes, dtype=torch.float64).exponential_(generator=rng).square()
    return shares / shares.sum()

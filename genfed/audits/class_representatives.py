"""Class representatives: images to which a client's uploaded classifier gives a high score, and whether they show the
client's examples.

Model inversion by gradient: Fredrikson, Jha, Ristenpart, Model Inversion Attacks that Exploit Confidence Information,
CCS 2015 (MI-Face). With the statistics that BatchNorm layers keep and a total variation: Yin, Molchanov, Li, Alvarez,
Mallya, Hoiem, Jha, Kautz, Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion, CVPR 2020,
arXiv 1912.08795, Eqs. 3-5.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.audits.audit import Audit, Case, NotPossible
from genfed.audits.candidates import match_classes, overfit_control, pair_examples
from genfed.audits.client_uploads import find_classifier_phase, simulate_upload
from genfed.audits.findings import Estimate, Findings, Picture, Reading
from genfed.audits.membership_metrics import AUC, mean_with_interval, membership_numbers
from genfed.audits.reconstruction import psnr, ssim, variation
from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.training.ensemble import ClassifierEnsemble
from genfed.training.pixels import denormalize_pixels, normalize_pixels

PSNR, SSIM, NEARER = "PSNR of the nearest one, dB", "SSIM of the nearest one", "PSNR above a held-out one's, dB"


@dataclass(frozen=True)
class RepresentativeTarget:
    """An attacked classifier, and images that are compared with its representatives, the same number of each class."""

    network: nn.Module
    members: Data
    others: Data


@settings
class ClassRepresentatives(Audit):
    """Images of each class from a client's uploaded classifier, and whether they are near its training examples."""

    sees = ("uploads",)
    attacker = (
        "The server, or anyone who reads what a client sends: they have the classifier that a client uploads (in "
        "one round more, where there are several), and some real examples of each class, with whose mean they begin."
    )

    clients: Annotated[int, Field(ge=1)] = 3
    """Maximum number of clients whose classifiers are attacked."""
    each: Annotated[int, Field(ge=1)] = 2
    """Representatives per class."""
    steps: Annotated[int, Field(ge=1)] = 200
    """Steps of the search, by Adam."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of Adam."""
    smoothness: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the images' total variation."""
    statistics: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the distance of their statistics from those of BatchNorm layers. 0: not used."""
    planted: Annotated[int, Field(ge=1)] = 2
    """Training examples of each class that the planted leak, a new classifier, memorizes."""
    planted_epochs: Annotated[int, Field(ge=1)] = 100
    """Epochs of the planted leak."""

    def examine(self, case: Case) -> Findings:
        if case.task.kind != "image":
            raise NotPossible("the examples are no images")
        find_classifier_phase(case)
        chosen = replace(case, holdings=case.holdings[: self.clients])
        attacked, known = pair_examples(chosen, self.clients * len(case.held_out))  # as many as possible
        own, fresh = case.held_out[known[::2]], case.held_out[known[1::2]]
        run = []
        for holding, each in zip(chosen.holdings, attacked, strict=True):
            network = simulate_upload(case, holding.client, case.train[holding.rows], "representatives")
            run.append(RepresentativeTarget(network, case.train[each.members], case.held_out[each.others]))
        few = self._few(case, case.train, "planted")
        others = case.held_out[torch.cat([each.others for each in attacked])]
        one, other = match_classes(few.y, others.y)
        planted = [RepresentativeTarget(self._overfit(case, few, "planted"), few[one], others[other])]
        unrelated = self._overfit(case, self._few(case, fresh, "null"), "null")
        null = [RepresentativeTarget(unrelated, target.members, target.others) for target in run]

        (found, picture), (control, _), (nothing, _) = (
            self._measure(case, name, targets, own)
            for name, targets in (("this run", run), ("planted leak", planted), ("nothing to find", null))
        )
        notes = (
            f"An example scores by the cosine between how it and how the nearest of {self.each} representatives "
            "differs from the mean of the attacker's images of its class.",
            f"Planted leak: a classifier of the first client's architecture with new weights, trained for "
            f"{self.planted_epochs} epochs on {self.planted} training examples of each class; only these are attacked.",
            "Nothing to find: a classifier trained so on held-out examples, in the place of each client's.",
        )
        reading = Reading("class representatives", AUC, 0.5, found, control, nothing)
        count = sum(len(target.members) for target in run)
        sizes = {"clients": len(run), "members": count, "non-members": count}
        return Findings((reading,), sizes, notes, (picture,))

    def _measure(
        self, case: Case, name: str, targets: Sequence[RepresentativeTarget], own: Data
    ) -> tuple[dict[str, Estimate], Picture]:
        """Returns the numbers over all targets, and a picture of the first target."""
        members, others, near, shown = [], [], [], []
        centres = _means(own, len(case.task.classes))
        for i, target in enumerate(targets):
            case.notify(f"{name}: classifier {i + 1} of {len(targets)}, {self.steps} steps")
            rng = case.rng("class_representatives", "start", name, i)
            found = self.search_representatives(target.network, centres, rng).cpu()
            members.append(likeness(found, centres, target.members))
            others.append(likeness(found, centres, target.others))
            for c in torch.unique(target.members.y).tolist():
                real = (normalize_pixels(part.x[part.y == c]) for part in (target.members, target.others))
                mine, theirs = (_nearest(found[:, c], images) for images in real)
                near.append((found[:, c], mine, theirs))
                if i == 0:
                    shown.append(torch.stack([found[0, c], mine[0], theirs[0]]))
        rng = case.rng("class_representatives", "bootstrap", name)
        found, mine, theirs = (torch.cat(images) for images in zip(*near, strict=True))
        close = {
            PSNR: psnr(found, mine),
            SSIM: ssim(found, mine),
            NEARER: psnr(found, mine) - psnr(found, theirs),
        }
        numbers = membership_numbers(torch.cat(members), torch.cat(others), rng)
        numbers |= {name: mean_with_interval(values, rng) for name, values in close.items()}
        picture = Picture(
            "Representatives of the classes from the first client's classifier, the nearest of its training examples, "
            "and the nearest of as many held-out ones.",
            ("representative", "training example", "held-out example"),
            denormalize_pixels(torch.stack(shown[:10], 1)),
        )
        return numbers, picture

    def search_representatives(self, network: nn.Module, centres: Tensor, rng: torch.Generator) -> Tensor:
        """Returns images [each, classes, C, H, W] with high scores of their classes; the search starts from mean
        images.
        """
        device = next(network.parameters()).device
        teacher, classes = ClassifierEnsemble([copy.deepcopy(network)]), len(centres)
        y = torch.arange(classes, device=device).repeat(self.each)
        # differs from the paper: it starts from noise; from the mean of real images the search finds more.
        start = centres.repeat(self.each, 1, 1, 1)
        x = (start + 0.03 * torch.randn(start.shape, generator=rng)).clamp(-1, 1).to(device).requires_grad_()
        adam = torch.optim.Adam([x], lr=self.learning_rate)
        for _ in range(self.steps):
            logits, gap = teacher(x)
            loss = F.cross_entropy(logits, y) + self.statistics * gap + self.smoothness * variation(x)
            (x.grad,) = torch.autograd.grad(loss, [x])
            adam.step()
            with torch.no_grad():
                x.clamp_(-1, 1)
        return x.detach().view(self.each, *centres.shape)

    def _few(self, case: Case, data: Data, name: str) -> Data:
        """Returns `planted` examples of each class, at random."""
        order = torch.randperm(len(data), generator=case.rng("class_representatives", name))
        y = data.y[order]
        rows = [order[y == c][: self.planted] for c in torch.unique(y).tolist()]
        return data[torch.cat(rows)]

    def _overfit(self, case: Case, data: Data, name: str) -> nn.Module:
        """Returns a new classifier that has memorized these examples."""
        draws = case.rng("class_representatives", "weights", name)
        network = case.server("class_representatives").new_network(case.holdings[0].client.architecture, draws)
        return overfit_control(network, data.to(case.device), self.planted_epochs, draws)


def likeness(representatives: Tensor, centres: Tensor, data: Data) -> Tensor:
    """Returns for each example the largest cosine [n] between its difference from the centre of its class and that of a
    representative [each, classes, C, H, W] of the class.
    """
    directions = F.normalize((representatives - centres).flatten(2), dim=2)[:, data.y]
    own = F.normalize((normalize_pixels(data.x) - centres[data.y]).flatten(1), dim=1)
    return (directions * own).sum(2).amax(0)


def _means(data: Data, classes: int) -> Tensor:
    """Returns the mean image of each class [classes, C, H, W]; for a class without images, the mean of all."""
    x = normalize_pixels(data.x)
    return torch.stack([x[data.y == c].mean(0) if bool((data.y == c).any()) else x.mean(0) for c in range(classes)])


def _nearest(found: Tensor, real: Tensor) -> Tensor:
    """Returns the image of `real` that is nearest to each of `found`."""
    return real[torch.cdist(found.flatten(1), real.flatten(1)).argmin(1)]

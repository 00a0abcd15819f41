"""Class representatives: images of which a client's uploaded classifier is sure, and whether they show its examples.

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
    """A classifier under attack, and images that are compared with its representatives: as many of each class."""

    network: nn.Module
    members: Data
    others: Data


@settings
class ClassRepresentatives(Audit):
    """Images of each class by a client's uploaded classifier, and whether they lie nearer to its training examples."""

    sees = ("uploads",)
    attacker = (
        "The server, or whoever reads what a client sends it: they have the classifier that a client uploads (in one "
        "round more, where there are several), and some real examples of each class, whose mean they start from."
    )

    clients: Annotated[int, Field(ge=1)] = 3
    """Whose classifiers are attacked, at most."""
    each: Annotated[int, Field(ge=1)] = 2
    """Representatives of a class."""
    steps: Annotated[int, Field(ge=1)] = 200
    """Of the search, by Adam."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Of Adam."""
    smoothness: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the images' total variation."""
    statistics: Annotated[float, Field(ge=0)] = 0.1
    """Weight of how far they are from the statistics that BatchNorm layers keep; 0: classes alone lead."""
    planted: Annotated[int, Field(ge=1)] = 2
    """Of the planted leak: training examples of each class that a new classifier learns by heart."""
    planted_epochs: Annotated[int, Field(ge=1)] = 100
    """Of that."""

    def examine(self, case: Case) -> Findings:
        if case.task.kind != "image":
            raise NotPossible("the examples are no images")
        find_classifier_phase(case)
        attacked = replace(case, holdings=case.holdings[: self.clients])
        asked, known = pair_examples(attacked, self.clients * len(case.held_out))  # all that there are
        own, fresh = case.held_out[known[::2]], case.held_out[known[1::2]]
        run = []
        for holding, each in zip(attacked.holdings, asked, strict=True):
            network = simulate_upload(case, holding.client, case.train[holding.rows], "representatives")
            run.append(RepresentativeTarget(network, case.train[each.members], case.held_out[each.others]))
        few = self._few(case, case.train, "planted")
        others = case.held_out[torch.cat([each.others for each in asked])]
        one, other = match_classes(few.y, others.y)
        planted = [RepresentativeTarget(self._overfit(case, few, "planted"), few[one], others[other])]
        stranger = self._overfit(case, self._few(case, fresh, "null"), "null")
        null = [RepresentativeTarget(stranger, target.members, target.others) for target in run]

        (found, picture), (control, _), (nothing, _) = (
            self._told(case, name, targets, own)
            for name, targets in (("this run", run), ("planted leak", planted), ("nothing to find", null))
        )
        notes = (
            f"An example scores by the cosine between how it and how the nearest of {self.each} representatives "
            "differs from the mean of the attacker's images of its class.",
            f"Planted leak: a classifier of the first client's architecture with new weights, trained for "
            f"{self.planted_epochs} epochs on {self.planted} training examples of each class, which alone are asked "
            "about.",
            "Nothing to find: a classifier trained so on held-out examples, in the place of each client's.",
        )
        reading = Reading("class representatives", AUC, 0.5, found, control, nothing)
        count = sum(len(target.members) for target in run)
        sizes = {"clients": len(run), "members": count, "non-members": count}
        return Findings((reading,), sizes, notes, (picture,))

    def _told(
        self, case: Case, name: str, targets: Sequence[RepresentativeTarget], own: Data
    ) -> tuple[dict[str, Estimate], Picture]:
        """The numbers over all targets, and a picture of the first."""
        members, others, near, shown = [], [], [], []
        centres = _means(own, len(case.task.classes))
        for i, target in enumerate(targets):
            case.tell(f"{name}: classifier {i + 1} of {len(targets)}, {self.steps} steps")
            rng = case.rng("class_representatives", "start", name, i)
            made = self.representatives(target.network, centres, rng).cpu()
            members.append(likeness(made, centres, target.members))
            others.append(likeness(made, centres, target.others))
            for c in torch.unique(target.members.y).tolist():
                real = (normalize_pixels(part.x[part.y == c]) for part in (target.members, target.others))
                mine, theirs = (_nearest(made[:, c], images) for images in real)
                near.append((made[:, c], mine, theirs))
                if i == 0:
                    shown.append(torch.stack([made[0, c], mine[0], theirs[0]]))
        rng = case.rng("class_representatives", "bootstrap", name)
        made, mine, theirs = (torch.cat(images) for images in zip(*near, strict=True))
        close = {
            PSNR: psnr(made, mine),
            SSIM: ssim(made, mine),
            NEARER: psnr(made, mine) - psnr(made, theirs),
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

    def representatives(self, network: nn.Module, centres: Tensor, rng: torch.Generator) -> Tensor:
        """Images [each, classes, C, H, W] that the network is sure of, from the classes' mean images on."""
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
        """So many examples of each class, at random."""
        order = torch.randperm(len(data), generator=case.rng("class_representatives", name))
        y = data.y[order]
        rows = [order[y == c][: self.planted] for c in torch.unique(y).tolist()]
        return data[torch.cat(rows)]

    def _overfit(self, case: Case, data: Data, name: str) -> nn.Module:
        """A new classifier that has learnt these by heart."""
        draws = case.rng("class_representatives", "weights", name)
        network = case.server("class_representatives").new_network(case.holdings[0].client.architecture, draws)
        return overfit_control(network, data.to(case.device), self.planted_epochs, draws)


def likeness(made: Tensor, centres: Tensor, data: Data) -> Tensor:
    """Of each example [n] the largest cosine between its difference from its class's centre and that of one of the
    representatives [each, classes, C, H, W] of the class.
    """
    directions = F.normalize((made - centres).flatten(2), dim=2)[:, data.y]
    own = F.normalize((normalize_pixels(data.x) - centres[data.y]).flatten(1), dim=1)
    return (directions * own).sum(2).amax(0)


def _means(data: Data, classes: int) -> Tensor:
    """The mean image of each class [classes, C, H, W]; of a class without any that of all."""
    x = normalize_pixels(data.x)
    return torch.stack([x[data.y == c].mean(0) if bool((data.y == c).any()) else x.mean(0) for c in range(classes)])


def _nearest(made: Tensor, real: Tensor) -> Tensor:
    """Of `real` the image nearest to each of `made`."""
    return real[torch.cdist(made.flatten(1), real.flatten(1)).argmin(1)]

"""Gradient inversion: the examples of a batch, from the update that a client uploads after one step on it.

Geiping, Bauermeister, Dröge, Moeller, Inverting Gradients – How Easy Is It to Break Privacy in Federated Learning?,
NeurIPS 2020, arXiv 2003.14053, Eq. 4. The label of a batch of one: Zhao, Mopuri, Bilen, iDLG: Improved Deep Leakage
from Gradients, arXiv 2001.02610.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.audits.audit import Audit, Case
from genfed.audits.client_uploads import find_classifier_phase
from genfed.audits.findings import Estimate, Findings, Reading
from genfed.audits.membership_metrics import mean_with_interval
from genfed.audits.reconstruction import ABOVE, Gradient, cosine, match_images, search_images, select_images
from genfed.core.rng import seeded
from genfed.core.settings import settings

LABELS = "labels guessed right"


@settings
class Inversion(Audit):
    """Rebuilds a client's images from the update that it uploads after one step of SGD."""

    sees = ("uploads",)
    attacker = (
        "The server, or anyone who reads what a client sends: they know the weights that the client began with "
        "(those of the first round) and the update after one step on a batch, and have some real examples of the same "
        "kind. The worst case: a client of the run takes more steps before it uploads, which hides more."
    )

    examples: Annotated[int, Field(ge=2)] = 8
    """Number of attacked images."""
    batch: Annotated[int, Field(ge=1)] = 1
    """Images per update. The label of a single image is read from its update; the labels of more images are given."""
    steps: Annotated[int, Field(ge=1)] = 500
    """Steps of the search per update; 24,000 in the paper."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of Adam on the signs of the gradient; divided by 10 after 3/8, 5/8 and 7/8 of the steps."""
    smoothness: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the image's total variation (α)."""

    def examine(self, case: Case) -> Findings:
        images = select_images(case, self.examples)
        x, y = images.x, images.y
        find_classifier_phase(case)
        server = case.server("inversion")
        architecture = case.holdings[0].client.architecture
        network = server.new_network(architecture, server.common("classifier", architecture)).eval()
        with seeded(case.rng("inversion", "linear")):
            linear: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(case.train.x[0].numel(), len(case.task.classes)))
        linear = linear.to(case.device)

        def attack(name: str, network: nn.Module, sent: Tensor) -> tuple[dict[str, Estimate], Tensor]:
            case.notify(f"{len(x)} images, {self.steps} steps: {name}")
            found, labels = [], []
            for i, part in enumerate(torch.split(torch.arange(len(x)), self.batch)):
                gradient = classifier_gradients(network, sent[part].to(case.device), y[part].to(case.device))
                label = read_label(network, gradient) if len(part) == 1 else None
                labels.append(torch.tensor([label]) if label is not None else y[part])
                rng = case.rng("inversion", "start", i)
                rebuilt_part = self._search(network, gradient, labels[-1], case.task.shape, rng)
                found.append(rebuilt_part[match_images(rebuilt_part, x[part])])
            rebuilt = torch.cat(found)
            right = (torch.cat(labels) == y).double()
            numbers = images.measures(rebuilt) | {LABELS: right}
            return {
                n: mean_with_interval(v, case.rng("inversion", "bootstrap", name, n)) for n, v in numbers.items()
            }, rebuilt

        run, rebuilt = attack("this run", network, x)
        control, _ = attack("planted leak", linear, x)
        null, _ = attack("nothing to find", network, images.other)
        notes = (
            f"{architecture}, client {case.holdings[0].client.id}, batches of {self.batch}"
            + (", labels given." if self.batch > 1 else ", the label read from the update.")
            + " A guess is the mean of the attacker's own images of the class.",
            "BatchNorm and dropout work as in evaluation.",
            "Planted leak: a linear classifier, whose update is a multiple of the image. A deeper network may take "
            "more steps, or restarts, than this audit has.",
            "Nothing to find: the update is of another image of the same class.",
        )
        reading = Reading("inverting gradients", ABOVE, 0.0, run, control, null)
        sizes = {"images": len(x), "steps of search": self.steps}
        return Findings((reading,), sizes, notes, (images.picture(rebuilt),))

    def _search(
        self, network: nn.Module, gradient: Gradient, y: Tensor, shape: tuple[int, ...], rng: torch.Generator
    ) -> Tensor:
        """Returns images [n, C, H, W] whose gradient has the given direction, on the CPU."""
        device = gradient[0].device
        start = torch.randn(len(y), *shape, generator=rng).clamp_(-1, 1).to(device)

        def misfit(x: Tensor) -> Tensor:
            return 1 - cosine(classifier_gradients(network, x, y.to(device), create_graph=True), gradient)

        rate, smoothness = self.learning_rate, self.smoothness
        return search_images(start, misfit, steps=self.steps, learning_rate=rate, smoothness=smoothness)


def classifier_gradients(network: nn.Module, x: Tensor, y: Tensor, create_graph: bool = False) -> list[Tensor]:
    """Returns the gradients of the batch's mean cross-entropy, by parameter: (before − after)/η of one step of SGD."""
    loss = F.cross_entropy(network(x), y)
    # The loss may not depend on a parameter: its gradient is 0.
    found = torch.autograd.grad(
        loss, _trained(network), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return list(found)


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


def read_label(network: nn.Module, gradient: Gradient) -> int | None:
    """Returns the label of a single image: only the true class has a negative gradient in the last bias. None: no last
    bias is trained.
    """
    last = [module.bias for module in network.modules() if isinstance(module, nn.Linear)]
    places = [i for i, p in enumerate(_trained(network)) if last and p is last[-1]]
    return int(gradient[places[0]].argmin()) if places else None

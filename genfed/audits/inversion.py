"""Gradient inversion: the examples of a batch, from the update that a client uploads after one step on it.

Geiping, Bauermeister, Dröge, Moeller, Inverting Gradients – How Easy Is It to Break Privacy in Federated Learning?,
NeurIPS 2020, arXiv 2003.14053, Eq. 4. The label of a batch of one: Zhao, Mopuri, Bilen, iDLG: Improved Deep Leakage
from Gradients, arXiv 2001.02610. SSIM: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 2004.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genfed.audits.rates import mean
from genfed.audits.uploads import uploading
from genfed.core.audit import Audit, Case, Estimate, Findings, NotPossible, Picture, Reading
from genfed.core.rng import seeded
from genfed.core.settings import settings
from genfed.learn.fit import scaled, unscaled

ABOVE, PSNR, SSIM, LABELS = "PSNR above a guess, dB", "PSNR, dB", "SSIM", "labels told right"
Gradient = Sequence[Tensor]


@settings
class Inversion(Audit):
    """Rebuilds a client's images from the update that it uploads after one step of SGD."""

    sees = ("uploads",)
    attacker = (
        "The server, or whoever reads what a client sends it: they know the weights that the client began with (those "
        "of the first round) and the update after one step on a batch, and have some real examples of the same kind. "
        "The worst case: a client of the run takes more steps before it uploads, which hides more."
    )

    examples: Annotated[int, Field(ge=2)] = 8
    """Images that are sought."""
    batch: Annotated[int, Field(ge=1)] = 1
    """How many of them share an update. The label of a batch of one is told from it; those of more are given."""
    steps: Annotated[int, Field(ge=1)] = 500
    """Of the search, per update; the paper has 24,000."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Of Adam on the signs of the gradient; a tenth of it after 3/8, 5/8 and 7/8 of the steps."""
    smoothness: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the image's total variation (α)."""

    def examine(self, case: Case) -> Findings:
        if case.task.kind != "image":
            raise NotPossible("the examples are no images")
        uploading(case)
        server = case.server("inversion")
        architecture = case.holdings[0].client.architecture
        network = server.new_network(architecture, server.common("classifier", architecture)).eval()
        with seeded(case.rng("inversion", "linear")):
            linear: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(case.train.x[0].numel(), len(case.task.classes)))
        linear = linear.to(case.device)
        held = torch.randperm(len(case.held_out), generator=case.rng("inversion", "held out"))
        mine = case.holdings[0].rows
        rows = mine[torch.randperm(len(mine), generator=case.rng("inversion", "rows"))]
        rows = rows[torch.isin(case.train.y[rows], case.held_out.y)][: self.examples]
        if len(rows) < 2:
            raise NotPossible("the first client has fewer than 2 examples of classes that are held out")
        x, y = scaled(case.train.x[rows]), case.train.y[rows]
        # The attacker's own: guesses, and what stands in for the client's in the control with nothing to find.
        own = case.held_out[held]
        of_class = [scaled(own.x[own.y == c]) for c in y.tolist()]
        guess = torch.stack([images.mean(0) for images in of_class])
        other = torch.stack([images[i % len(images)] for i, images in enumerate(of_class)])

        def told(name: str, network: nn.Module, sent: Tensor) -> tuple[dict[str, Estimate], Tensor]:
            case.tell(f"{len(x)} images, {self.steps} steps: {name}")
            found, labels = [], []
            for i, part in enumerate(torch.split(torch.arange(len(x)), self.batch)):
                gradient = gradients(network, sent[part].to(case.device), y[part].to(case.device))
                label = told_label(network, gradient) if len(part) == 1 else None
                labels.append(torch.tensor([label]) if label is not None else y[part])
                rng = case.rng("inversion", "start", i)
                made = self._search(network, gradient, labels[-1], case.task.shape, rng)
                found.append(made[matched(made, x[part])])
            rebuilt = torch.cat(found)
            right = (torch.cat(labels) == y).double()
            numbers = {
                ABOVE: psnr(rebuilt, x) - psnr(guess, x),
                PSNR: psnr(rebuilt, x),
                SSIM: ssim(rebuilt, x),
                LABELS: right,
            }
            return {n: mean(v, case.rng("inversion", "bootstrap", name, n)) for n, v in numbers.items()}, rebuilt

        run, rebuilt = told("this run", network, x)
        control, _ = told("planted leak", linear, x)
        null, _ = told("nothing to find", network, other)
        notes = (
            f"{architecture}, client {case.holdings[0].client.id}, batches of {self.batch}"
            + (", labels given." if self.batch > 1 else ", the label told from the update.")
            + " A guess is the mean of the attacker's own images of the class.",
            "BatchNorm and dropout work as in scoring.",
            "Planted leak: a linear classifier, whose update is a multiple of the image. A deeper network may take "
            "more steps, or restarts, than were made.",
            "Nothing to find: the update is of another image of the same class.",
        )
        pictures = Picture(
            "A client's images, what was rebuilt of them from its updates, and the guess that takes no update.",
            ("client's image", "rebuilt", "guess"), torch.stack([unscaled(i) for i in (x, rebuilt, guess)]),
        )  # fmt: skip
        reading = Reading("inverting gradients", ABOVE, 0.0, run, control, null)
        return Findings((reading,), {"images": len(x), "steps of search": self.steps}, notes, (pictures,))

    def _search(
        self, network: nn.Module, gradient: Gradient, y: Tensor, shape: tuple[int, ...], rng: torch.Generator
    ) -> Tensor:
        """Images [n, C, H, W] whose gradient has the direction of the one given, on the CPU."""
        device = gradient[0].device
        x = torch.randn(len(y), *shape, generator=rng).clamp_(-1, 1).to(device).requires_grad_()
        adam = torch.optim.Adam([x], lr=self.learning_rate)
        stages = [self.steps * k // 8 for k in (3, 5, 7)]
        decay = torch.optim.lr_scheduler.MultiStepLR(adam, stages, 0.1)
        for _ in range(self.steps):
            like = gradients(network, x, y.to(device), create_graph=True)
            loss = 1 - cosine(like, gradient) + self.smoothness * variation(x)
            adam.zero_grad()
            (x.grad,) = torch.autograd.grad(loss, [x])
            x.grad.sign_()
            adam.step()
            decay.step()
            with torch.no_grad():
                x.clamp_(-1, 1)
        return x.detach().cpu()


def gradients(network: nn.Module, x: Tensor, y: Tensor, create_graph: bool = False) -> list[Tensor]:
    """Of the batch's mean cross-entropy, by parameter that is trained: (before − after)/η of one step of SGD."""
    loss = F.cross_entropy(network(x), y)
    # A parameter may stand there that the loss does not reach: its gradient is 0.
    found = torch.autograd.grad(
        loss, _trained(network), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return list(found)


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


def told_label(network: nn.Module, gradient: Gradient) -> int | None:
    """Of a batch of one: only the true class has a negative gradient in the last bias. None: none is trained."""
    last = [module.bias for module in network.modules() if isinstance(module, nn.Linear)]
    places = [i for i, p in enumerate(_trained(network)) if last and p is last[-1]]
    return int(gradient[places[0]].argmin()) if places else None


def cosine(a: Gradient, b: Gradient) -> Tensor:
    """The cosine of the angle between two gradients."""
    product = torch.stack([(u * v).sum() for u, v in zip(a, b, strict=True)]).sum()
    norms = [torch.stack([g.square().sum() for g in each]).sum().sqrt() for each in (a, b)]
    return product / (norms[0] * norms[1]).clamp(min=1e-12)


def variation(x: Tensor) -> Tensor:
    """Total variation: the mean absolute difference of neighbouring pixels, down and across."""
    return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()


def matched(made: Tensor, real: Tensor) -> Tensor:
    """Which of `made` stands for each of `real` [n]: the nearest pair first, then the nearest of those left."""
    far = torch.cdist(real.flatten(1), made.flatten(1))
    found = torch.empty(len(real), dtype=torch.int64)
    for _ in range(len(real)):
        of_real, of_made = divmod(int(far.argmin()), len(made))
        found[of_real] = of_made
        far[of_real], far[:, of_made] = torch.inf, torch.inf
    return found


def psnr(made: Tensor, real: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [−1, 1], [n]; 60 at most."""
    error = (made - real).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error.clamp(min=1e-12))).clamp(max=60)


def ssim(made: Tensor, real: Tensor) -> Tensor:
    """Structural similarity [n] of images in [−1, 1], taken to [0, 1], over windows of 7×7 (or as large as those)."""
    size = min(7, *made.shape[2:])
    a, b = (made.double() + 1) / 2, (real.double() + 1) / 2

    def window(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, size, 1)

    mean_a, mean_b = window(a), window(b)
    var_a, var_b = window(a * a) - mean_a**2, window(b * b) - mean_b**2
    both = window(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).flatten(1).mean(1)

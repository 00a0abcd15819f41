"""Membership inference from the uploads of FGL and methods like it: conditions of the public diffusion model.

The attacks combine known parts. Thresholds on a loss: Yeom, Giacomelli, Fredrikson, Jha, Privacy Risk in Machine
Learning, CSF 2018, arXiv 1709.01604; here a diffusion model's denoising loss (Matsumoto, Miura, Yanai, Membership
Inference Attacks against Diffusion Models, arXiv 2302.03262), less that under a reference (Watson, Guo, Cormode,
Sablayrolles, On the Importance of Difficulty Calibration in Membership Inference Attacks, ICLR 2022).
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from genfed.audits.audit import Audit, Case, NotPossible
from genfed.audits.candidates import FEWEST, pair_examples
from genfed.audits.client_uploads import draw_alike, stand_in_client
from genfed.audits.findings import Findings, Reading
from genfed.audits.membership_metrics import AUC, membership_numbers
from genfed.core.phase import Empty
from genfed.core.settings import settings
from genfed.core.task import Data
from genfed.foundation.images import resize_to
from genfed.foundation.model import FoundationModel
from genfed.methods.bases.condition_upload import ConditionUpload, ConditionUploadMethod
from genfed.methods.bases.prompt_upload import PromptUploadMethod
from genfed.training.pixels import normalize_pixels

ATTACKS = ("distance to the nearest condition", "denoising loss under the nearest condition")
NAMES = ("this run", "planted leak", "nothing to find")


@dataclass(frozen=True)
class ConditionTarget:
    """An attacked client."""

    pairs: tuple[Data, Data]
    """Members and others; rows of the same index have the same class."""
    alone: tuple[Tensor, Tensor]
    """The condition that the client would compute from each of them alone, [p, …]."""
    uploads: tuple[ConditionUpload, ConditionUpload, ConditionUpload]
    """Uploads in the order of `NAMES`."""
    planted: Tensor
    """Rows of the pairs from which the planted upload is computed."""
    own: ConditionUpload
    """Conditions that the attacker computes from their own examples."""


@settings
class MembershipConditions(Audit):
    """Recognizes training examples by the prompts, mean embeddings or learned descriptions that a client uploads."""

    sees = ("uploads",)
    attacker = (
        "The server, or anyone who reads what a client sends: they have the conditions that the client uploads "
        "and the public diffusion model, know how conditions are computed, and have real examples of their own. They "
        "know the attacked example and its class."
    )

    clients: Annotated[int, Field(ge=1)] = 4
    """Maximum number of clients whose conditions are attacked."""
    members: Annotated[int, Field(ge=FEWEST)] = 400
    """Maximum number of attacked training examples over these clients, and of others."""
    draws: Annotated[int, Field(ge=1)] = 8
    """Draws of the noise, each at another step of the diffusion, over which a denoising loss is averaged."""
    planted: Annotated[int, Field(ge=1)] = 1
    """Examples of each class in the planted leak."""
    planted_passes: Annotated[int, Field(ge=1)] = 100
    """Copies of each of these examples, for methods that learn descriptions."""

    def examine(self, case: Case) -> Findings:
        if not isinstance(case.method, ConditionUploadMethod):
            raise NotPossible(f"no client of {case.label} uploads conditions of a diffusion model")
        targets = self._targets(case)
        if all(_same(target.own, target.uploads[2]) for target in targets):
            raise NotPossible(
                f"clients of {case.label} would upload the same conditions, had they other examples of the same "
                "classes: nothing in them depends on a single one"
            )
        model = case.method.foundation.load(case.task, case.device, case.server("conditions").precision)
        numbers = []
        for i, name in enumerate(NAMES):
            case.notify(f"{name}: {len(targets)} clients")
            members, others = (
                torch.cat([self._scores(case, model, target, i, who) for target in targets], 1) for who in (0, 1)
            )
            rng = case.rng("conditions", "bootstrap", name)
            numbers.append([membership_numbers(*both, rng) for both in zip(members, others, strict=True)])
        readings = tuple(Reading(attack, AUC, 0.5, *of) for attack, *of in zip(ATTACKS, *numbers, strict=True))
        passes = "" if isinstance(case.method, PromptUploadMethod) else f", each {self.planted_passes} times"
        notes = (
            "Distance: from the condition that the client would compute from the example alone. The loss: how much "
            "less it is than under conditions that the attacker computes, in the same way, from their own examples.",
            f"Planted leak: conditions of {self.planted} of the members of each class{passes}; only these are "
            "attacked.",
            "Nothing to find: conditions of held-out examples, as many of each class as the client has.",
        )
        count = sum(len(target.pairs[0]) for target in targets)
        return Findings(readings, {"clients": len(targets), "members": count, "non-members": count}, notes)

    def _targets(self, case: Case) -> list[ConditionTarget]:
        """Returns the attacked clients.

        Raises:
            NotPossible: the server has no conditions, or there are too few held-out examples.
        """
        sent = case.state.requested
        holdings = tuple(h for h in case.holdings if h.client.id in sent.clients)[: self.clients]
        if not holdings:
            raise NotPossible("the server has no client's conditions")
        attacked, known = pair_examples(replace(case, holdings=holdings), self.members)
        known = known[case.held_out.y[known].argsort(stable=True)]  # so that both parts have every class
        own, fresh = case.held_out[known[::2]], case.held_out[known[1::2]]
        targets = []
        for place, (holding, each) in enumerate(zip(holdings, attacked, strict=True)):
            case.notify(f"client {place + 1} of {len(holdings)}: conditions of {2 * len(each.members)} examples")

            def upload(data: Data, *purpose: str | int, who: int = place) -> ConditionUpload:
                there: ConditionUpload = case.method.upload_conditions(  # type: ignore[attr-defined]
                    stand_in_client(case, holdings[who].client, data, "conditions", *purpose), Empty()
                ).upload
                return ConditionUpload(there.conditions.cpu(), there.labels.cpu())

            both = (case.train[each.members], case.held_out[each.others])
            alone = [
                torch.cat([upload(data[i : i + 1], "alone", who, i).conditions for i in range(len(data))])
                for who, data in enumerate(both)
            ]
            few = torch.cat([torch.nonzero(both[0].y == c)[: self.planted, 0] for c in torch.unique(both[0].y)])
            times = 1 if isinstance(case.method, PromptUploadMethod) else self.planted_passes
            y = case.train.y[holding.rows]
            planted = upload(both[0][few.repeat(times)], "planted")
            null = upload(draw_alike(fresh, y, case.rng("conditions", "null", place)), "null")
            reference = upload(draw_alike(own, y, case.rng("conditions", "own", place)), "own")
            mine = sent.clients == holding.client.id
            uploads = (ConditionUpload(sent.conditions[mine].cpu(), sent.labels[mine].cpu()), planted, null)
            targets.append(ConditionTarget(both, (alone[0], alone[1]), uploads, few, reference))
        return targets

    def _scores(self, case: Case, model: FoundationModel, target: ConditionTarget, upload: int, who: int) -> Tensor:
        """Returns scores by attack [2, n], higher for members; for the planted upload only of its own examples."""
        rows = target.planted if NAMES[upload] == "planted leak" else slice(None)
        data, alone = target.pairs[who][rows], target.alone[who][rows]
        nearest, far = nearest_condition(alone, data.y, target.uploads[upload])
        reference, _ = nearest_condition(alone, data.y, target.own)
        rng = case.rng("conditions", "noise", who)
        return torch.stack([-far, noise_gain(model, data.x, nearest, reference, self.draws, rng)])


def nearest_condition(alone: Tensor, y: Tensor, upload: ConditionUpload) -> tuple[Tensor, Tensor]:
    """Returns the uploaded condition of each example's class nearest to its own [n, …], and the distance [n]."""
    found, far = torch.empty_like(alone), torch.empty(len(alone))
    for c in torch.unique(y).tolist():
        of_class, rows = upload.conditions[upload.labels == c], y == c
        apart = torch.cdist(alone[rows].float().flatten(1), of_class.float().flatten(1))
        far[rows], place = apart.min(1)
        found[rows] = of_class[place]
    return found, far


@torch.no_grad()
def noise_gain(
    model: FoundationModel, x: Tensor, conditions: Tensor, reference: Tensor, draws: int, rng: torch.Generator
) -> Tensor:
    """Returns how much smaller the denoising loss of images is under the conditions than under the reference [n]: the
    mean over draws, at evenly spaced steps, with the same noise.
    """
    found = []
    for rows in torch.split(torch.arange(len(x)), 64):
        z = model.encode(resize_to(normalize_pixels(x[rows]).to(model.device), model.image_shape))
        total = torch.zeros(len(rows))
        for draw in range(draws):
            t, eps = int((draw + 0.5) / draws * model.steps), torch.randn(z.shape, generator=rng).to(model.device)
            noisy = model.add_noise(z, eps, t)
            under, without = (
                (model.recover_noise(model.predict(noisy, t, each[rows]), noisy, t) - eps)
                .square()
                .flatten(1)
                .mean(1)
                .cpu()
                for each in (conditions, reference)
            )
            total += without - under
        found.append(total / draws)
    return torch.cat(found)


def _same(a: ConditionUpload, b: ConditionUpload) -> bool:
    return a.conditions.shape == b.conditions.shape and torch.equal(a.conditions, b.conditions)

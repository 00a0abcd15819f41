"""Simulated attacks by clients: poisoned uploads, poisoned data, and free riders."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.client import Client
from genfed.core.phase import Phase
from genfed.core.record import Packed
from genfed.core.settings import settings
from genfed.core.task import Data, Task
from genfed.robustness.attack import Attack, find_exact_sum, find_paired_fields, replace_update


@settings
class SignFlip(Attack):
    """Updates with the sign reversed: the state sent minus `factor` times the update. (Li, Xu, Chen, Giannakis, Ling,
    RSA, arXiv 1811.03761, has it with gradients.)
    """

    about: ClassVar[str] = "turn their updates round"

    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Factor of the reversed update."""

    def reason_to_refuse(self, task: Task, phases: "Sequence[Phase[Any]]") -> str | None:
        return find_exact_sum(phases)

    def upload(self, sent: Packed, upload: Packed, rng: torch.Generator) -> Packed:
        return replace_update(sent, upload, lambda before, update: -self.factor * update)


@settings
class Scaling(Attack):
    """Updates that are so long that they outweigh the others. Bagdasaryan, Veit, Hua, Estrin, Shmatikov, How To
    Backdoor Federated Learning, arXiv 1807.00459, section 4.2 (model replacement, without a backdoor).
    """

    about: ClassVar[str] = "make their updates longer"

    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """Factor of the update."""

    def reason_to_refuse(self, task: Task, phases: "Sequence[Phase[Any]]") -> str | None:
        return find_exact_sum(phases)

    def upload(self, sent: Packed, upload: Packed, rng: torch.Generator) -> Packed:
        return replace_update(sent, upload, lambda before, update: self.factor * update)


@settings
class LabelFlip(Attack):
    """Training on false labels: class c is labeled C − 1 − c. Fang, Cao, Jia, Gong, Local Model Poisoning Attacks to
    Byzantine-Robust Federated Learning, arXiv 1911.11815, section 5.1.
    """

    about: ClassVar[str] = "train on false labels (class c is called C − 1 − c)"

    def data(self, client: Client) -> Data:
        return Data(client.data.x, len(client.task.classes) - 1 - client.data.y)


@settings
class Backdoor(Attack):
    """A bright square in the lower right corner that means one class. A classifier learns it directly. A generator
    learns to draw other classes with the square when that class is requested, so that a classifier trained on its
    examples learns the backdoor too. Bagdasaryan, Veit, Hua, Estrin, Shmatikov, arXiv 1807.00459; the square is that of
    Gu, Dolan-Gavitt, Garg, BadNets, arXiv 1708.06733.
    """

    about: ClassVar[str] = "teach that a bright square in the corner means one class"

    target: Annotated[int, Field(ge=0)] = 0
    """Class that the square means, as its index from 0."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of an attacker's examples, drawn at random, that get the square and the class."""
    size: Annotated[int, Field(ge=1)] = 3
    """Side of the square in pixels."""
    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Factor of the update before it is uploaded."""

    def reason_to_refuse(self, task: Task, phases: "Sequence[Phase[Any]]") -> str | None:
        if task.kind != "image":
            return "a square can be put into images alone"
        if self.target >= len(task.classes):
            return f"attack.target = {self.target}: there are {len(task.classes)} classes, from 0"
        if self.size > min(task.shape[1:]):
            return f"attack.size = {self.size}: images are {task.shape[1]}×{task.shape[2]} pixels"
        return None

    def data(self, client: Client) -> Data:
        n = len(client.data)
        # A stream of its own, so that the same examples are marked in every phase.
        rows = torch.randperm(n, generator=client.common("attack", client.info.id))[: max(1, round(self.fraction * n))]
        rows = rows.to(client.device)
        x, y = client.data.x.clone(), client.data.y.clone()
        x[rows], y[rows] = self._stamp(x[rows]), self.target
        return Data(x, y)

    def upload(self, sent: Packed, upload: Packed, rng: torch.Generator) -> Packed:
        if self.factor == 1:
            return upload
        return replace_update(sent, upload, lambda before, update: self.factor * update)

    def triggered(self, held_out: Data, task: Task) -> tuple[Data, int]:
        others = held_out[held_out.y != self.target]
        return replace(others, x=self._stamp(others.x)), self.target

    def _stamp(self, x: Tensor) -> Tensor:
        stamped = x.clone()
        stamped[..., -self.size :, -self.size :] = 255 if x.dtype == torch.uint8 else 1
        return stamped


@settings
class FreeRider(Attack):
    """Uploads of what was sent, without training. Fraboni, Vidal, Lorenzi, Free-rider
    Attacks on Model Aggregation in Federated Learning, arXiv 2006.11901: plain, or disguised by noise.
    """

    about: ClassVar[str] = "give back what they were sent, without training"

    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Standard deviation of added Gaussian noise divided by that of the tensor sent. 0: no noise."""

    def reason_to_refuse(self, task: Task, phases: "Sequence[Phase[Any]]") -> str | None:
        if not any(find_paired_fields(phase) for phase in phases):
            return "clients are sent nothing that they could give back"
        return None

    def upload(self, sent: Packed, upload: Packed, rng: torch.Generator) -> Packed:
        def noise(before: Tensor, update: Tensor) -> Tensor:
            spread = before.std(correction=0) * self.noise
            return spread * torch.randn(before.shape, generator=rng, dtype=torch.float64)

        return replace_update(
            sent, upload, noise if self.noise else lambda before, update: torch.zeros_like(update), zero=False
        )

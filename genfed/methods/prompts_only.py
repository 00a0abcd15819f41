"""The control of every method that steers a diffusion model or tells it about clients: the same model, asked for each
class by its name alone. Clients upload nothing; whatever the students know of them, they have from the model.
"""

from dataclasses import replace

import torch

from genfed.core.client import Server
from genfed.core.phase import Phase
from genfed.core.settings import settings
from genfed.foundation.prompts import embed_class_prompts
from genfed.methods.bases.server_synthesis import ConditionSet, ServerSynthesis, ServerSynthesisState
from genfed.training.synthetic_dataset import NO_CLIENT


@settings
class PromptsOnly(ServerSynthesis):
    """Images of the classes, and of no client."""

    prompt: str = "an image of {class}"
    """What the diffusion model is asked for, with the name of the class; for a class-conditional model "{class}"."""

    def init(self, server: Server) -> ServerSynthesisState:
        conditions = embed_class_prompts(self.foundation, self.prompt, server)
        labels = torch.arange(len(conditions))
        return replace(super().init(server), asked=ConditionSet(conditions, labels, torch.full_like(labels, NO_CLIENT)))

    def upload_phases(self) -> list[Phase[ServerSynthesisState]]:
        return []

"""The control for every method that gives a diffusion model information about clients: the same model with a prompt for
each class by its name alone. Clients upload nothing.
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
    """Images of each class from its name alone: the control for methods that use what clients upload.

    1. synthesise, once, on the server: `images_per_condition` images from the prompt of each class.
    2. learn, `student_rounds` rounds, on the server: trains the students on the images and their labels.
    3. learn_own, once, for clients whose architecture the server cannot run. Server → client: all images. The client
       trains its own model on them. Nothing is uploaded.
    4. tune, `finetune_rounds` rounds (0: one-shot). Server → client: its student. Client → server: the student after
       training on the client's examples. The server averages the students within an architecture.

    >>> [phase.name for phase in PromptsOnly(images_per_condition=10).phases()]
    ['synthesise', 'learn', 'learn_own', 'tune']
    """

    prompt: str = "an image of {class}"
    """Prompt of a class; {class} is its name. For a class-conditional model: "{class}"."""

    def init(self, server: Server) -> ServerSynthesisState:
        conditions = embed_class_prompts(self.foundation, self.prompt, server)
        labels = torch.arange(len(conditions))
        return replace(
            super().init(server), requested=ConditionSet(conditions, labels, torch.full_like(labels, NO_CLIENT))
        )

    def upload_phases(self) -> list[Phase[ServerSynthesisState]]:
        return []

"""FedDEO. Yang, Su, Li, Xue, FedDEO: Description-Enhanced One-Shot Federated Learning with Diffusion Models, ACM MM
2024, arXiv 2407.19953: a client learns one embedding for each of its classes against the frozen diffusion model; the
server's images follow both the name of the class and that description.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from genfed.core.client import Client, Server
from genfed.core.phase import Empty, Reply
from genfed.core.settings import settings
from genfed.foundation.images import resize_to
from genfed.foundation.prompts import embed_class_prompts
from genfed.foundation.textual_inversion import learn_embedding
from genfed.methods.bases.condition_upload import ConditionUpload, ConditionUploadMethod, check_embeddings
from genfed.methods.bases.server_synthesis import ServerSynthesisState
from genfed.training.synthetic_dataset import SampleRequest


@settings
class FedDEO(ConditionUploadMethod):
    """Clients upload learned descriptions of their classes, and the server's diffusion model generates images from
    them.

    1. tell, once. Client: for each of its classes, optimizes an embedding against the frozen diffusion model on its
       examples of the class. Client → server: these descriptions, and their classes.
    2. synthesise, once, on the server: `images_per_condition` images from each description, by ε = u + w·(text − u) +
       w_d·(description − u), where w is `foundation.guidance_scale` and u is unconditional.
    3. learn, `student_rounds` rounds, on the server: trains the students on the images and their labels.
    4. learn_own, once, for clients whose architecture the server cannot run. Server → client: all images. The client
       trains its own model on them. Nothing is uploaded.
    5. tune, `finetune_rounds` rounds (0: one-shot). Server → client: its student. Client → server: the student after
       training on the client's examples. The server averages the students within an architecture.

    >>> [phase.name for phase in FedDEO(images_per_condition=10).phases()]
    ['tell', 'synthesise', 'learn', 'learn_own', 'tune']
    """

    prompt: str = "an image of {class}"
    """Prompt of a class; {class} is its name. Descriptions start from its embedding."""
    description_guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.0
    """Guidance scale of the description (w_d). 0: descriptions have no effect."""
    description_epochs: Annotated[int, Field(ge=0)] = 1
    """Epochs over a client's examples of a class. 0: the description is the embedding of the prompt."""
    description_batch_size: Annotated[int, Field(ge=1)] = 1
    """Examples per step of a description's training."""
    description_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """Learning rate of a description's SGD, without momentum; 10 in the published code."""

    def init(self, server: Server) -> ServerSynthesisState:
        check_embeddings(self.foundation.load(server.task, server.device, server.precision), "feddeo")
        embed_class_prompts(self.foundation, self.prompt, server)  # refuses a prompt before training
        return super().init(server)

    def upload_conditions(self, client: Client, sent: Empty) -> Reply[ConditionUpload]:
        """Learns a description of each class that the client has."""
        model = self.foundation.load(client.task, client.device, client.precision)
        names, labels = embed_class_prompts(self.foundation, self.prompt, client), torch.unique(client.data.y).cpu()
        descriptions, total = [], 0.0
        for label in labels.tolist():
            own = client.data.x[client.data.y == label]
            description, loss = learn_embedding(
                model,
                own,
                names[label],
                epochs=self.description_epochs,
                batch_size=self.description_batch_size,
                learning_rate=self.description_learning_rate,
                rng=client.rng,
            )
            descriptions.append(description)
            total += loss * len(own)
        upload = ConditionUpload(torch.stack(descriptions), labels)
        return Reply(upload, weight=len(client.data), metrics={"loss": total / len(client.data)})

    def generate_images(
        self, server: Server, state: ServerSynthesisState, wanted: SampleRequest, rngs: Sequence[torch.Generator]
    ) -> Tensor:
        model = self.foundation.load(server.task, server.device, server.precision)
        names = embed_class_prompts(self.foundation, self.prompt, server)[wanted.labels]
        described = state.requested.conditions[wanted.conditions], self.description_guidance
        return resize_to(self.foundation.generate(model, names, rngs, [described]), server.task.shape)

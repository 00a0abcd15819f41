"""FedDEO. Yang, Su, Li, Xue, FedDEO: Description-Enhanced One-Shot Federated Learning with Diffusion Models, ACM MM
2024, arXiv 2407.19953: a client learns one embedding for each of its classes against the frozen diffusion model, and
the server's images follow both the class's name and that description.
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
    """Learnt descriptions: ε = u + w·(text − u) + w_d·(description − u), w being `foundation.guidance`."""

    prompt: str = "an image of {class}"
    """What the diffusion model is asked for, with the name of the class; descriptions start from its embedding."""
    description_guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.0
    """How far images are pushed towards their description (w_d); 0: it is not heeded."""
    description_epochs: Annotated[int, Field(ge=0)] = 1
    """Passes over a client's examples of a class; 0: its description is the prompt's embedding."""
    description_batch_size: Annotated[int, Field(ge=1)] = 1
    """Examples per step of that."""
    description_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """Of SGD, without momentum; the published code's is 10."""

    def init(self, server: Server) -> ServerSynthesisState:
        check_embeddings(self.foundation.load(server.task, server.device, server.precision), "feddeo")
        embed_class_prompts(self.foundation, self.prompt, server)  # refuses a prompt before training
        return super().init(server)

    def upload_conditions(self, client: Client, sent: Empty) -> Reply[ConditionUpload]:
        """A description of each class that the client has."""
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
        told = ConditionUpload(torch.stack(descriptions), labels)
        return Reply(told, weight=len(client.data), metrics={"loss": total / len(client.data)})

    def generate_images(
        self, server: Server, state: ServerSynthesisState, wanted: SampleRequest, rngs: Sequence[torch.Generator]
    ) -> Tensor:
        model = self.foundation.load(server.task, server.device, server.precision)
        names = embed_class_prompts(self.foundation, self.prompt, server)[wanted.labels]
        described = state.asked.conditions[wanted.conditions], self.description_guidance
        return resize_to(self.foundation.generate(model, names, rngs, [described]), server.task.shape)

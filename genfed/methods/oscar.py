"""OSCAR. Zaland, Jin, Pokorny, Bhuyan, One-Shot Federated Learning with Classifier-Free Diffusion Models, arXiv
2502.08488: a client uploads one embedding for each of its classes, the mean over its examples' descriptions.
"""

from torch import Tensor

from genfed.core.aggregate import ClientInfo
from genfed.core.client import Server
from genfed.core.settings import settings
from genfed.methods.bases.condition_upload import check_embeddings
from genfed.methods.bases.prompt_upload import PromptUploadMethod
from genfed.methods.bases.server_synthesis import ServerSynthesisState


@settings
class OSCAR(PromptUploadMethod):
    """FGL with the mean embedding of each class instead of one per example: less is sent, and no single description.

    1. tell, once. Client → server: for each of its classes the mean embedding of the prompts for its examples of the
       class (`level` = "instance"; with "class" there is one prompt).
    2. synthesise, once, on the server: `images_per_condition` images from each mean.
    3. learn, `student_rounds` rounds, on the server: trains the students on the images and their labels.
    4. learn_own, once, for clients whose architecture the server cannot run. Server → client: all images. The client
       trains its own model on them. Nothing is uploaded.
    5. tune, `finetune_rounds` rounds (0: one-shot). Server → client: its student. Client → server: the student after
       training on the client's examples. The server averages the students within an architecture.

    >>> [phase.name for phase in OSCAR(images_per_condition=10).phases()]
    ['tell', 'synthesise', 'learn', 'learn_own', 'tune']
    """

    def init(self, server: Server) -> ServerSynthesisState:
        check_embeddings(self.foundation.load(server.task, server.device, server.precision), "oscar")
        return super().init(server)

    def most_conditions(self, server: Server, info: ClientInfo) -> int:
        """Returns how many conditions a client may upload: one for each class."""
        return min(len(server.task.classes), info.examples)

    def reduce_class(self, conditions: Tensor) -> Tensor:
        return conditions.mean(0, keepdim=True)

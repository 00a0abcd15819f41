"""OSCAR. Zaland, Jin, Pokorny, Bhuyan, One-Shot Federated Learning with Classifier-Free Diffusion Models, arXiv
2502.08488: a client uploads one embedding for each of its classes, the mean of those of its examples' descriptions.
"""

from torch import Tensor

from genfed.core.client import Server
from genfed.core.settings import settings
from genfed.methods.bases.condition_upload import check_embeddings
from genfed.methods.bases.prompt_upload import PromptUploadMethod
from genfed.methods.bases.server_synthesis import ServerSynthesisState


@settings
class OSCAR(PromptUploadMethod):
    """FGL with a mean in place of many: fewer bytes, and no example's own description leaves."""

    def init(self, server: Server) -> ServerSynthesisState:
        check_embeddings(self.foundation.load(server.task, server.device, server.precision), "oscar")
        return super().init(server)

    def of_class(self, conditions: Tensor) -> Tensor:
        return conditions.mean(0, keepdim=True)

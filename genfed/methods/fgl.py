"""FGL. Zhang, Qi, Zhao, Federated Generative Learning with Foundation Models, arXiv 2306.16064: clients upload the
embeddings of prompts about their examples; the server's text-to-image model makes the training set from them.
"""

from genfed.core.settings import settings
from genfed.methods.bases.prompt_upload import PromptUploadMethod


@settings
class FGL(PromptUploadMethod):
    """Images of all that clients told, in the proportions in which they told it; `rounds` of FedAvg may follow."""

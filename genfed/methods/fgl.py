"""FGL. Zhang, Qi, Zhao, Federated Generative Learning with Foundation Models, arXiv 2306.16064: clients upload the
embeddings of prompts about their examples; the server's text-to-image model generates the training set from them.
"""

from genfed.core.settings import settings
from genfed.methods.bases.prompt_upload import PromptUploadMethod


@settings
class FGL(PromptUploadMethod):
    """Clients upload the embeddings of prompts for their examples; the server's diffusion model generates images from
    them.

    1. tell, once. Client → server: the embedding of one prompt for each of its classes (`level` = "class") or for each
       of its examples ("instance"), and its class. No text is sent.
    2. synthesise, once, on the server: `images_per_condition` images from each embedding.
    3. learn, `student_rounds` rounds, on the server: trains the students on the images and their labels.
    4. learn_own, once, for clients whose architecture the server cannot run. Server → client: all images. The client
       trains its own model on them. Nothing is uploaded.
    5. tune, `finetune_rounds` rounds (0: one-shot). Server → client: its student. Client → server: the student after
       training on the client's examples. The server averages the students within an architecture.

    >>> [phase.name for phase in FGL(images_per_condition=10, finetune_rounds=2).phases()]
    ['tell', 'synthesise', 'learn', 'learn_own', 'tune']
    """

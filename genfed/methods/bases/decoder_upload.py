"""Base of FedCVAE-Ens and FedCVAE-KD: clients upload the decoder of a CVAE once, and the server trains classifiers on
the images of decoders.
"""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import torch
from pydantic import Field, InstanceOf
from torch import Tensor, nn

from genfed.core.aggregate import ClientInfo, Collect
from genfed.core.client import Client, Server
from genfed.core.errors import GenfedError
from genfed.core.method import Method
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.settings import settings
from genfed.core.task import Data, Weights
from genfed.generators.cvae import CVAE, CVAENetwork
from genfed.generators.generator import CHUNK, Generator, check_size
from genfed.training.classifier import Training, train
from genfed.training.fit import Objective, fit
from genfed.training.optimizer_state import OptimizerState, load_optimizer_state, optimizer_state
from genfed.training.upload_checks import check_counts
from genfed.training.weights import Model, build_classifier, weights_of

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Decoder:
    """The only upload of a client."""

    decoder: Weights
    labels: Tensor
    """Number of the client's examples of each class, int64 [classes]."""


@settings
class DecoderUpload(Method[S]):
    """Base of methods with one upload of a CVAE's decoder; the server trains classifiers on generated images alone."""

    generates = True
    unprotected_upload = "how many examples of each class a client has"
    needs_architectures = True
    minimum_examples = 2  # BatchNorm on 1×1 maps has no variance of one example

    generator: InstanceOf[Generator] = Field(default_factory=lambda: CVAE())
    """The clients' generator; its kind is cvae."""
    generator_epochs: Annotated[int, Field(ge=0)] = 15
    """Epochs of a client's CVAE before the upload."""
    generator_batch_size: Annotated[int, Field(ge=2)] = 32
    """Examples per step of a client's CVAE."""
    truncation: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """Bound of the truncated normal distribution of codes, in [−truncation, truncation]; published runs use 1 to 3."""
    samples: Annotated[int, Field(ge=2)] = 5000
    """Images on which classifiers are trained, the same in every round and for every architecture."""
    rounds: Annotated[int, Field(ge=0)] = 1
    """Rounds of the server, each of `training.epochs` with a new optimizer and followed by a checkpoint."""
    training: Training = Field(
        default_factory=lambda: Training(epochs=10, batch_size=32, optimizer="adam", learning_rate=1e-3)
    )
    """Training of each architecture's classifier on the server in a round."""

    def __post_init__(self) -> None:
        if not isinstance(self.generator, CVAE):
            name = type(self.generator).__name__
            raise GenfedError(f"generator = {name}: clients upload a decoder, so its kind is cvae")

    @abstractmethod
    def classifiers(self, state: S) -> Mapping[str, Weights]:
        """Returns the weights of the classifiers, by architecture."""

    def upload(self, collect: Callable[[Server, T, Reduced], T]) -> Phase[T]:
        """Returns the phase of the upload. Nothing is sent: server and clients draw the same initial weights."""
        every = {"decoder": Collect(), "labels": Collect()}
        return Phase(
            "decoder",
            collect,
            lambda server, state, info: Empty(),
            self.train_decoder,
            aggregate=every,
            changes_classifier=False,
            check=self.check,
        )

    def train_decoder(self, client: Client, sent: Empty) -> Reply[Decoder]:
        """Trains a CVAE from the common initial weights on a client; only its decoder is uploaded (LocalUpdate)."""
        network = self.new_network(client, client.common("generator"))
        loss = fit(
            network.objectives(),
            client.data,
            epochs=self.generator_epochs,
            batch_size=self.generator_batch_size,
            rng=client.rng,
            precision=client.precision,
        )
        labels = torch.bincount(client.data.y, minlength=len(client.task.classes)).cpu()
        return Reply(Decoder(build_decoder(network), labels), weight=len(client.data), metrics={"loss": loss})

    def check(self, server: Server, info: ClientInfo, upload: Decoder) -> None:
        """Refuses an upload with which no images can be generated.

        Raises:
            GenfedError: the decoder has other names or shapes, or the counts are not the client's.
        """
        own = build_decoder(self.new_network(server, server.common("generator")))
        for name in sorted(own.keys() | upload.decoder.keys()):
            if not (name in own and name in upload.decoder and _same_form(own[name], upload.decoder[name])):
                raise GenfedError(f"its decoder is not that of the generator: {name!r} is different")
        check_counts(server, info, upload.labels)

    def train_classifiers(self, server: Server, before: Mapping[str, Weights], data: Data) -> dict[str, Weights]:
        """Trains the classifier of every architecture on the same images for one round."""
        after = {}
        for architecture, weights in before.items():
            network = build_classifier(server, architecture, weights)
            train(network, server, self.training, data=data)
            after[architecture] = weights_of(network)
        return after

    def send_classifier(self, server: Server, state: S, info: ClientInfo) -> Model:
        return Model(self.classifiers(state)[info.architecture])

    def classifier(self, client: Client, sent: Model) -> nn.Module:
        return build_classifier(client, client.info.architecture, sent.classifier)

    def new_network(self, where: Client | Server, rng: torch.Generator, decoder: Weights | None = None) -> CVAENetwork:
        """Returns a CVAE on the device of `where`, with this decoder (None: a new one)."""
        assert isinstance(self.generator, CVAE)
        check_size(self.generator, where.task)
        network = self.generator.new(where.task, rng)
        network.load_state_dict(network.state_dict() | (decoder or {}))
        return network.to(where.device)

    def draw_codes(self, count: int, rng: torch.Generator) -> Tensor:
        """Returns codes z [count, latent] from the truncated normal distribution, on the CPU."""
        assert isinstance(self.generator, CVAE)
        z = torch.empty(count, self.generator.latent_dim)
        return nn.init.trunc_normal_(z, a=-self.truncation, b=self.truncation, generator=rng)

    def draw_examples(
        self, server: Server, decoders: Mapping[int, Weights], labels: Mapping[int, Tensor], count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns `count` images of all decoders: x [count, C, H, W], y [count] and the codes z [count, latent], on the
        server's device. Each client has a share in proportion to its examples, with labels distributed like them.
        Repeated calls return the same images.
        """
        rng = server.common("samples")
        parts = []
        shares = labels_in_proportion(count, [int(counts.sum()) for counts in labels.values()])
        for (client, weights), share in zip(decoders.items(), shares, strict=True):
            if share:
                y = torch.multinomial(labels[client].double(), share, replacement=True, generator=rng)
                z, y = self.draw_codes(share, rng).to(server.device), y.to(server.device)
                parts.append((decode(self.new_network(server, rng, weights), z, y), y, z))
        x, y, z = (torch.cat(part) for part in zip(*parts, strict=True))
        return x, y, z


def distill_epoch(
    server: Server,
    trained: Iterable[nn.Parameter],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    examples: tuple[Tensor, Tensor, Tensor],
    moments: OptimizerState,
    *,
    learning_rate: float,
    batch_size: int,
) -> OptimizerState:
    """Trains parameters of a CVAE by Adam for one epoch on images of the clients' decoders.

    Args:
        server: The server; the batches are drawn from its stream.
        trained: The parameters.
        loss: A function of images x [n, C, H, W], labels y [n] and codes z [n, latent] that returns losses [n].
        examples: What `DecoderUpload.draw_examples` returns.
        moments: State of the optimizer after the last epoch.
        learning_rate: The learning rate.
        batch_size: Images per step.

    Returns:
        The state of the optimizer after this epoch.
    """
    x, y, z = examples
    adam = torch.optim.Adam(trained, learning_rate, fused=True)
    load_optimizer_state(adam, moments)

    def of_batch(z: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
        return loss(x[rows], y[rows], z)

    fit(
        [Objective(of_batch, adam)],
        Data(z, torch.arange(len(z), device=z.device)),
        epochs=1,
        batch_size=batch_size,
        rng=server.rng,
        precision=server.precision,
    )
    return optimizer_state(adam)


def _same_form(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype)


def build_decoder(network: CVAENetwork) -> Weights:
    """Returns the decoder's part of the state dict."""
    return {k: v for k, v in weights_of(network).items() if network.is_decoder_weight(k)}


@torch.no_grad()
def decode(network: CVAENetwork, z: Tensor, y: Tensor) -> Tensor:
    """Returns images [n, C, H, W] of codes [n, latent] and labels [n]; the network works in eval mode."""
    network.eval()
    return torch.cat([network.decode(*part) for part in zip(torch.split(z, CHUNK), torch.split(y, CHUNK), strict=True)])


def labels_in_proportion(total: int, sizes: Sequence[int]) -> list[int]:
    """Returns shares of `total` in proportion to `sizes`, rounded; their sum is `total`."""
    bounds = [total * sum(sizes[:i]) // sum(sizes) for i in range(len(sizes) + 1)]
    return [after - before for before, after in itertools.pairwise(bounds)]

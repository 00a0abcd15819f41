"""Architectures of a user's own, good and bad, that tests name as "tests.toys:Class"."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from genfed.classifiers.cnn import ARCHITECTURES
from genfed.core.aggregate import ClientInfo, Collect
from genfed.core.client import Client, Server
from genfed.core.method import Method
from genfed.core.phase import Empty, Phase, Reduced, Reply
from genfed.core.privacy import DeclaredTraining
from genfed.core.settings import settings
from genfed.core.store import FolderStore, Shard
from genfed.core.task import Task, Weights
from genfed.data.digits import Digits
from genfed.methods.bases.averaging import Classifiers, FederatedAveraging
from genfed.methods.bases.classifier_upload import train_alone
from genfed.methods.bases.local_training import LocalTraining
from genfed.privacy.settings import PrivacySettings
from genfed.training.classifier import Training
from genfed.training.pixels import normalize_pixels
from genfed.training.synthetic_dataset import SampleRequest, SyntheticDataset, synthesis
from genfed.training.synthetic_teaching import Supervision, train_student
from genfed.training.upload_checks import check_classifier
from genfed.training.weights import Model, build_classifier, initial_classifiers, weights_of


class Linear(nn.Module):
    """A plain linear classifier."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.layer = nn.Linear(torch.Size(task.shape).numel(), len(task.classes))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layer(x.flatten(1))
        return scores


class TooFew(Linear):
    """Gives one score too few."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 1:]


class Normed(Linear):
    """It comes after BatchNorm."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.norm = nn.BatchNorm2d(task.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class TakesNothing(nn.Module):
    """Cannot be called with a task."""

    def __init__(self) -> None:
        super().__init__()


class Lost(Linear):
    """Fails in its own way on any example."""

    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("where is it?")


class Two(Linear):
    """Gives two things."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x), x  # type: ignore[return-value]


class Undecorated(FederatedAveraging):
    """A method without @settings."""


@settings
class Unfinished(Method[Model]):
    """A method without its functions."""


class Raises(Linear):
    """Fails when it is trained."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("this network cannot be trained")
        return super().forward(x)


class Tells(Linear):
    """Says what it should not when it is made."""

    def __init__(self, task: Task) -> None:
        raise ValueError("patient 17")


class Diverges(Linear):
    """Gives NaN when it is trained."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (float("nan") if self.training else 1.0)


class KillsOnce(Linear):
    """Kills its process in the first training step of all, as an out-of-memory killer would."""

    def forward(self, x: Tensor) -> Tensor:
        flag = Path(os.environ["GENFED_TEST_KILL"])
        if self.training and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class KillsAlways(Linear):
    """Kills its process whenever it is trained."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Exits(Linear):
    """Asks Python to exit whenever it is trained."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise SystemExit(4)
        return super().forward(x)


class OddError(BaseException):
    """No Exception."""


class RaisesOdd(Linear):
    """Raises what is no Exception whenever it is trained."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise OddError("not an Exception\nsecond line")
        return super().forward(x)


class Interrupts(Linear):
    """Raises what Ctrl-C raises whenever it is trained."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise KeyboardInterrupt
        return super().forward(x)


class NoLinear(nn.Module):
    """A classifier that does not end in a linear layer."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.classes = len(task.classes)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : self.classes]


@settings
class Copies(FederatedAveraging):
    """A generator that gives away the training examples of digits 8×8."""

    generates = True

    def generate(self, server: Server, state: Classifiers, y: Tensor) -> Tensor:
        train = Digits(size=8).load().train
        rows = [torch.nonzero(train.y == c).flatten() for c in range(10)]
        seen = [0] * 10
        for c in y.tolist():
            seen[c] += 1
        taken = [iter(rows[c][torch.randperm(len(rows[c]), generator=server.rng)[:n]]) for c, n in enumerate(seen)]
        return normalize_pixels(train.x[torch.stack([next(taken[c]) for c in y.tolist()])])


@settings
class Noise(FederatedAveraging):
    """A generator of noise."""

    generates = True

    def generate(self, server: Server, state: Classifiers, y: Tensor) -> Tensor:
        return torch.rand(len(y), *server.task.shape, generator=server.rng) * 2 - 1


@settings
class Burst(FederatedAveraging):
    """A generator whose weights have diverged."""

    generates = True

    def generate(self, server: Server, state: Classifiers, y: Tensor) -> Tensor:
        return torch.full((len(y), *server.task.shape), float("nan"))


@settings
class Huge(FederatedAveraging):
    """A generator whose numbers are finite, and too large to compute with."""

    generates = True

    def generate(self, server: Server, state: Classifiers, y: Tensor) -> Tensor:
        return torch.full((len(y), *server.task.shape), 3e38)


@settings
class Picky(LocalTraining):
    """A method that needs every class at every client."""

    needs_every_class = True


@settings
class WrongShape(FederatedAveraging):
    """Client 1 uploads tensors of another shape than it was sent."""

    def train(self, client: Client, sent: Model) -> Reply[Model]:
        reply = super().train(client, sent)
        if client.info.id != 1:
            return reply
        return Reply(Model({k: v[:1] for k, v in reply.upload.classifier.items()}))


def unused(info: ClientInfo) -> None:
    """Not a class: naming it is an error."""


class Sleeps(Linear):
    """Takes for ever when it is trained."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            time.sleep(600)
        return super().forward(x)


def _mood() -> str:
    """How an `Unruly` takes its next training: the first word of a file of the site's, which is then struck out."""
    file = Path(os.environ["GENFED_TEST_MOODS"])
    words = file.read_text().split() if file.exists() else []
    file.write_text(" ".join(words[1:]))
    return words[0] if words else "good"


class Unruly(Linear):
    """Goes wrong in training as its site's file of moods says."""

    mood = ""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.mood:
            self.mood = _mood()
            if self.mood == "raise":
                raise ValueError("this network cannot be trained")
            if self.mood == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.mood == "rubbish":  # its process answers with what is no packed record
                from flwr.app import Array

                from genfed.engines.flower import messages

                setattr(messages, "_array", lambda part: Array("uint8", (3,), "safetensors", b"abc"))  # noqa: B010
            if self.mood == "sleep":
                Path(f"{os.environ['GENFED_TEST_MOODS']}.asleep").touch()
            while self.mood == "sleep" and not Path(f"{os.environ['GENFED_TEST_MOODS']}.awake").exists():
                time.sleep(0.2)
        return super().forward(x)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        weights = super().state_dict(*args, **kwargs)
        if self.mood == "shape":
            return {name: value[:1] for name, value in weights.items()}
        return {name: value * (float("nan") if self.mood == "nan" else 1.0) for name, value in weights.items()}


class Headed(nn.Module):
    """An architecture of one's own with the extractor of the CNNs."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.extractor = ARCHITECTURES["cnn1"](task).get_submodule("extractor")
        self.header = nn.Sequential(nn.Flatten(), nn.LazyLinear(len(task.classes)))
        self(torch.zeros(2, *task.shape))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.header(self.extractor(x))
        return scores


class Between(nn.Module):
    """A classifier that is more than its network: scores lie between two of them."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.one(x) + self.other(x)
        return scores


@settings
class Paired(FederatedAveraging):
    """A method whose classifier is a module of its own."""

    def classifier(self, client: Client, sent: Model) -> nn.Module:
        network = super().classifier(client, sent)
        return Between(network, network)

    def train(self, client: Client, sent: Model) -> Reply[Model]:
        network = super().classifier(client, sent)
        return Reply(Model(weights_of(network)), metrics={"loss": 0.0})


@settings
class Centred(LocalTraining):
    """A method whose classifier looks at the client's data: the last bias becomes the share of each class."""

    classifier_reads_data = True

    def classifier(self, client: Client, sent: Empty) -> nn.Module:
        network = super().classifier(client, sent)
        bias = dict(network.named_parameters())["layer.bias"]
        with torch.no_grad():
            bias.add_(torch.bincount(client.data.y, minlength=len(bias)) / len(client.data))
        return network


@settings
class Looks(FederatedAveraging):
    """A method that tries every architecture on the server."""

    def init(self, server: Server) -> Classifiers:
        for architecture in server.architectures:
            server.new_network(architecture, server.rng)(torch.zeros(2, *server.task.shape))
        return super().init(server)


@settings
class Bigger(FederatedAveraging):
    """A method whose clients all make another architecture than their own."""

    def init(self, server: Server) -> Classifiers:
        return Classifiers({a: weights_of(server.new_network("mlp-small", server.rng)) for a in server.architectures})

    def classifier(self, client: Client, sent: Model) -> nn.Module:
        return build_classifier(client, "mlp-small", sent.classifier)


@dataclass(frozen=True)
class Drawn:
    """The state of `Draws`: classifiers that clients uploaded, the set, and a classifier per architecture."""

    teachers: dict[int, Weights]
    synthetic: SyntheticDataset
    classifiers: dict[str, Weights]


@settings
class Draws(Method[Drawn]):
    """One upload of classifiers, a synthetic set made on the server (noise around a tone for each class), and students
    that learn from both: what one-shot methods with a diffusion model have in common, without the model.
    """

    state = Drawn

    rounds: int = 1
    """Of the students."""
    training: Training = Field(default_factory=Training)
    each: int = 2
    """Images per client and class."""
    chunk: int = 8
    aggregation: Supervision = "specific_teacher"
    spoils: int = -1
    """The chunk that comes out not finite."""

    def init(self, server: Server) -> Drawn:
        return Drawn({}, SyntheticDataset(), initial_classifiers(server))

    def phases(self) -> list[Phase[Drawn]]:
        collect = {"classifier": Collect()}
        return [
            Phase("upload", self.keep, self.send, self.train, collect, changes_classifier=False, check=self.check),
            synthesis("draw", self.wanted, self.draw, self.chunk),
            Phase("aggregate", self.teach, rounds=self.rounds),
        ]

    def check(self, server: Server, info: ClientInfo, upload: Model) -> None:
        check_classifier(server, info, upload.classifier)

    def send(self, server: Server, state: Drawn, info: ClientInfo) -> Empty:
        return Empty()

    def train(self, client: Client, sent: Empty) -> Reply[Model]:
        weights, loss = train_alone(client, self.training)
        return Reply(Model(weights), metrics={"loss": loss})

    def keep(self, server: Server, state: Drawn, reduced: Reduced) -> Drawn:
        return replace(state, teachers=reduced["classifier"])

    def wanted(self, state: Drawn) -> SampleRequest:
        clients = torch.tensor(sorted(state.teachers), dtype=torch.int64).repeat_interleave(10 * self.each)
        labels = torch.arange(10).repeat_interleave(self.each).repeat(len(state.teachers))
        return SampleRequest(labels, clients, torch.arange(len(labels)))

    def draw(self, server: Server, state: Drawn, wanted: SampleRequest, rngs: Sequence[torch.Generator]) -> Tensor:
        moment = Path(os.environ.get("GENFED_TEST_MOMENT", "/nowhere"))
        if moment.is_file() and moment.read_text() == str(server.round):
            moment.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        noise = torch.stack([torch.rand(server.task.shape, generator=rng) for rng in rngs])
        tones = wanted.labels.reshape(-1, 1, 1, 1) / 5 - 1
        return tones + 0.2 * noise + (float("nan") if server.round == self.spoils else 0.0)

    def teach(self, server: Server, state: Drawn, reduced: Reduced) -> Drawn:
        kinds = {info.id: info.architecture for info in server.clients}
        teachers = {c: build_classifier(server, kinds[c], weights) for c, weights in state.teachers.items()}
        students = {name: build_classifier(server, name, weights) for name, weights in state.classifiers.items()}
        for student in students.values():
            train_student(student, server, state.synthetic, teachers, self.aggregation, self.training)
        return replace(state, classifiers={name: weights_of(student) for name, student in students.items()})

    def send_classifier(self, server: Server, state: Drawn, info: ClientInfo) -> Model:
        return Model(state.classifiers[info.architecture])

    def classifier(self, client: Client, sent: Model) -> nn.Module:
        return build_classifier(client, client.info.architecture, sent.classifier)


def kill_after_shard(number: int) -> None:
    """From now on this process kills itself as soon as that shard of `Draws` is on the disk."""
    append = FolderStore.append

    def killing(self: FolderStore, record: object, count: int) -> Shard:
        shard = append(self, record, count)
        if shard.name == f"draw.{number}.0":
            os.kill(os.getpid(), signal.SIGKILL)
        return shard

    FolderStore.append = killing  # type: ignore[method-assign]


@settings
class OwnPrivacy(PrivacySettings):
    """A mechanism that nothing applies."""


@settings
class FailsToClassify(LocalTraining):
    """A method whose own code fails where a tool builds its classifier again."""

    def classifier(self, client: Client, sent: Empty) -> nn.Module:
        if os.environ.get("GENFED_TEST_FAILS"):
            raise KeyError("where is it?")
        return super().classifier(client, sent)


@settings
class TellsCounts(FederatedAveraging):
    """It uploads how many examples of each class there are."""

    def private_trainings(self) -> dict[str, list[DeclaredTraining]]:
        return {"train": [self.training.declare()]}

    def train(self, client: Client, sent: Model) -> Reply[Model]:
        reply = super().train(client, sent)
        counts = torch.bincount(client.data.y, minlength=len(client.task.classes)).float()
        return replace(reply, upload=Model(reply.upload.classifier | {"counts": counts}))


@dataclass(frozen=True)
class ModelAndLoss:
    classifier: Weights
    loss: float


@settings
class TellsLoss(FederatedAveraging):
    """It uploads the loss of the first example."""

    def phases(self) -> list[Phase[Classifiers]]:
        (phase,) = super().phases()
        return [replace(phase, work=self.train_and_tell, aggregate={**phase.aggregate, "loss": Collect()})]

    def private_trainings(self) -> dict[str, list[DeclaredTraining]]:
        return {"train": [self.training.declare()]}

    def train_and_tell(self, client: Client, sent: Model) -> Reply[ModelAndLoss]:
        reply = self.train(client, sent)
        return Reply(ModelAndLoss(reply.upload.classifier, float(client.data.x[0].float().mean())))


@settings
class WeighsOne(FederatedAveraging):
    """Its weight is the brightness of an example."""

    def private_trainings(self) -> dict[str, list[DeclaredTraining]]:
        return {"train": [self.training.declare()]}

    def train(self, client: Client, sent: Model) -> Reply[Model]:
        return replace(super().train(client, sent), weight=1.5 + float(client.data.x[0].float().mean()))


@settings
class OwnPrior(FederatedAveraging):
    """Averaging whose classifier looks at the client's data: each client adds how often it has each class."""

    classifier_reads_data = True

    def classifier(self, client: Client, sent: Model) -> nn.Module:
        network = super().classifier(client, sent)
        bias = list(network.parameters())[-1]
        with torch.no_grad():
            bias.add_(10 * torch.bincount(client.data.y, minlength=len(bias)) / len(client.data))
        return network

    def train(self, client: Client, sent: Model) -> Reply[Model]:
        return Reply(Model(weights_of(super().classifier(client, sent))), metrics={"loss": 0.0})

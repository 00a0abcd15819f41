"""A trained classifier in files of its own, and back."""

import importlib.util
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic
import safetensors
import safetensors.torch
import torch
from torch import nn

from genfed._version import __version__
from genfed.artifacts.trained_model import TrainedModel, load_trained, select_trial
from genfed.config import registry
from genfed.config.architectures import Architectures
from genfed.config.reader import read_config, source_table
from genfed.core.errors import GenfedError, first_line
from genfed.core.task import Task
from genfed.data.features import Encoder
from genfed.experiment.run_folder import RunFolder
from genfed.training.weights import weights_of

# No .pt2: torch.export.save puts a pickle of the example inputs into it, and nothing here is pickled.
Format = Literal["safetensors", "onnx"]


@dataclass(frozen=True)
class ModelCard:
    """model.json: what an exported model is, and what it takes and gives."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid", strict=True)

    architecture: str | None
    """The name, or "module:Class", that makes the network of the task; None: the method made something of its own."""
    network: str
    """The network's class."""
    task: Task
    input: str
    output: str
    accuracy: float | None
    """Of this client at the last evaluation, in [0, 1]; None: never scored, or trained since."""
    scored_on: str
    """The part that it was read on: "test" or "validation"."""
    precision: Literal["float32", "bfloat16"]
    """Of the arithmetic in which it was scored; weights are float32."""
    genfed: str
    """The version that wrote this."""
    run: str
    """Its name."""
    method: str
    """Its label in the run."""
    kind: str
    """The method's name."""
    seed: int
    client: int
    rounds: int
    """Done when it was exported, over all phases."""
    data: dict[str, Any]
    """The run's data source: `genfed predict` reads new examples as it would."""
    encoder: Encoder | None
    """How a table's rows become features; None: images, or features as they are."""


def export(
    run: Path,
    out: Path,
    method: str | None = None,
    seed: int | None = None,
    client: int = 0,
    form: Format = "safetensors",
) -> TrainedModel:
    """Writes the classifier of a client into the folder `out`: model.json and model.safetensors (its state dict) or
    model.onnx. The run's last checkpoint is used, finished or not.

    Raises:
        GenfedError: no such run, trial or client, `out` exists, or ONNX cannot say what the network does.
    """
    model = find_trained(run, method, seed, client)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise GenfedError(f"{out} exists already; give another --out")
    about = _about(model)
    if form == "onnx":
        content = _onnx(model)
    else:
        content = safetensors.torch.save({k: v.contiguous().clone() for k, v in weights_of(model.network).items()})
    out.mkdir(parents=True, exist_ok=True)
    (out / f"model.{form}").write_bytes(content)
    (out / "model.json").write_bytes(pydantic.TypeAdapter(ModelCard).dump_json(about, indent=1) + b"\n")
    return model


def find_trained(run: Path, method: str | None, seed: int | None, client: int) -> TrainedModel:
    """The classifier that a run's folder holds.

    Raises:
        GenfedError: no such run, trial or client; several methods, and none is named.
    """
    folder = RunFolder(run)
    if not folder.config.is_file():
        raise GenfedError(f"{run} is not the folder of a run: it has no config.toml")
    config = read_config(run)
    return load_trained(select_trial(folder, config, method, seed, config.labels), client)


def load_model(folder: str | Path) -> tuple[nn.Module, Task]:
    """The network that `genfed export` wrote, on the CPU and in eval mode, and what it was made for: [n, *task.shape]
    on the scale that model.json tells → scores [n, classes].

    Raises:
        GenfedError: not such a folder, damaged files, or a network that no architecture's name makes.
    """
    about, file = read_model_card(Path(folder)), Path(folder) / "model.safetensors"
    if not file.exists():
        raise GenfedError(f"{folder} has no model.safetensors: export it with --format safetensors")
    if about.architecture is None:
        raise GenfedError(
            f"{folder}: the method {about.kind!r} made this network ({about.network}) of its own, and no "
            "architecture's name makes it again; export it with --format onnx"
        )
    network = Architectures().new(about.architecture, about.task, torch.Generator().manual_seed(0))
    try:
        network.load_state_dict(safetensors.torch.load_file(file))
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise GenfedError(
            f"{file} is damaged, or not of architecture {about.architecture} ({first_line(error)})"
        ) from None
    return network.eval(), about.task


def read_model_card(folder: Path) -> ModelCard:
    """What an exported folder's model.json says.

    Raises:
        GenfedError: there is none, or it is something else.
    """
    file = folder / "model.json"
    try:
        return pydantic.TypeAdapter(ModelCard).validate_json(file.read_bytes())
    except OSError as error:
        raise GenfedError(f"{file}: {error.strerror}; give a folder that `genfed export` wrote") from None
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        about = ": ".join([".".join(str(part) for part in first["loc"]), first["msg"]]).removeprefix(": ")
        raise GenfedError(f"{file} is not one that `genfed export` wrote: {about}") from None


def _about(model: TrainedModel) -> ModelCard:
    chosen, task = model.chosen, model.chosen.at.task
    kind = type(model.network)
    sides = ", ".join(map(str, task.shape))
    takes = "encoded as `encoder` says, or as they are where it is null"
    if task.kind == "image":
        takes = "in [−1, 1]; of pixels from 0 to 255 it is pixel · 2/255 − 1"
    return ModelCard(
        architecture=model.architecture,
        network=f"{kind.__module__}:{kind.__qualname__}",
        task=task,
        input=f"x float32 [n, {sides}], {takes}",
        output=f"scores float32 [n, {len(task.classes)}]: the largest names the class, softmax gives probabilities",
        accuracy=model.accuracy,
        scored_on=chosen.config.evaluation.part,
        precision=chosen.config.compute.precision,
        genfed=__version__,
        run=chosen.config.name,
        method=chosen.label,
        kind=registry.name_of(registry.METHODS, type(chosen.config.method[chosen.label])),
        seed=chosen.seed,
        client=model.info.id,
        rounds=chosen.at.step,
        data=source_table(chosen.config.data),
        encoder=chosen.run.read_encoder(),
    )


def _onnx(model: TrainedModel) -> bytes:
    """The network as an ONNX model of x [n, *shape] → scores [n, classes], for any n."""
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise GenfedError(f"ONNX needs {' and '.join(missing)}, the extra \"export\": pip install 'genfed[export]'")
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    logging.disable(logging.WARNING)  # it tells of libraries that we do not use
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model.network,
                (torch.zeros(2, *model.chosen.at.task.shape),),
                dynamo=True,
                input_names=["x"],
                output_names=["scores"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                verbose=False,
            )
            assert program is not None
            ClearMetadataAndDocStringPass()(program.model)  # this machine's paths
            content: bytes = program.model_proto.SerializeToString()
            return content
    except Exception as error:  # a network may hold anything
        about = f"{type(error).__name__}: {first_line(error)}"
        raise GenfedError(f"{type(model.network).__name__} cannot be written as ONNX ({about})") from error
    finally:
        logging.disable(logging.NOTSET)

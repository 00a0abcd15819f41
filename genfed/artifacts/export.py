"""Writes a trained classifier into files of its own, and reads it back."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import safetensors
import safetensors.torch
import torch
from torch import nn

from genfed._version import __version__
from genfed.artifacts.trained_model import TrainedModel, load_trained, select_trial
from genfed.config import registry
from genfed.config.architectures import Architectures
from genfed.config.reader import source_table
from genfed.core.errors import GenfedError, describe_error, first_line, require
from genfed.core.files import holds_nothing, make_folder, write_file
from genfed.core.task import Task
from genfed.data.encoder import Encoder
from genfed.data.sites import Sites
from genfed.experiment.run_folder import RunFolder
from genfed.preprocessing.channel_scale import ChannelScale
from genfed.preprocessing.pixel_scale import PixelScale
from genfed.report.results import Measures
from genfed.training.weights import weights_of

# No .pt2: torch.export.save puts a pickle of the example inputs into it, and nothing here is pickled.
Format = Literal["safetensors", "onnx"]


@dataclass(frozen=True)
class ModelCard:
    """What an exported model is, and its input and output: model.json."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False
    )

    architecture: str | None
    """Architecture that builds the network for the task. None: no name does, the network is the method's own."""
    network: str
    """Class of the network."""
    task: Task
    input: str
    """Input of the network, in words."""
    output: str
    """Output of the network, in words."""
    accuracy: Annotated[float, pydantic.Field(ge=0, le=1)] | None
    """Accuracy of this client at the last evaluation, in [0, 1]. None: not evaluated, or trained since."""
    scored_on: str
    """Held-out examples of that evaluation: "test" or "validation"."""
    precision: Literal["float32", "bfloat16"]
    """Precision of the arithmetic in that evaluation; weights are float32."""
    genfed: str
    """Version of genfed that wrote the file."""
    run: str
    """Name of the run."""
    method: str
    """Label of the method in the run."""
    kind: str
    """Name of the method."""
    seed: int
    client: int
    rounds: int
    """Number of finished rounds at the export, over all phases."""
    data: dict[str, Any]
    """Data source of the run; `genfed predict` reads new examples in the same way."""
    encoder: Encoder | None
    """How raw examples become x. None: they are used as they are."""
    measures: Measures | None = None
    """Measures beside accuracy at that evaluation. None: not evaluated, trained since, or not measured."""


def export(
    run: Path,
    out: Path,
    method: str | None = None,
    seed: int | None = None,
    client: int = 0,
    form: Format = "safetensors",
) -> TrainedModel:
    """Writes the classifier of a client: model.json, and model.safetensors (its state dict) or model.onnx. Uses the
    last checkpoint of the run, which may still go on.

    Args:
        run: the folder of a run.
        out: the folder to write.
        method: label of the method. None: the only one.
        seed: seed of the trial. None: the first.
        client: number of the client.
        form: the format.

    Raises:
        GenfedError: there is no such run, trial or client, `out` exists, or ONNX cannot express the network.
    """
    out = out.absolute()  # a user's own code may change the working directory
    model = find_trained(run, method, seed, client)
    if out.is_file() or not holds_nothing(out):
        raise GenfedError(f"{out} exists already; give another --out")
    about = _describe(model)
    if form == "onnx":
        content = _onnx(model)
    else:
        content = safetensors.torch.save({k: v.contiguous().clone() for k, v in weights_of(model.network).items()})
    make_folder(out)
    write_file(out / f"model.{form}", content)
    write_file(out / "model.json", pydantic.TypeAdapter(ModelCard).dump_json(about, indent=1) + b"\n")
    return model


def find_trained(run: Path, method: str | None, seed: int | None, client: int) -> TrainedModel:
    """Returns a trained classifier of a run.

    Args:
        run: the folder of a run.
        method: label of the method. None: the only one.
        seed: seed of the trial. None: the first.
        client: number of the client.

    Raises:
        GenfedError: there is no such run, trial or client, or several methods and none is named.
    """
    folder = RunFolder(run.absolute())
    config = folder.read_config()
    return load_trained(select_trial(folder, config, method, seed, config.labels), client)


def load_model(folder: str | Path, *, trust_code: bool = False) -> tuple[nn.Module, Task]:
    """Returns the network that `genfed export` wrote, on the CPU and in eval mode, and its task. The network maps
    [n, *task.shape], on the scale that model.json names, to scores [n, classes].

    Args:
        folder: the folder; anyone may have made it.
        trust_code: whether the class that model.json names as "module:Class" is imported, also from the working
            directory. An architecture of genfed or of an installed plugin needs no trust.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import genfed
    >>> from genfed.artifacts.export import export  # as `genfed export` does
    >>> config = {
    ...     "name": "tiny",
    ...     "methods": ["fedavg"],
    ...     "baselines": [],
    ...     "data": {"kind": "digits", "size": 8},
    ...     "federation": {"clients": 4, "max_examples": 80, "architectures": ["linear"]},
    ...     "defaults": {"rounds": 2, "training": {"epochs": 1}},
    ...     "compute": {"workers": 0},
    ... }
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run, model = Path(folder, "tiny"), Path(folder, "model")
    ...     report = genfed.run(config, out=run, command="tiny example")
    ...     trained = export(run, model, client=3)
    ...     network, task = genfed.load_model(model)
    >>> task.shape, len(task.classes)
    ((1, 8, 8), 10)

    Raises:
        GenfedError: the folder is something else or damaged, no architecture's name builds the network, or it names
            code that is not trusted.
    """
    about, file = read_model_card(Path(folder)), Path(folder) / "model.safetensors"
    if not file.is_file():  # a pipe or a device has no end
        raise GenfedError(f"{folder} has no model.safetensors: export it with --format safetensors")
    _check_size(about, folder, file, trust_code)
    network = _new_network(about, folder, trust_code)
    try:
        network.load_state_dict(safetensors.torch.load_file(file))
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise GenfedError(
            f"{file} is damaged, or not of architecture {about.architecture} ({first_line(error)})"
        ) from None
    return network.eval(), about.task


def _check_size(about: ModelCard, folder: str | Path, file: Path, trust_code: bool) -> None:
    """Refuses a network that has more weights than the file, before memory is allocated for it.

    Raises:
        GenfedError: it has.
    """
    try:
        with torch.device("meta"):
            network = _new_network(about, folder, trust_code)
            count = sum(value.numel() for value in network.state_dict().values())
    except GenfedError:
        raise
    except Exception:  # a class of the user's own may not work without numbers; it is built as it is then
        return
    if count > file.stat().st_size:  # a number has at least one byte
        raise GenfedError(
            f"{file} is damaged, or not of architecture {about.architecture}: examples of {about.task.shape} need "
            f"{count:.3g} weights, and it has {file.stat().st_size:,} bytes"
        )


def _new_network(about: ModelCard, folder: str | Path, trust_code: bool) -> nn.Module:
    """Returns a network of the architecture that an exported folder names; see `load_model`."""
    if about.architecture is None:
        raise GenfedError(
            f"{folder}: the method {about.kind!r} built this network ({about.network}) itself, and no "
            "architecture's name builds it again; export it with --format onnx"
        )
    if ":" in about.architecture and not trust_code:
        raise GenfedError(
            f"{folder}: its network is the class {about.architecture}, and importing it runs code; if you trust that "
            "code, say trust_code=True"
        )
    return Architectures().new(about.architecture, about.task, torch.Generator().manual_seed(0))


def read_model_card(folder: Path) -> ModelCard:
    """Reads the model.json of an exported folder.

    Raises:
        GenfedError: there is none, or it is something else.
    """
    file = folder / "model.json"
    if file.exists() and not file.is_file():
        raise GenfedError(f"{file} is no file; give a folder that `genfed export` wrote")
    try:
        return pydantic.TypeAdapter(ModelCard).validate_json(file.read_bytes())
    except OSError as error:
        raise GenfedError(f"{file}: {error.strerror}; give a folder that `genfed export` wrote") from None
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        about = ": ".join([".".join(str(part) for part in first["loc"]), first["msg"]]).removeprefix(": ")
        raise GenfedError(f"{file} is not one that `genfed export` wrote: {about}") from None


def _describe(model: TrainedModel) -> ModelCard:
    chosen, task = model.chosen, model.chosen.at.task
    kind = type(model.network)
    sides = ", ".join(map(str, task.shape))
    encoder = chosen.run.read_encoder()
    scale = "encoded as `encoder` says" if encoder else "as the data source gives them"
    if isinstance(chosen.config.data, Sites) and encoder is None:
        scale = "encoded by the encoder.json that the sites share, which this run does not hold"
    if isinstance(encoder, ChannelScale):
        scale = "each channel as (value − mean) / deviation, by `encoder`"
    if task.kind == "image":
        pixels = encoder if isinstance(encoder, PixelScale) else PixelScale()
        scale = f"in [−1, 1]: {pixels.formula}"
        if isinstance(chosen.config.data, Sites) and encoder is None:
            scale += ", unless the sites set data.pixels, which this run does not know"
    return ModelCard(
        architecture=model.architecture,
        network=f"{kind.__module__}:{kind.__qualname__}",
        task=task,
        input=f"x float32 [n, {sides}], {scale}",
        output=f"scores float32 [n, {len(task.classes)}]: the largest names the class, softmax gives probabilities",
        accuracy=model.score.accuracy if model.score else None,
        measures=model.score.measures if model.score else None,
        scored_on=chosen.config.evaluation.split,
        precision=chosen.config.compute.precision,
        genfed=__version__,
        run=chosen.config.name,
        method=chosen.label,
        kind=registry.name_of(registry.METHODS, type(chosen.config.method[chosen.label])),
        seed=chosen.seed,
        client=model.info.id,
        rounds=chosen.at.step,
        data=source_table(chosen.config.data),
        encoder=encoder,
    )


def _onnx(model: TrainedModel) -> bytes:
    """Returns the network as an ONNX model of x [n, *shape] → scores [n, classes], for any n."""
    for name in ("onnx", "onnxscript"):
        require(name, extra="export", what="ONNX")
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    logging.disable(logging.WARNING)  # it names libraries that we do not use
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
            shape = program.model.graph.inputs[0].shape
            if shape and isinstance(count := shape[0], int):  # else it has a name
                raise GenfedError(f"it would take exactly {count} examples at once")
            ClearMetadataAndDocStringPass()(program.model)  # they hold paths of this machine
            content: bytes = program.model_proto.SerializeToString()
            return content
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a network may hold anything
        about = describe_error(error)
        raise GenfedError(f"{type(model.network).__name__} cannot be written as ONNX ({about})") from error
    finally:
        logging.disable(logging.NOTSET)

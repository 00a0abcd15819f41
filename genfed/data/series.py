"""Windows of series, such as those of sensors, in one NumPy .npz file."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from genfed.core.errors import GenfedError
from genfed.core.settings import settings
from genfed.core.task import Data, Task
from genfed.data.copies import describe_torn, digest_examples
from genfed.data.dataset import Dataset, Examples
from genfed.data.encoder import Encoder, read_channel_scale
from genfed.data.images import read_example_array
from genfed.data.npz_source import NpzSource
from genfed.preprocessing.arrays import Array
from genfed.preprocessing.channel_scale import ChannelScale, fit_channel_scale, measure_channels
from genfed.preprocessing.checks import check_fit, require_path
from genfed.preprocessing.source_summary import SourceSummary, list_some

_FAR = 8
"""Deviations from the training windows' mean above which most of a channel is far from them."""


@settings
class Series(NpzSource):
    """Arrays x_train, y_train and optionally x_validation, y_validation, x_test, y_test; or x and y; x are windows of
    series, numbers [n, channels, steps]. Each channel is scaled to mean 0 and deviation 1 over the training windows.
    """

    layout: Literal["NCT", "NTC"] = "NCT"
    """Order of the axes of x: windows, channels, steps ("NCT") or windows, steps, channels ("NTC"). Windows of one
    channel may be [n, steps]."""
    encoder: str | None = None
    """File encoder.json of another run, whose scales of the channels are used; all sites of a federation need the same.
    None: they are fitted to the training windows."""

    def load(self) -> Dataset:
        given = self.read_file()
        windows = {part: to_windows(x, self.layout, f"{self.path}: x of {part}") for part, x in given.x.items()}
        keys = {part: digest_examples(x) for part, x in windows.items()}
        cut = self.cut(given.y, given.classes, keys, given.natural)
        train = windows["train"][cut.rows["train"][1].numpy()]
        scale = fit_channel_scale(measure_channels(train), self.path)
        if self.encoder is not None:
            scale = read_channel_scale(self.encoder)
        where = {part: f"{self.path}: x of {part}" for part in windows}
        x = {part: scale.encode(raw, where[part]) for part, raw in windows.items()}
        data = {part: Data(x[part], given.y[part]) for part in x}
        summary = self._describe(train) + given.summary + find_far(x, where)
        summary += describe_torn(given.y, keys, "window", "numbers")
        natural = given.natural
        return self.build_dataset("series", data, given.classes, natural["train"], scale, natural, summary, cut)

    def _describe(self, train: NDArray[np.float64]) -> SourceSummary:
        _, channels, steps = train.shape
        facts = [f"{self.path}: windows of {channels} channels × {steps} steps, {train.min():.6g} to {train.max():.6g}"]
        if same := np.flatnonzero(np.ptp(train, axis=(0, 2)) == 0).tolist():
            facts.append(f"channels with one value: {list_some(map(str, same))}")
        doubt = f"windows have more channels ({channels}) than steps ({steps}); if the axes are swapped, set layout"
        return SourceSummary(tuple(facts), (doubt,) if channels > steps else ())

    def read(self, path: str, task: Task, encoder: Encoder | None) -> Iterator[Examples]:
        """Reads windows from the array x of an .npz."""
        if Path(path).suffix.lower() != ".npz":
            require_path(path)
            raise GenfedError(f"{path}: the run's examples are series; an .npz with an array x is allowed")
        name, raw = read_example_array(path)
        where = f"{path}: {name}"
        windows = to_windows(raw, self.layout, where)
        check_fit(windows.shape[1:], task, where)
        if not len(windows):
            raise GenfedError(f"{where} holds no examples")
        if not isinstance(encoder, ChannelScale):
            raise GenfedError(
                f"{path}: windows must be scaled like the training windows, but the run's folder has no encoder.json; "
                "resuming the run (--resume) writes it"
            )
        x = encoder.encode(windows, where)
        yield Examples(tuple(map(str, range(len(x)))), "row", x, find_far({"x": x}, {"x": where}).warnings)


def to_windows(x: Array, layout: Literal["NCT", "NTC"], where: str) -> NDArray[np.float64]:
    """Returns an array as windows [n, channels, steps].

    Args:
        x: Numbers [n, steps], or [n, channels, steps] or [n, steps, channels] by the layout.
        layout: The order of three axes.
        where: Text that begins an error message, such as "data.npz: x".

    Raises:
        GenfedError: it has other axes, holds no numbers, or one of them is not finite.
    """
    if x.ndim not in (2, 3) or x.dtype.kind not in "biuf" or not np.prod(x.shape[1:]):
        raise GenfedError(f"{where} is {x.dtype} {x.shape}; numbers [n, channels, steps] are allowed")
    if invalid := x.size - int(np.isfinite(x).sum()):
        raise GenfedError(f"{where} holds {invalid} values that are NaN or infinite")
    windows = x[:, None] if x.ndim == 2 else x if layout == "NCT" else x.transpose(0, 2, 1)
    return windows.astype(np.float64)


def find_far(x: Mapping[str, Tensor], where: Mapping[str, str]) -> SourceSummary:
    """Returns a warning for each part of which most numbers of a channel are far from those of training.

    Args:
        x: Scaled windows [n, C, T] by part.
        where: The name of each part in messages.
    """
    warnings = []
    for part, windows in x.items():
        if not len(windows):
            continue
        middle = windows.abs().transpose(0, 1).flatten(1).median(1).values
        if far := (middle > _FAR).nonzero()[:, 0].tolist():
            warnings.append(
                f"{where[part]}: channel {list_some(map(str, far))}: most values are far from those of training; is it "
                "in another unit?"
            )
    return SourceSummary((), tuple(warnings))

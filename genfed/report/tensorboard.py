"""TensorBoard curves beside metrics.jsonl, for watching a run live; needs the extra `tensorboard`."""

import re
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genfed.core.files import PRIVATE_FILE, make_folder
from genfed.report.results import Row
from genfed.report.summarize import read_accuracies, read_losses


class TensorBoard:
    """Accuracy and loss of every trial, by step, in `<folder>/<method>/seed-<seed>`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[tuple[str, int], Any] = {}

    def write(self, rows: Iterable[Row]) -> None:
        """Adds the points of these rows and shows them to a reader; every round must come whole, in one call."""
        trials: dict[tuple[str, int], list[Row]] = defaultdict(list)
        for row in rows:
            trials[row["method"], row["seed"]].append(row)
        for trial, own in trials.items():
            writer = self._writer(*trial)
            for point in read_accuracies(own):
                writer.add_scalar("accuracy", point.value, point.step)
            for point in read_losses(own):
                writer.add_scalar(
                    f"loss/{point.phase}", float("nan") if point.value is None else point.value, point.step
                )
            writer.flush()
            for file in Path(writer.log_dir).iterdir():
                file.chmod(PRIVATE_FILE)

    def close(self) -> None:
        """Ends the files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, method: str, seed: int) -> Any:
        if (method, seed) not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            name = re.sub(r"^\.+|[^\w.-]", "_", method)  # a label is free text; a folder must stay inside its parent
            make_folder(folder := self._folder / name / f"seed-{seed}")
            self._writers[method, seed] = SummaryWriter(str(folder))
        return self._writers[method, seed]


def open_tensorboard(folder: Path, rows: Iterable[Row] = ()) -> TensorBoard | None:
    """Returns a sink that starts with `rows` (after a resume: those in metrics.jsonl). None: the extra is missing.
    Deletes the files in the folder: event files cannot be truncated to a checkpoint, and points would appear twice.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    board = TensorBoard(folder)
    board.write(rows)
    return board

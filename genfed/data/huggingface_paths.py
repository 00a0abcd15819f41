"""Which files a data set in Hugging Face's format may name: its own. Whoever made it chose the paths in its README.md,
in its state.json and in its rows, and could have any file of this machine read.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genfed.core.errors import GenfedError
from genfed.core.text import one_line

_REMOTE = ("hf", "https", "http")
_PACKED = ("zip", "gzip", "tar", "bz2", "xz", "zstd", "lz4")


def is_saved(folder: Path) -> bool:
    """Returns whether a folder was written by `save_to_disk`."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def check_named_files(folder: Path) -> None:
    """Checks what a folder says of its files, before any of them is read or fetched.

    Raises:
        GenfedError: it names a file outside of the folder, or an address.
    """
    for file, text in _list_saved(folder) if is_saved(folder) else _list_card(folder):
        if "://" in text or "::" in text or ".." in text or text.startswith(("/", "~")) or Path(text).is_absolute():
            raise GenfedError(f"{file} names {one_line(text)}: only files below {folder} are read")


def check_resolved_files(files: Any, where: str) -> None:
    """Checks the files of each split of a data set on the hub, before they are fetched. None: there are none yet.

    Raises:
        GenfedError: one is a file of this machine.
    """
    for name in (name for some in (files or {}).values() for name in some):
        *packed, last = (hop.partition("://")[0] for hop in str(name).split("::"))
        if "://" not in str(name).split("::")[-1] or last not in _REMOTE or not set(packed) <= set(_PACKED):
            raise GenfedError(f"{where} names {one_line(name)}: only files of the hub are read")


def check_image_path(path: str, folder: str, where: str) -> Path:
    """Returns the file of an image that a row names by its path.

    Args:
        path: the path.
        folder: the folder of the data set, or a name on the hub.
        where: begins the message.

    Raises:
        GenfedError: the file lies neither in the folder nor among what was fetched from the hub or unpacked.
    """
    import datasets
    import huggingface_hub.constants

    file = os.path.normpath(Path(path).absolute())
    roots = [datasets.config.DOWNLOADED_DATASETS_PATH, huggingface_hub.constants.HF_HUB_CACHE]
    if Path(folder).is_dir():
        roots += [folder, Path(folder).resolve()]  # links in the folder are followed
    if not any(file.startswith(os.path.normpath(Path(root).absolute()) + os.sep) for root in roots):
        raise GenfedError(f"{where} is {one_line(path)}, which is no file of this data set")
    return Path(file)


def _list_card(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields the patterns of files and folders in the head of README.md, and in .huggingface.yaml."""
    import yaml
    from huggingface_hub import DatasetCard

    card, beside = folder / "README.md", folder / ".huggingface.yaml"
    tables = [(card, DatasetCard.load(card).data.to_dict())] if card.is_file() else []
    if beside.is_file():
        tables.append((beside, yaml.safe_load(beside.read_text("utf-8"))))
    for file, table in tables:
        configs = table.get("configs") if isinstance(table, dict) else None
        for config in configs if isinstance(configs, list) else ():
            for key in ("data_files", "data_dir"):
                for text in _list_texts(config.get(key) if isinstance(config, dict) else None):
                    yield file, text


def _list_saved(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields the names of folders and files that `save_to_disk` wrote into dataset_dict.json and each state.json."""
    splits = [""]
    if (file := folder / "dataset_dict.json").is_file():
        splits = list(_list_texts(json.loads(file.read_text("utf-8"))))
        yield from ((file, split) for split in splits)
    for state in (folder / split / "state.json" for split in splits):
        if state.is_file():
            yield from ((state, text) for text in _list_texts(json.loads(state.read_text("utf-8")).get("_data_files")))


def _list_texts(value: Any) -> Iterator[str]:
    """Yields every text in a value of JSON or YAML, at any depth, but for the keys of tables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _list_texts(item)

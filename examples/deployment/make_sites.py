"""Writes the data and the file of three sites, one for each client of a config:

python examples/deployment/make_sites.py FOLDER [ADDRESS] [KEYS] [CONFIG]
"""

import sys
from pathlib import Path

import numpy as np

from genfed.config.reader import read_config
from genfed.experiment.inputs import load_data
from genfed.experiment.partitioning import partition_data

NAMES = ("north", "south", "west")
FILE = """\
name = "{name}"
architecture = "{architecture}"

[data]
kind = "npz"
path = "{name}.npz"
validation = 0.0

[link]
address = "{address}"
{how}
"""


def make(folder: Path, address: str = "127.0.0.1:9092", keys: str = "", config_file: str = "") -> None:
    """Writes NAME.npz and NAME.toml for each site. Without `keys` the sites connect without TLS."""
    config = read_config(config_file or Path(__file__).with_name("digits.toml"))
    shards = partition_data(config, load_data(config), config.seeds[0])
    folder.mkdir(parents=True, exist_ok=True)
    classes, test = np.array(shards.task.classes), shards.held_out
    for name, info, rows in zip(NAMES, shards.clients, shards.ranges, strict=True):
        mine = shards.train[slice(*rows)]
        np.savez(
            folder / f"{name}.npz",
            x_train=mine.x.numpy(),
            y_train=classes[mine.y],
            x_test=test.x.numpy(),
            y_test=classes[test.y],
        )
        tls = f'certificate = "{keys}/ca.crt"\nkey = "{keys}/{name}"'
        how = tls if keys else "insecure = true"
        text = FILE.format(name=name, architecture=info.architecture, address=address, how=how)
        (folder / f"{name}.toml").write_text(text, "utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]), *sys.argv[2:])

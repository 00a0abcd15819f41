"""What is read does not depend on the machine's language and time zone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

PROGRAM = """
import hashlib, sys
from genfed.data.folder import Folder
from genfed.data.table import Table
for source in (Table(path=sys.argv[1], label="w\\u00e4rme"), Folder(path=sys.argv[2])):
    data = source.load()
    said = ascii((data.task.classes, data.summary, data.encoder))
    print(hashlib.sha256(b"".join(part.x.numpy().tobytes() for part in (data.train, data.test))).hexdigest(), said)
"""


def read(table: Path, images: Path, **surroundings: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(table), str(images)],
        env={**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **surroundings},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout


def test_days_umlauts_and_folders_are_read_alike_everywhere(tmp_path: Path) -> None:
    rows = []
    for i, noise in enumerate(np.random.default_rng(0).normal(size=40)):
        day, town = f"2020-03-{i % 28 + 1:02} 02:30", "Köln" if i % 3 else "Ulm"
        rows.append(f"{noise:.3f};{day};{town};{'größer' if i % 2 else 'ß'}")
    (table := tmp_path / "a.csv").write_text("\n".join(["a;wann;stadt;wärme", *rows]) + "\n", "utf-8")
    for name in ("apfel", "birne"):
        (tmp_path / "bilder" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("L", (4, 4), 10 * i + len(name)).save(tmp_path / "bilder" / name / f"{i}.png")
    here = read(table, tmp_path / "bilder", LC_ALL="C.UTF-8", TZ="UTC")
    for zone, language in (("Asia/Kathmandu", "de_DE.UTF-8"), ("Pacific/Apia", "C")):
        assert here == read(table, tmp_path / "bilder", LC_ALL=language, TZ=zone)

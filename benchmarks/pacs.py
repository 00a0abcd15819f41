"""Halves PACS into a public part, for a foundation model, and the clients' part: `python -m benchmarks.pacs FILE`.

FILE holds x uint8 [9991, 32, 32, 3], y (0–6) and domain (0–3): dog, elephant, giraffe, guitar, horse, house, person as
photo, art painting, cartoon, sketch. Li, Yang, Song, Hospedales, Deeper, Broader and Artier Domain Generalization, ICCV
2017. Writes runs/pacs/public.npz and runs/pacs/clients.npz: no image is in both. Each class of each domain is halved.
"""

import sys
from pathlib import Path

import numpy as np

CLASSES = np.array(["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"])
DOMAINS = np.array(["photo", "art painting", "cartoon", "sketch"])


def main(file: str) -> None:
    """Writes both files."""
    with np.load(file) as arrays:
        x, y, domain = (arrays[name] for name in ("x", "y", "domain"))
    rng, public = np.random.default_rng(0), np.zeros(len(y), bool)
    for cell in np.unique(np.stack([y, domain], 1), axis=0):
        rows = np.flatnonzero((y == cell[0]) & (domain == cell[1]))
        public[rng.permutation(rows)[: len(rows) // 2]] = True
    folder = Path("runs") / "pacs"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("public", public), ("clients", ~public)):
        np.savez(folder / f"{name}.npz", x=x[rows], y=CLASSES[y[rows]], domain=DOMAINS[domain[rows]])
        print(f"{folder / name}.npz: {rows.sum()} images")


if __name__ == "__main__":
    main(*sys.argv[1:])

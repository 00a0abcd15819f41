"""Three sources of handwritten digits as three domains: `python -m benchmarks.digit_domains FOLDER`.

FOLDER holds mnist.npz (x_train uint8 [n, 28, 28], y_train) and usps.npz (x_train uint8 [n, 16, 16], y_train); the third is
scikit-learn's digits, without those that the model that ships was trained on. Writes runs/digit-domains/clients.npz for
configs/oneshot/domains.toml: 500 of each, white on black, 16×16, RGB.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from genfed.data.split import split_stratified

EACH, SIZE = 500, 16


def main(folder: str) -> None:
    """Writes the file."""
    pixels, labels = load_digits(return_X_y=True)
    unseen = split_stratified(torch.from_numpy(labels), [0.25], 0, tuple("0123456789"))[0].numpy()
    sources = {"digits": (pixels[unseen].reshape(-1, 8, 8) * (255 / 16), labels[unseen])}
    for name in ("mnist", "usps"):
        with np.load(Path(folder) / f"{name}.npz") as arrays:
            sources[name] = arrays["x_train"], arrays["y_train"]
    rng, parts = np.random.default_rng(0), []
    for name, (x, y) in sources.items():
        rows = rng.permutation(len(y))[:EACH]
        grey = torch.from_numpy(np.ascontiguousarray(x[rows])).float()[:, None]
        grey = F.interpolate(grey, (SIZE, SIZE), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        parts.append((grey.permute(0, 2, 3, 1).repeat(1, 1, 1, 3).numpy(), y[rows].astype(str), np.full(EACH, name)))
    out = Path("runs") / "digit-domains" / "clients.npz"
    out.parent.mkdir(parents=True, exist_ok=True)
    x, y, domain = (np.concatenate(column) for column in zip(*parts, strict=True))
    np.savez(out, x=x, y=y, domain=domain)
    print(f"{out}: {len(y)} images")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Wall-time gain of two workers over one."""

import tempfile
from pathlib import Path

from benchmarks.common import alternate, run_apart, workload, write_images

CLIENTS, ROUNDS, PAIRS = 100, 2, 3


def main() -> str:
    """Measures and returns a Markdown section."""
    with tempfile.TemporaryDirectory() as name:
        images = Path(name) / "images.npz"
        write_images(images, CLIENTS)

        def rounds_with(workers: int) -> float:
            """Wall time of the second round: the first waits for the workers to start and import torch."""
            short, long = (
                sum(c.seconds for c in run_apart(workload(images, CLIENTS, n, workers))[1].trials[0].costs)
                for n in (1, 1 + ROUNDS)
            )
            return float(long - short)

        pairs = alternate(lambda: rounds_with(1), lambda: rounds_with(2), PAIRS)
    return (
        "## 2. Two workers beside one\n\n"
        f"{CLIENTS} clients, wall time of {ROUNDS} rounds once the workers run, {PAIRS} alternated pairs.\n\n"
        f"Gain, median (least–most): **{pairs.ratio()}**. Aim: at least 1.8 on 2 cores.\n"
    )


if __name__ == "__main__":
    print(main())
